"""What nodes do by scripts: keep kubelet to the node's size, end pods when the node goes down."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from lab.paths import ROOT

ROLES = ROOT / "playbooks/roles"
KEEP_TO_SIZE = ROLES / "kubelet/files/usr/local/lib/underpass/keep-to-size"
STOP_PODS = ROLES / "containerd/files/usr/local/lib/underpass/stop-pods"


def program(folder: Path, name: str, body: str) -> None:
    """A program of the system, in place of the real one."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def with_programs(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def reserved(folder: Path, cpus: str, memory_mib: str) -> dict[str, str]:
    """What kubelet is told to reserve on a machine of 4 CPUs."""
    program(folder / "bin", "getconf", "echo 4")
    (folder / "size").write_text(f"# a comment\ncpus={cpus}\nmemory_mib={memory_mib}\n")
    subprocess.run(
        [KEEP_TO_SIZE, folder / "size", folder / "kubelet.d"], env=with_programs(folder / "bin"), check=True
    )
    (file,) = (folder / "kubelet.d").iterdir()
    assert file.suffix == ".conf", "kubelet reads no other"
    document = yaml.safe_load(file.read_text())
    assert document["kind"] == "KubeletConfiguration"
    found: dict[str, str] = document.get("systemReserved", {})
    return found


def host_kib() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1])


@pytest.mark.parametrize(("cpus", "milli"), [("1.5", "2500m"), ("0.1", "3900m"), ("3", "1000m")])
def test_cpus_beyond_the_size_are_reserved(tmp_path: Path, cpus: str, milli: str) -> None:
    assert reserved(tmp_path, cpus, "") == {"cpu": milli}


def test_memory_beyond_the_size_is_reserved(tmp_path: Path) -> None:
    assert reserved(tmp_path, "", "512") == {"memory": f"{host_kib() - 512 * 1024}Ki"}


def test_a_node_without_a_size_or_as_large_as_its_machine_reserves_nothing(tmp_path: Path) -> None:
    assert reserved(tmp_path, "", "") == {}
    assert reserved(tmp_path, "4.0", str(host_kib() // 1024 + 1)) == {}
    assert reserved(tmp_path, "64", str(1 << 30)) == {}


@pytest.fixture
def deaf() -> subprocess.Popen[str]:
    """A process that ignores SIGTERM, as the first process of a container does without a handler."""
    return subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 60"], stdout=subprocess.PIPE, text=True)


def stop_pods(folder: Path, system: str, process: subprocess.Popen[str]) -> str:
    """Run it where `process` is the one container and the system is `system`; what it says."""
    assert process.stdout is not None
    process.stdout.readline()
    alive = f"[ -d /proc/{process.pid} ] && ! grep -q '^State:.Z' /proc/{process.pid}/status"
    listing = f"echo TASK PID STATUS; echo pause 1 STOPPED; if {alive}; then echo c {process.pid} RUNNING; fi"
    program(folder / "bin", "ctr", listing)
    program(folder / "bin", "systemctl", f"echo {system}")
    done = subprocess.run(
        [STOP_PODS, "1"], env=with_programs(folder / "bin"), capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_container_that_does_not_listen_is_killed_when_the_node_goes_down(
    tmp_path: Path, deaf: subprocess.Popen[str]
) -> None:
    assert "1 containers did not end within 1 s" in stop_pods(tmp_path, "stopping", deaf)
    assert deaf.wait(10) == -signal.SIGKILL


def test_a_container_that_listens_ends_by_itself(tmp_path: Path) -> None:
    polite = subprocess.Popen(["sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE, text=True)
    assert stop_pods(tmp_path, "stopping", polite) == ""
    assert polite.wait(10) == -signal.SIGTERM


def test_no_container_is_touched_while_the_node_stays_up(tmp_path: Path, deaf: subprocess.Popen[str]) -> None:
    assert stop_pods(tmp_path, "running", deaf) == ""
    assert deaf.poll() is None
    deaf.kill()
    deaf.wait(10)
