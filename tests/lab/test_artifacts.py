"""The real artifacts of this release, and the real builds of them under faults. Needs root, but no lab."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import builds, images
from lab.builds import apt, image, nodepython
from lab.builds.contained import enclosed
from lab.errors import ExitCode
from lab.lock import lock
from lab.paths import ROOT
from lab.steps import Steps
from lab.store import Artifact, Store
from tests.lab.command import OF_THE_SUITE, LabCommand
from tests.lab.waiting import until

NO_NETWORK = ("unshare", "--net", "--")


class Cut(LabCommand):
    """The `lab` command where no registry answers: a network namespace without a route."""

    def argv(self, *arguments: str) -> list[str]:
        return [*NO_NETWORK, *super().argv(*arguments)]


@pytest.fixture(scope="module")
def artifacts() -> dict[str, Artifact]:
    """The artifacts of this release, built where they are not there yet."""
    return builds.build_all(Steps())


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[tuple[str, str], ...]]:
    """Settings for an empty cache, state and HOME, which are removed again."""
    home = tmp_path / "home"
    home.mkdir()
    yield (
        ("HOME", str(home)),
        ("UNDERPASS_CACHE", str(tmp_path / "cache")),
        ("UNDERPASS_STATE", str(tmp_path / "state")),
        ("GOCACHE", str(home / "gocache")),
        ("GOMODCACHE", str(home / "gomod")),
        ("PIP_NO_CACHE_DIR", "1"),
        # An answer that is known: how often to ask again is the user's setting.
        ("PIP_RETRIES", "0"),
        # Wheels at hand would make the registry needless.
        ("PIP_FIND_LINKS", ""),
    )
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)
    subprocess.run(["rm", "-rf", "--one-file-system", str(tmp_path)], check=True)


def lab(env: tuple[tuple[str, str], ...] = (), kind: type[LabCommand] = LabCommand) -> LabCommand:
    return kind(ROOT / "lab.yaml", env)


def cache(env: tuple[tuple[str, str], ...]) -> Path:
    return Path(dict(env)["UNDERPASS_CACHE"])


def in_image(artifacts: dict[str, Artifact], script: str, *mounts: tuple[Path, str]) -> str:
    """What the shell `script` prints in the node image, which is read-only; `mounts`: folder, place."""
    root = artifacts["node-image"].path / "rootfs"
    lines = [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}"]
    lines += [f"mount --bind {folder} {root}{place}" for folder, place in mounts]
    lines.append(f'exec chroot {root} /bin/sh -euc "$1"')
    argv = enclosed(["sh", "-euc", "\n".join(lines), "sh", script])
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_build_does_nothing_and_needs_no_registry(artifacts: dict[str, Artifact]) -> None:
    outcome = lab(kind=Cut).json("build")
    assert outcome["changed"] == 0
    assert {row["name"] for row in outcome["artifacts"]} == set(artifacts)
    words = lab(kind=Cut).check("build", "--progress=none").stdout
    assert "nothing to build" in words


def test_every_file_of_every_artifact_has_the_hash_of_its_manifest(artifacts: dict[str, Artifact]) -> None:
    assert set(artifacts) == set(builds.locate_for_labs())
    builds.verify(artifacts)


@pytest.mark.parametrize(
    ("artifact", "program", "arguments"),
    [
        ("kubernetes", "kube-apiserver", ["--version"]),
        ("kubernetes", "kube-controller-manager", ["--version"]),
        ("kubernetes", "kube-scheduler", ["--version"]),
        ("kubernetes", "kubelet", ["--version"]),
        ("kubernetes", "kubectl", ["version", "--client"]),
        ("etcd", "etcd", ["--version"]),
        ("etcd", "etcdctl", ["version"]),
        ("coredns", "coredns", ["-version"]),
        ("istio", "istioctl", ["version", "--short", "--remote=false"]),
        ("istio", "pilot-discovery", ["version", "--short"]),
        ("istio", "pilot-agent", ["version", "--short"]),
    ],
)
def test_programs_run_and_are_of_the_locked_version(
    artifacts: dict[str, Artifact], artifact: str, program: str, arguments: list[str]
) -> None:
    path = artifacts[artifact].path / "bin" / program
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    assert lock().versions[artifact].removeprefix("v") in done.stdout + done.stderr
    linked = subprocess.run(
        ["readelf", "--program-headers", path], capture_output=True, text=True, check=True
    )
    assert "INTERP" not in linked.stdout, "it must run on any node: nothing is linked at run time"


def test_the_node_image_has_its_packages_and_records_their_versions(artifacts: dict[str, Artifact]) -> None:
    recorded = artifacts["node-image"].manifest.facts["packages"]
    assert set(image.PACKAGES) <= set(recorded)
    assert recorded == apt.versions(artifacts["node-image"].path / "rootfs")
    assert in_image(artifacts, "dpkg --audit") == ""


def test_the_node_image_has_the_headers_that_bcc_compiles_against(artifacts: dict[str, Artifact]) -> None:
    unpacked = artifacts["node-image"].manifest.facts["unpacked"]
    assert sorted(name.rpartition("-")[2] for name in unpacked) == ["amd64", "common"]
    for name in unpacked:
        in_image(artifacts, f"test -d /usr/src/{name}/include && test -d /usr/src/{name}/arch/x86/include")
    assert in_image(artifacts, "python3 -c 'import bcc; print(bcc.BPF.__name__)'").strip() == "BPF"


def test_nothing_of_this_host_is_in_the_node_image(artifacts: dict[str, Artifact]) -> None:
    root = artifacts["node-image"].path / "rootfs"
    assert list(root.glob("etc/ssh/ssh_host_*")) == []
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not (root / "etc/hostname").exists()
    assert not (root / "etc/resolv.conf").is_symlink()
    lines = (root / "etc/resolv.conf").read_text() + (root / "etc/apt/sources.list").read_text()
    assert [line for line in lines.splitlines() if not line.startswith("#")] == []
    assert list(root.glob("etc/apt/sources.list.d/*")) == []
    hosts = {line.split()[-3].split("/")[2] for line in apt.source_list("trixie").splitlines()}
    assert hosts, "this host has no Debian mirror to look for"
    for folder in ("etc", "var"):
        for host in hosts:
            found = subprocess.run(
                ["grep", "--recursive", "--files-with-matches", "--fixed-strings", host, root / folder],
                capture_output=True,
                text=True,
                check=False,
            )
            assert found.stdout == ""


def test_nobody_gets_into_a_node_without_a_key(artifacts: dict[str, Artifact]) -> None:
    passwords = in_image(artifacts, "cut -d: -f1,2 /etc/shadow")
    assert [line for line in passwords.splitlines() if line.split(":")[1] not in ("*", "!*", "!")] == []
    key = "/etc/ssh/ssh_host_ed25519_key"
    settings = in_image(
        artifacts,
        f"mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run; mkdir /run/sshd; cp -r /etc/ssh /tmp/ssh; "
        f"mount --bind /tmp/ssh /etc/ssh; ssh-keygen -q -t ed25519 -N '' -f {key}; sshd -T",
    ).splitlines()
    assert "passwordauthentication no" in settings
    assert "kbdinteractiveauthentication no" in settings
    assert "permitrootlogin without-password" in settings
    assert f"hostkey {key}" in settings


def test_programs_with_set_user_id_bits_cannot_be_reached_by_way_of_the_store(
    artifacts: dict[str, Artifact],
) -> None:
    assert artifacts["node-image"].path.stat().st_mode & 0o077 == 0
    others = [artifact for name, artifact in artifacts.items() if name != "node-image"]
    for artifact in others:
        for path, entry in artifact.manifest.files.items():
            assert not entry["mode"] & 0o6000 or entry["type"] == "dir", f"{artifact.name}: {path}"


def test_the_nodes_python_packages_work_with_the_nodes_python(artifacts: dict[str, Artifact]) -> None:
    site = artifacts["node-python"].path / "site"
    modules = (
        "cryptography.x509, google.protobuf, grpc, kubernetes.client, prometheus_client, pyroute2, structlog"
    )
    told = in_image(
        artifacts,
        f"PYTHONPATH=/mnt python3 -c 'import sys, {modules}; print(sys.version_info[:2], grpc.__cached__)'",
        (site, "/mnt"),
    )
    assert told.startswith(str(tuple(int(part) for part in nodepython.PYTHON.split("."))))
    assert f"cpython-{nodepython.PYTHON.replace('.', '')}.pyc" in told
    first_lines = {path.read_bytes()[:2] for path in site.rglob("*") if path.parent.name == "bin"}
    assert b"#!" not in first_lines, "a command that names the Python of the host that built it"


def test_image_archives_carry_the_names_that_the_index_lists(artifacts: dict[str, Artifact]) -> None:
    folder = artifacts["images"].path
    index: dict[str, str] = json.loads((folder / "index.json").read_text())
    assert set(index) == {path.name for path in folder.glob("*.tar")}
    assert {file: images.names_in(folder / file) for file in index} == {
        file: [name] for file, name in index.items()
    }
    assert index["coredns.tar"].endswith(f":{lock().versions['coredns']}")
    assert index["toolbox.tar"] == f"underpass.local/toolbox:{lock().versions['toolbox']}"


@pytest.mark.parametrize(
    ("artifact", "registry"),
    [
        ("etcd", "the Go module registry"),
        ("node-image", "the Debian mirror"),
        ("controller-wheels", "the Python package registry"),
    ],
)
def test_a_registry_that_does_not_answer_is_told_and_leaves_nothing(
    elsewhere: tuple[tuple[str, str], ...], artifact: str, registry: str
) -> None:
    done = lab(elsewhere, Cut)("build", artifact, "--progress=none")
    assert done.returncode == ExitCode.ARTIFACT, done.stderr
    assert f"{registry} does not answer" in done.stderr
    assert "command: " in done.stderr and "what to do: " in done.stderr
    assert list((cache(elsewhere) / "tmp").iterdir()) == []
    assert list((cache(elsewhere) / "store").iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_built(elsewhere: tuple[tuple[str, str], ...]) -> None:
    room = cache(elsewhere)
    room.mkdir()
    script = f'mount -t tmpfs -o size=64M tmpfs {room}; exec "$@"'
    command = lab(elsewhere)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", script, "sh", *command.argv("build", "node-image")],
        env=command.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.HOST, done.stderr
    assert "not enough disk space for building node-image" in done.stderr
    assert "needed, 64 MiB free" in done.stderr


def test_builds_that_are_killed_or_run_at_once_end_in_one_sound_artifact(
    elsewhere: tuple[tuple[str, str], ...],
) -> None:
    """A real build killed in the middle of apt's work; then two at once: one builds, one waits."""
    store = Store(cache(elsewhere))
    command = lab(elsewhere)
    before = processes_below(store.root)
    assert before == {}
    killed = command.start("build", "node-image", "--progress=plain")
    until(lambda: list(store.tmp.glob("*/entry/rootfs/var/lib/dpkg/info/*")), "packages in the image", 240)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    until(lambda: not processes_below(store.root), "the end of all that the build started", 30)
    assert not any(str(store.root) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    assert len(list(store.tmp.iterdir())) == 1
    assert list(store.entries.iterdir()) == []

    both = [command.start("build", "node-image", "-o", "json", "--progress=plain") for _ in range(2)]
    told = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted(json.loads(out)["changed"] for out, _ in told) == [0, 1]
    assert sum("another build of node-image is running (process" in errors for _, errors in told) == 1
    assert list(store.tmp.iterdir()) == []
    command.check("build", "node-image", "--check")


def processes_below(folder: Path) -> dict[int, str]:
    """Processes that work on files below `folder`: by their root, their place, or their arguments."""
    found: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        try:
            words = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
            places = [str((process / link).readlink()) for link in ("root", "cwd")]
        except OSError:
            continue  # it has ended
        if any(str(folder) in text for text in (words, *places)):
            found[int(process.name)] = words
    return found


def test_ctrl_c_ends_a_build_and_leaves_nothing(elsewhere: tuple[tuple[str, str], ...]) -> None:
    store = Store(cache(elsewhere))
    process = lab(elsewhere).start("build", "node-image", "--progress=plain")
    until(lambda: list(store.tmp.glob("*/entry/rootfs/var/cache/apt/archives/*.deb")), "packages", 240)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, errors
    assert processes_below(store.root) == {}
    assert list(store.tmp.iterdir()) == []
    assert list(store.entries.iterdir()) == []


def test_a_damaged_artifact_is_found_told_and_built_again(elsewhere: tuple[tuple[str, str], ...]) -> None:
    """etcd, from the host's Go caches: the build itself is quick, the artifact is a real one."""
    warm = tuple(item for item in elsewhere if item[0] not in ("GOCACHE", "GOMODCACHE", "HOME"))
    command = lab(warm)
    made: dict[str, Any] = command.json("build", "etcd")["artifacts"][0]
    program = Path(made["path"]) / "bin" / "etcd"
    times = program.stat()
    with program.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    os.utime(program, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = command("build", "etcd", "--check", "--progress=none")
    assert done.returncode == ExitCode.ARTIFACT
    assert "artifact etcd is damaged" in done.stderr and "bin/etcd: sha256 is" in done.stderr
    again = command.check("build", "etcd", "--check", "--progress=plain")
    assert "was moved to" in again.stderr
    assert len(list((cache(warm) / "quarantine").iterdir())) == 1
    subprocess.run([program, "--version"], check=True, capture_output=True)
    assert command.check("build", "etcd", "--clean").returncode == 0
    assert list((cache(warm) / "quarantine").iterdir()) == []


def test_the_controllers_wheels_set_up_lab_without_a_registry(tmp_path: Path) -> None:
    """By the command that docs/artifacts.md gives for it, in a copy of this checkout."""
    wheels = builds.build_all(Steps(), {"controller-wheels"})["controller-wheels"].path
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("Makefile", ".ci", "requirements", "pyproject.toml", "README.md", "lab"):
        subprocess.run(["cp", "-r", ROOT / name, copy], check=True)
    (copy / wheels.name).symlink_to(wheels)
    page = (ROOT / "docs" / "artifacts.md").read_text()
    (command,) = re.findall(r"^    (UNDERPASS_WHEELS=.* make setup)$", page, re.M)
    mine = {name: value for name, value in os.environ.items() if name not in OF_THE_SUITE}
    subprocess.run(
        [*NO_NETWORK, "sh", "-ec", command], cwd=copy, env={**mine, "PYTHON": sys.executable}, check=True
    )
    told = subprocess.run(
        [copy / ".venv" / "bin" / "lab", "schema"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert json.loads(told.stdout)["title"] == "Underpass lab"
