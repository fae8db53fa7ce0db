"""What a package registry that does not answer looks like, told apart from other faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lab.errors import ExitCode, LabError
from lab.run import CommandError

_SIGNS = re.compile(
    r"dial tcp|no such host|i/o timeout|connection refused|connection reset|connection timed out"
    r"|network is unreachable|no route to host|temporary failure (?:in name resolution|resolving)"
    r"|name or service not known|failed to establish a new connection|handshake (?:failure|timeout)"
    r"|proxyerror|max retries exceeded|read timed out|could not (?:resolve|connect to)"
    r"|failed to fetch|from versions: none|\b50[234] |http error 50[234]|unexpected eof",
    re.IGNORECASE,
)


@contextmanager
def asked(registry: str, hint: str) -> Iterator[None]:
    """Turn a program's failure to reach `registry` into a `LabError` that says so, with its tail."""
    try:
        yield
    except CommandError as fault:
        if not any(_SIGNS.search(line) for line in fault.details):
            raise
        raise LabError(
            f"{registry} does not answer, or not with what was asked for",
            details=fault.details,
            hint=f"{hint}; then the same command again goes on from here. "
            "A bundle (`lab bundle load FILE`) needs no registry",
            code=ExitCode.ARTIFACT,
        ) from fault
