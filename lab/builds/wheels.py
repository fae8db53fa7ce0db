"""Python wheels, by the pip of the running Python, hashes checked, nothing run from them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.builds.contained import with_us
from lab.builds.registry import asked
from lab.errors import ExitCode
from lab.run import run

#: glibc of Debian 13. A wheel for this or any older glibc runs on the nodes.
GLIBC = (2, 41)


def platforms(glibc: tuple[int, int]) -> list[str]:
    """The platform tags that run on x86-64 with `glibc`, newest first."""
    major, minor = glibc
    tags = [f"manylinux_{major}_{number}_x86_64" for number in range(minor, 4, -1)]
    return [*tags, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def pip(arguments: Sequence[str | Path], scratch: Path) -> None:
    """Run pip with the user's own configuration (registry, proxy, certificates)."""
    with asked(
        "the Python package registry",
        "see that `pip download pip` works here; `pip config list` shows where pip looks",
    ):
        run(
            with_us([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]),
            env={"TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"},
            hint="the lines above are pip's",
            code=ExitCode.ARTIFACT,
        )


def install_pinned(
    name: str, pin: Mapping[str, str], made: Path, scratch: Path, options: Sequence[str] = ()
) -> None:
    """Unpack one wheel, pinned by `version` and `sha256`, into the folder `made`."""
    requirement = scratch / f"{name}.txt"
    requirement.write_text(f"{name}=={pin['version']} --hash=sha256:{pin['sha256']}\n", encoding="utf-8")
    fixed = ["--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", *options]
    pip(["install", *dict.fromkeys(fixed), "--target", made, "--requirement", requirement], scratch)


def version() -> str:
    """The version of the pip that is used."""
    done = run([sys.executable, "-m", "pip", "--version"], code=ExitCode.HOST)
    return done.stdout.split()[1]


def target(python: str, glibc: tuple[int, int]) -> list[str]:
    """The options of pip for wheels of another CPython (`3.13`), for `glibc`, never a source package."""
    return [
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        *(f"--platform={tag}" for tag in platforms(glibc)),
    ]
