"""Debian packages as files, from where the host itself gets its own: what nodes without a route install."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lab.builds import apt
from lab.builds.registry import asked
from lab.errors import ExitCode, die
from lab.run import run

_FIELD = re.compile(r"^(Package|Version): (.+)$", re.MULTILINE)


class Mirror:
    """The host's mirror for `suite`, asked by an apt that knows nothing of the host's own packages."""

    def __init__(self, suite: str, scratch: Path) -> None:
        self._suite = suite
        self._state = scratch / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (self._state / part).mkdir(parents=True)
        sources, status = self._state / "sources.list", self._state / "status"
        self.settings = self._state / "apt.conf"
        for file in (sources, self.settings):  # an address may carry a password
            file.touch(mode=0o600)
        status.touch()
        lines = apt.source_list(suite)
        if not lines:
            die("the host's apt has no Debian mirror that http reaches", code=ExitCode.HOST)
        sources.write_text(lines, encoding="utf-8")
        self.settings.write_text(
            f'{apt.host_settings()}Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::Lists "{self._state}/lists";\nDir::State::Status "{status}";\n'
            f'Dir::Cache "{self._state}/cache";\nAPT::Sandbox::User "root";\n'
            'APT::Install-Recommends "false";\n',
            encoding="utf-8",
        )
        self._run(["apt-get", "-qq", "update"])

    def download(self, packages: Sequence[str], folder: Path) -> None:
        """Fetch `packages`, and no more, into `folder`."""
        self._run(["apt-get", "-qq", "download", *packages], cwd=folder)

    def download_with_needs(self, packages: Sequence[str], folder: Path) -> None:
        """Fetch `packages` and all that they depend on into `folder`."""
        self._run(["apt-get", "-qq", "--yes", "--download-only", "install", *packages])
        for file in sorted((self._state / "cache/archives").glob("*.deb")):
            # An epoch's colon is written %3a, which apt would read as an address's.
            file.rename(folder / file.name.replace("%3a", "-"))

    def depends(self, package: str) -> str:
        """What `apt-cache depends` says of it."""
        return self._run(["apt-cache", "depends", package])

    def _run(self, argv: Sequence[str], cwd: Path | None = None) -> str:
        with asked("the Debian mirror", f"see that the host's mirror carries Debian {self._suite}"):
            env = {"APT_CONFIG": str(self.settings)}
            return run(argv, cwd=cwd, env=env, quiet=argv[0] == "apt-cache", code=ExitCode.ARTIFACT).stdout


def index(folder: Path) -> dict[str, str]:
    """Write `Packages`, by which apt takes the packages in `folder`; returns their versions by name."""
    versions = {}
    stanzas = []
    for file in sorted(folder.glob("*.deb")):
        fields = run(["dpkg-deb", "--field", file], quiet=True, code=ExitCode.ARTIFACT).stdout.strip()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        size = file.stat().st_size
        stanzas.append(f"{fields}\nFilename: ./{file.name}\nSize: {size}\nSHA256: {digest}\n")
        named = dict(_FIELD.findall(fields))
        versions[named["Package"]] = named["Version"]
    (folder / "Packages").write_text("\n".join(stanzas), encoding="utf-8")
    return versions
