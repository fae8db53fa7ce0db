"""`lab doctor` against real trouble: made in throwaway namespaces, never in the host's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.doctor.bpf import programs as programs_of
from lab.doctor.bpf import tries
from lab.doctor.bpf.assembler import call
from lab.paths import ROOT
from tests.lab.hoststate import difference, seen
from tests.lab.waiting import until

LAB = """\
apiVersion: underpass.dev/v1
kind: Lab
id: doctored
network: {nodes: 10.199.7.0/28}
"""

#: Runs the chosen probes for the lab of $1 and prints their findings.
EXAMINE = """
import json, sys
from pathlib import Path
from lab import doctor
from lab.render import render_file
chosen = sys.argv[2:]
found = [p.finding() for p in doctor.probes(render_file(Path(sys.argv[1]))) if not chosen or p.id in chosen]
print(json.dumps([f.to_dict() for f in found]))
"""

Finding = dict[str, Any]


class Host:
    """A throwaway host: network and mount namespaces of a process that waits for us."""

    def __init__(self, lab_file: Path) -> None:
        self.lab_file = lab_file
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.holder.stdin and self.holder.stdout
        self.holder.stdin.write(b"\n")
        self.holder.stdin.flush()
        self.holder.stdout.readline()  # it has entered its namespaces
        self("ip link set lo up")

    def __call__(self, script: str) -> str:
        """Run a shell script in it."""
        done = subprocess.run(
            self.argv("sh", "-euc", script), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def argv(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--", *command]

    def start(
        self, *probes: str, under: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        words = [*under, sys.executable, "-c", EXAMINE, str(self.lab_file), *probes]
        return subprocess.Popen(
            self.argv(*words),
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def examine(
        self, probe: str, *, under: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> Finding:
        """What one probe finds here; `under` are words to put before the program."""
        process = self.start(probe, under=under, env=env)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        (finding,) = json.loads(out)
        assert (finding["cause"] == "") == (finding["status"] == "ok")
        assert (finding["fix"] == "") == (finding["status"] == "ok")
        return dict(finding)

    def end(self) -> None:
        assert self.holder.stdin
        self.holder.stdin.close()
        self.holder.wait(timeout=10)


@pytest.fixture
def lab_file(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(LAB)
    return path


@pytest.fixture
def host(lab_file: Path) -> Iterator[Host]:
    made = Host(lab_file)
    try:
        yield made
    finally:
        made.end()


# Packets


INPUT_DROPS = (
    "nft add table inet wall; nft 'add chain inet wall in { type filter hook input priority 0; %s }'; "
)


def test_packets_pass_on_a_host_without_a_firewall(host: Host) -> None:
    finding = host.examine("network")
    assert finding["status"] == "ok", finding
    assert finding["evidence"].count("passes") == 3


def test_a_firewall_that_drops_is_found_and_named_and_its_fix_works(host: Host) -> None:
    host(INPUT_DROPS % "policy drop;")
    finding = host.examine("network")
    assert finding["status"] == "fail"
    assert "host to node: no answer" in finding["evidence"]
    assert "node to node: passes" in finding["evidence"]
    assert "nft inet wall in: policy drop" in finding["cause"]
    assert 'iifname "up*" accept' in finding["fix"]
    host("nft insert rule inet wall in iifname 'up*' accept")
    assert host.examine("network")["status"] == "ok"


def test_a_rule_that_rejects_the_labs_range_is_found(host: Host) -> None:
    host((INPUT_DROPS % "") + "nft add rule inet wall in ip saddr 10.199.7.0/24 reject")
    finding = host.examine("network")
    assert finding["status"] == "fail"
    assert "ip saddr 10.199.7.0/24 reject" in finding["cause"]


def test_a_firewall_that_only_shuts_nodes_out_is_a_warning(host: Host) -> None:
    host((INPUT_DROPS % "policy drop;") + "nft add rule inet wall in ct state established accept")
    finding = host.examine("network")
    assert finding["status"] == "warn"
    assert "node to host: no answer" in finding["evidence"]
    assert "host to node: passes" in finding["evidence"]
    assert "nothing in it reaches servers on this host" in finding["cause"]


def test_dockers_forward_drop_does_not_touch_the_labs_packets(host: Host) -> None:
    chain = "{ type filter hook forward priority 0; policy drop; }"
    host(f"nft add table ip filter; nft 'add chain ip filter FORWARD {chain}'")
    host("test ! -e /proc/sys/net/bridge || echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")
    assert host.examine("network")["status"] == "ok"


def test_a_policy_route_that_takes_the_labs_packets_is_named(host: Host) -> None:
    host(
        "ip link add tun9 type bridge; ip link set tun9 up; "
        "ip route add default dev tun9 table 77; ip rule add pref 10 to 10.0.0.0/8 lookup 77"
    )
    finding = host.examine("network")
    assert finding["status"] == "fail"
    assert "tun9" in finding["cause"]
    assert "ip rule" in finding["fix"]


def test_two_doctors_at_once_do_not_disturb_each_other(host: Host) -> None:
    both = [host.start("network"), host.start("network")]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out)[0]["status"] == "ok", out


# Address ranges


def test_a_link_of_the_host_in_the_nodes_range_is_named(host: Host) -> None:
    host("ip link add eth9 type bridge; ip addr add 10.199.7.3/28 dev eth9; ip link set eth9 up")
    finding = host.examine("subnets")
    assert finding["status"] == "fail"
    assert "eth9" in finding["cause"]
    assert "network.nodes" in finding["fix"]


def test_a_wider_route_of_the_host_is_a_warning(host: Host) -> None:
    host("ip link add vpn9 type bridge; ip link set vpn9 up; ip route add 10.0.0.0/8 dev vpn9")
    finding = host.examine("subnets")
    assert finding["status"] == "warn"
    assert "10.0.0.0/8 by vpn9" in finding["cause"]


def test_a_host_without_routes_has_nothing_that_overlaps(host: Host) -> None:
    assert host.examine("subnets")["status"] == "ok"


# File systems


def test_a_disk_that_is_too_small_is_found_with_what_it_lacks(host: Host, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    host(f"mount -t tmpfs -o size=64m tmpfs {small}")
    finding = host.examine("disk", env={"UNDERPASS_STATE": str(small / "state")})
    assert finding["status"] == "fail"
    assert f"64 MiB free at {small}" in finding["evidence"]
    assert "the disks of 2 nodes" in finding["cause"]
    assert "UNDERPASS_STATE" in finding["fix"]


def test_a_file_system_that_cannot_carry_an_overlay_is_found(host: Host, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    host(f"cd {tmp_path}; mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged")
    finding = host.examine("overlayfs", env={"UNDERPASS_STATE": str(tmp_path / "merged" / "state")})
    assert finding["status"] == "fail"
    assert "mount overlay" in finding["evidence"]
    assert "UNDERPASS_STATE" in finding["fix"]
    assert host.examine("overlayfs")["status"] == "ok"


def test_read_only_control_groups_are_found(host: Host) -> None:
    mount = host("findmnt -n -t cgroup2 -o TARGET | head -n 1").strip()
    host(f"mount -o remount,bind,ro {mount}")
    finding = host.examine("cgroups")
    assert finding["status"] == "fail"
    assert "read-only" in finding["cause"].lower()


# Rights and limits


CAPLESS = ("setpriv", "--bounding-set=-sys_admin,-bpf,-net_admin,-perfmon")


@pytest.mark.parametrize("probe", ["bpf-programs", "bpf-maps", "bpf-helpers"])
def test_a_host_that_does_not_permit_bpf_is_told_so(host: Host, probe: str) -> None:
    finding = host.examine(probe, under=CAPLESS)
    assert finding["status"] == "fail"
    assert "EPERM" in finding["evidence"]


@pytest.mark.parametrize("probe", ["network", "vxlan", "overlayfs", "bpffs", "nspawn"])
def test_a_root_without_rights_is_told_what_was_refused(host: Host, probe: str) -> None:
    finding = host.examine(probe, under=CAPLESS)
    assert finding["status"] == "fail"
    assert "not permitted" in finding["evidence"].lower()


def test_what_the_kernel_does_not_have_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    invented = 9999
    monkeypatch.setattr(tries, "KINDS", (*programs_of.KINDS, programs_of.Kind("newer", invented)))
    monkeypatch.setattr(tries, "MAPS", (*programs_of.MAPS, programs_of.Map("newer", invented, 4, 4, 8)))
    helper = programs_of.Helper("newer", "sk_msg", lambda _: call(invented))
    monkeypatch.setattr(tries, "HELPERS", (*programs_of.HELPERS, helper))
    for probe, name in (
        (tries.programs, "newer: EINVAL"),
        (tries.maps, "newer: "),
        (tries.helpers, "newer in sk_msg: EINVAL: invalid func unknown#9999"),
    ):
        seen_there = probe()
        assert seen_there.status == "fail"
        assert name in seen_there.evidence
        assert ";" not in seen_there.evidence, "only what was invented is refused"
        assert "6.6" in seen_there.fix


def test_too_few_open_files_are_found(host: Host) -> None:
    few = ("setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=1000:1000")
    finding = host.examine("open-files", under=few)
    assert finding["status"] == "fail"
    assert finding["evidence"].startswith("1000 ")
    assert "ulimit" in finding["fix"]


# Programs


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with every program of the host, for a PATH that can lack one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).glob("*") if place else ():
            if not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return folder


def test_a_missing_program_is_found_with_its_package(host: Host, programs: Path) -> None:
    (programs / "systemd-nspawn").unlink()
    finding = host.examine("programs", env={"PATH": str(programs)})
    assert finding["status"] == "fail"
    assert "systemd-nspawn runs the nodes" in finding["cause"]
    assert "make setup" in finding["fix"]
    assert "systemd-container" in finding["fix"]


def test_a_program_that_does_not_run_is_found(host: Host, programs: Path) -> None:
    broken = programs / "ssh"
    broken.unlink()
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    finding = host.examine("programs", env={"PATH": str(programs)})
    assert finding["status"] == "fail"
    assert "ssh failed with status 3" in finding["evidence"]


def test_containers_start_here_and_leave_nothing(host: Host) -> None:
    assert host.examine("nspawn")["status"] == "ok"


# What a doctor leaves


def _traces(host: Host) -> dict[str, set[str]]:
    """What a doctor makes in its throwaway host, and on the file systems and control groups around it."""
    home = Path(os.environ.get("UNDERPASS_STATE") or "~/.local/state/underpass").expanduser()
    mine = f".{host.holder.pid}."
    return {
        "links": set(host("ip -o link | cut -d: -f2").split()),
        "folders": {str(path) for path in home.parent.glob("**/.underpass-doctor.*") if mine in path.name},
        "namespaces": set(host("ip netns list").split()),
    }


def test_a_doctor_leaves_nothing_behind(host: Host) -> None:
    before = _traces(host)
    process = host.start()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(json.loads(out)) > 20
    assert _traces(host) == before
    assert _doctors(process.pid) == []


def test_a_killed_doctor_leaves_no_link_and_the_next_removes_the_rest(host: Host, programs: Path) -> None:
    before = _traces(host)
    host(INPUT_DROPS % "policy drop;")  # the network's probe waits for answers
    (programs / "env").unlink()
    (programs / "env").write_text("#!/bin/sh\nexec sleep 60\n")  # the container's probe never ends
    (programs / "env").chmod(0o755)
    killed = [host.start("network"), host.start("nspawn", env={"PATH": str(programs)})]
    until(lambda: "updoc" in host("ip -o link"), "the probe's link is there", 20)
    until(lambda: len(_doctors(killed[1].pid)) > 1, "the probe has made a folder and groups", 20)
    for process in killed:
        process.kill()
        process.wait(timeout=10)
    until(lambda: _traces(host)["links"] == before["links"], "the links are gone", 20)
    assert host.examine("nspawn")["status"] == "ok"
    assert [left for process in killed for left in _doctors(process.pid)] == []
    for process in killed:
        process.communicate(timeout=10)


def _doctors(pid: int) -> list[str]:
    """Folders, groups and processes of the doctor that ran as `pid`."""
    places = [*Path("/sys/fs/cgroup").glob("*"), Path("/sys/fs/cgroup")]
    found = [str(path) for place in places for path in place.glob(f"underpass-doctor.{pid}.*")]
    for base in ("~/.local/state", "~/.cache"):
        found += map(str, Path(base).expanduser().glob(f"**/.underpass-doctor.{pid}.*"))
    return found


# On this host


def test_this_host_is_fit_for_the_suite_and_the_doctor_leaves_it_as_it_was(lab_file: Path) -> None:
    before = seen()
    done = subprocess.run(
        [sys.executable, "-m", "lab", "-f", str(lab_file), "doctor", "-o", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    findings = json.loads(done.stdout)
    assert [finding for finding in findings if finding["status"] == "fail"] == []
    assert done.returncode == 0
    made = [line for lines in difference(before, seen()).values() for line in lines]
    assert [line for line in made if "doc" in line] == []  # other labs come and go meanwhile


def test_the_doctor_exits_with_the_hosts_status_when_a_probe_fails(host: Host, lab_file: Path) -> None:
    host("ip link add eth9 type bridge; ip addr add 10.199.7.3/28 dev eth9; ip link set eth9 up")
    words = (sys.executable, "-m", "lab", "-f", str(lab_file), "doctor")
    done = subprocess.run(host.argv(*words), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "fail: Address ranges: the host reaches 10.199.7.0/28 by eth9" in done.stdout.replace("\n", " ")
    assert "fix: choose another range" in done.stdout


def test_nft_is_there_for_these_tests() -> None:
    assert shutil.which("nft"), "make setup installs nftables"
