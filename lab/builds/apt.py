"""Debian root file systems, made with mmdebstrap from where the host itself gets its packages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.builds.contained import enclosed
from lab.builds.registry import asked
from lab.errors import ExitCode
from lab.lock import lock
from lab.run import run

#: Settings of the host's apt that reaching its mirror may take; none of them stays in the image.
_SETTINGS = re.compile(r"Acquire::(https?|ForceIPv[46]|Retries|Check-Valid-Until)\b")

#: Documents that no node reads. Licences stay.
_WITHOUT = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)


def bootstrap(root: Path, scratch: Path, packages: Sequence[str], hooks: Sequence[Path] = ()) -> None:
    """Make a Debian root file system of the locked suite in `root` (absent or empty).

    `packages` come on top of the smallest usable set. Each of `hooks` is an executable that gets
    `root` while apt's lists are still there. Nothing about the mirror stays in `root`.
    """
    suite = lock().versions["debian"]
    settings = scratch / "apt.conf"
    settings.touch(mode=0o600)
    settings.write_text(host_settings(), encoding="utf-8")
    sources = source_list(suite)
    hint = f"see that the host's own `apt-get update` works and that its mirror carries Debian {suite}"
    with asked("the Debian mirror", hint):
        run(
            enclosed(
                [
                    "mmdebstrap",
                    "--mode=root",
                    "--format=directory",
                    "--variant=minbase",
                    f"--include={','.join(packages)}",
                    f"--aptopt={settings}",
                    *(f"--dpkgopt={option}" for option in _WITHOUT),
                    *(f"--customize-hook={hook}" for hook in hooks),
                    suite,
                    str(root),
                    # Through stdin: an address may carry a password, and command lines are logged.
                    *(["-"] if sources else []),
                ]
            ),
            stdin=sources or None,
            env={"TMPDIR": str(scratch)},
            hint="the lines above are mmdebstrap's; `make setup` installs it",
            code=ExitCode.ARTIFACT,
        )
    _forget_host(root)


def versions(root: Path) -> dict[str, str]:
    """The packages that are installed in `root`, with their versions."""
    done = run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n"],
        quiet=True,
        code=ExitCode.ARTIFACT,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def source_list(suite: str) -> str:
    """Lines of a sources.list for `suite`, at the addresses of the host's own Debian sources.

    Empty if the host has none that can be reached by http; mmdebstrap then takes Debian's own.
    """
    fields = "$(LABEL) $(REPO_URI)"
    done = run(
        ["apt-get", "indextargets", "--format", fields, "Origin: Debian", "Created-By: Packages"],
        quiet=True,
        code=ExitCode.HOST,
    )
    mirrors: dict[str, str] = {}
    for line in done.stdout.splitlines():
        label, _, address = line.rpartition(" ")
        if address.startswith(("http://", "https://")):
            mirrors.setdefault(label, address)
    lines = []
    if main := mirrors.get("Debian"):
        lines += [f"deb {main} {suite} main", f"deb {main} {suite}-updates main"]
        if security := mirrors.get("Debian-Security"):
            lines.append(f"deb {security} {suite}-security main")
    return "".join(f"{line}\n" for line in _signed(lines))


def host_settings() -> str:
    """The host's apt settings for reaching a mirror (proxies, certificates, passwords), as apt.conf."""
    done = run(["apt-config", "dump"], quiet=True, code=ExitCode.HOST)
    kept = [line for line in done.stdout.splitlines() if _SETTINGS.match(line)]
    # A path from the root on is the host's: mmdebstrap runs apt outside of what it makes.
    kept += [
        f'Dir::Etc::netrc "{Path("/etc/apt/auth.conf")}";',
        f'Dir::Etc::netrcparts "{Path("/etc/apt/auth.conf.d")}";',
    ]
    return "".join(f"{line}\n" for line in kept)


def _signed(lines: list[str]) -> list[str]:
    keys = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keys.exists():
        return lines
    return [line.replace("deb ", f"deb [signed-by={keys}] ", 1) for line in lines]


def _forget_host(root: Path) -> None:
    """Remove what mmdebstrap and apt keep of the host and of this run."""
    for pattern in (
        "etc/apt/sources.list",
        "etc/apt/sources.list.d/*",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/resolv.conf",
        "etc/hostname",
        "etc/machine-id",
        "var/lib/dbus/machine-id",
        "var/lib/apt/lists/*",
        "var/cache/apt/*",
        "var/cache/debconf/*-old",
        "var/cache/ldconfig/*",
        "var/lib/dpkg/*-old",
        "var/log/*",
        "tmp/*",
        "var/tmp/*",
    ):
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
