"""One-way streams between two pods, by TCP and redirected: their rate, and what they cost their sender."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from lab.errors import ExitCode, die
from lab.measure import tools
from lab.measure.latency.paths import IN_KERNEL, NO_PROXY, Way
from lab.measure.latency.result import SLOW_STREAM, STREAM, Row
from lab.measure.shell import Shell
from lab.measure.workload import inside

PATHS = (NO_PROXY, IN_KERNEL)
#: The reader that keeps up, and the one that does not.
PORTS = {STREAM: 7001, SLOW_STREAM: 7002}
#: Bytes a second of the reader that stays behind: less than any path can do.
PACE = 256_000_000

_SCRIPT = "/tmp/streams.py"  # noqa: S108
_FD = 9  # the shell's end of the connection


def place(shell: Shell) -> None:
    """Put the program into a pod."""
    shell.ask(f"cat > {_SCRIPT} <<'END'\n{inside('streams.py')}\nEND")


def serve(shell: Shell) -> None:
    """Start the readers in a pod; they end with it."""
    place(shell)
    words = " ".join(map(str, (*PORTS.values(), PACE)))
    shell.ask(f"(exec python3 {_SCRIPT} serve {words} >/dev/null 2>&1 </dev/null &)")


def round_(
    client: Shell,
    node: Shell,
    ways: Sequence[tuple[Way, str, str]],
    mode: str,
    number: int,
    sizes: Sequence[int],
    seconds: int,
    settle: int,
) -> Iterator[Row]:
    """Each size by each way, forwards in even rounds and backwards in odd ones. Of each stream `seconds` are
    measured, after `settle` seconds in which the node sees what kind of stream it is.

    `ways`: each with its server's address, and with the pods as `underpass explain` calls them.
    """
    for kind in PORTS:
        for size in sizes:
            for way, address, ends in ways if number % 2 == 0 else reversed(ways):
                blank = Row(kind, mode, way.name, number, size)
                yield _stream(client, node, way, address, ends, blank, seconds, settle)


def _stream(
    client: Shell, node: Shell, way: Way, address: str, ends: str, blank: Row, seconds: int, settle: int
) -> Row:
    """One stream. Its connection is closed when the node has been asked how its bytes went."""
    port = PORTS[blank.kind]
    client.ask(f"exec {_FD}<>/dev/tcp/{address}/{port}")
    words = f"{_FD} {blank.size} {settle} {seconds}"
    text = client.ask(f"python3 {_SCRIPT} send {words}", timeout=settle + seconds + 30)
    answer = node.ask(f"underpass explain {ends} --port {port} -o json 2>&1", fails=True)
    client.ask(f"exec {_FD}>&-")
    share = redirected(answer)
    if bool(share) != way.accelerated:
        die(
            f"a stream by the path {way.name} was {'' if share else 'not '}redirected",
            details=answer.strip().splitlines()[-10:],
            hint="`underpass explain` on the node tells why",
            code=ExitCode.NOT_VERIFIED,
        )
    sent = tools.stream(text)
    return Row(
        blank.kind, blank.mode, blank.path, blank.round, blank.size,
        rate=sent.bytes / sent.seconds, cpu=sent.cpu * 1e6 / (sent.bytes / blank.size), redirected=share,
    )  # fmt: skip


def redirected(answer: str) -> float | None:
    """The share of a client's bytes that went from socket to socket, as `underpass explain` tells.

    0 if its connection is plain TCP, None if no connection is told of.
    """
    try:
        sent = [one["from_client"] for one in json.loads(answer)["connections"]]
        fast = sum(one["bytes"] for one in sent)
        everything = fast + sum(one["tcp_bytes"] for one in sent)
    except (ValueError, KeyError, TypeError):
        return None
    if not sent:
        return None
    return fast / everything if everything else 0.0
