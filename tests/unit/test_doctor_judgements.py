"""What the doctor concludes from what it saw: firewalls, ranges, memory, room, limits."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import doctor
from lab.doctor import firewall, host, memory, subnets
from lab.doctor.bpf import tries
from lab.doctor.bpf.syscall import RefusedError
from lab.doctor.disks import Want, room
from lab.doctor.finding import Finding, Probe, Seen, fail, ok
from lab.doctor.network import Addresses
from lab.doctor.subnets import Route
from lab.labfile import LabFile, parse
from lab.render import Rendered, render


def lab(id: str = "demo", **network: str) -> Rendered:
    data = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": id, "network": network}
    return render(LabFile.model_validate(data))


# Findings


def test_a_finding_is_plain_data() -> None:
    finding = Probe("it", "It", lambda: fail("seen", "why", "how")).finding()
    assert finding.to_dict() == {
        "id": "it",
        "title": "It",
        "status": "fail",
        "evidence": "seen",
        "cause": "why",
        "fix": "how",
    }


def test_a_fault_that_a_probe_did_not_expect_fails_it_and_no_other() -> None:
    def broken() -> Seen:
        raise OSError(errno.EPERM, "Operation not permitted")

    finding = Probe("it", "It", broken).finding()
    assert finding.status == "fail"
    assert "Operation not permitted" in finding.evidence
    assert finding.fix


def test_without_root_only_what_anyone_can_ask_is_asked_and_root_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def probe(name: str, *, root: bool) -> Probe:
        def run() -> Seen:
            asked.append(name)
            return ok("")

        return Probe(name, name, run, root=root)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    mine = [probe("for root", root=True), Probe("root", "Root", host.root, root=False)]
    monkeypatch.setattr(doctor, "probes", lambda _: [*mine, probe("for all", root=False)])
    findings = doctor.examine(None)
    assert asked == ["for all"]
    assert [(finding.id, finding.status) for finding in findings] == [("root", "fail"), ("for all", "ok")]
    assert "sudo" in findings[0].fix


def test_every_probe_has_a_name_of_its_own() -> None:
    probes = doctor.probes(lab())
    assert len({probe.id for probe in probes}) == len(probes)
    assert len({probe.title for probe in probes}) == len(probes)


# Firewalls

UFW = """\
*filter
:INPUT DROP [12:340]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [5:10]
:ufw-user-input - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
-A FORWARD -j DROP
COMMIT
"""

NFT = """\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		jump others
	}

	chain others {
		ip saddr 10.0.0.0/8 counter packets 3 bytes 180 drop
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
		ip daddr 1.2.3.4 reject
	}

	chain output {
		type filter hook output priority filter; policy accept;
	}
}
"""


def test_iptables_rules_that_could_drop_are_named_by_hook() -> None:
    found = [str(one) for one in firewall.in_iptables(UFW, {"input", "output"})]
    assert found == [
        "iptables filter INPUT: policy DROP",
        "iptables filter ufw-user-input: -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset",
    ]
    assert "iptables filter FORWARD: -j DROP" in map(str, firewall.in_iptables(UFW, {"forward"}))


def test_nft_rules_that_could_drop_are_named_by_hook() -> None:
    found = [str(one) for one in firewall.in_nft(NFT, {"input", "output"})]
    assert found == [
        "nft inet filter input: policy drop",
        "nft inet filter others: ip saddr 10.0.0.0/8 counter packets 3 bytes 180 drop",
    ]
    forward = [str(one) for one in firewall.in_nft(NFT, {"forward"})]
    assert "nft inet filter forward: policy drop" in forward
    assert "nft inet filter forward: ip daddr 1.2.3.4 reject" in forward


@given(st.text())
def test_no_output_of_a_firewall_tool_breaks_its_reader(text: str) -> None:
    firewall.in_nft(text, {"input"})
    firewall.in_iptables("\n".join(line for line in text.splitlines() if line[:1] not in ":-"), {"input"})


def test_many_suspects_are_shown_in_part() -> None:
    many = [firewall.Suspect("chain", str(number)) for number in range(9)]
    assert firewall.told(many).endswith("and 5 more")
    assert firewall.told([]) == ""


# Ranges


def test_the_probes_addresses_are_ones_that_no_node_has() -> None:
    smallest = lab(nodes="10.9.8.16/28")
    addresses = Addresses.of(smallest)
    mine = {addresses.host, *addresses.nodes}
    assert mine == {"10.9.8.30", "10.9.8.29", "10.9.8.28"}
    most_nodes = {str(IPv4Network("10.9.8.16/28")[2 + index]) for index in range(10)}
    assert not mine & (most_nodes | {smallest.gateway})


def test_a_range_that_is_free_is_well() -> None:
    routes = [Route(IPv4Network("192.168.1.0/24"), "eth0")]
    assert subnets.judge(lab(), routes, []).status == "ok"


def test_the_labs_own_link_is_no_conflict() -> None:
    mine = lab()
    routes = [
        Route(IPv4Network(mine.nodes_range), mine.uplink),
        Route(IPv4Network(f"{mine.gateway}/32"), mine.uplink),
        Route(IPv4Network(f"{mine.gateway}/32"), "updoc1234"),
    ]
    assert subnets.judge(mine, routes, []).status == "ok"


@pytest.mark.parametrize("taken", ["10.9.8.0/24", "10.9.8.128/25", "10.9.8.77/32"])
def test_a_route_into_the_nodes_range_fails(taken: str) -> None:
    found = subnets.judge(lab(nodes="10.9.8.0/24"), [Route(IPv4Network(taken), "wlan0")], [])
    assert found.status == "fail"
    assert f"{taken} by wlan0" in found.cause
    assert found.fix.endswith("network.nodes")


@pytest.mark.parametrize(
    ("there", "field"),
    [("10.0.0.0/8", "nodes"), ("10.244.3.0/24", "pods"), ("10.96.0.10/32", "services")],
)
def test_a_wider_route_or_one_into_pods_or_services_warns(there: str, field: str) -> None:
    found = subnets.judge(lab(nodes="10.9.8.0/24"), [Route(IPv4Network(there), "tun0")], [])
    assert found.status == "warn"
    assert found.fix.endswith(f"network.{field}")


def test_another_lab_in_the_same_range_fails() -> None:
    other = replace(lab("other"), nodes_range=lab().nodes_range)
    found = subnets.judge(lab(), [], [other])
    assert found.status == "fail"
    assert "lab other" in found.cause


def test_a_derived_nodes_range_inside_the_pods_range_fails() -> None:
    mine = lab(pods="10.128.0.0/10")
    found = subnets.judge(mine, [], [])
    assert found.status == "fail"
    assert "own ranges nodes" in found.cause


# Memory and room


@pytest.mark.parametrize(
    ("total", "free", "is_up", "status"),
    [
        (4000, 3000, False, "ok"),
        (4000, 900, False, "warn"),
        (4000, 900, True, "ok"),
        (900, 900, False, "fail"),
        (900, 10, True, "fail"),
    ],
)
def test_memory_is_judged_by_the_total_and_before_the_lab_is_up_by_what_is_free(
    total: int, free: int, is_up: bool, status: str
) -> None:
    assert memory.judge(total=total, free=free, takes=1000, is_up=is_up).status == status


@pytest.mark.parametrize(
    ("provider", "second", "mib"),
    [
        ("nspawn", "", 1000),
        ("vagrant", "", 3072 + 2048 + 2 * memory.EMULATOR_MIB),
        ("vagrant", ", memory: 4GiB", 3072 + 4096 + 2 * memory.EMULATOR_MIB),
    ],
)
def test_machines_take_the_memory_that_they_are_given(provider: str, second: str, mib: int) -> None:
    nodes = f"[{{name: a, roles: [control-plane]}}, {{name: b, roles: [worker]{second}}}]"
    parsed, faults = parse(
        f"apiVersion: underpass.dev/v1\nkind: Lab\nid: a\nprovider: {provider}\nnodes: {nodes}\n"
    )
    assert parsed, faults
    assert memory.taken(render(parsed)) == mib


def test_the_tightest_limit_of_our_own_control_groups_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text(f"{512 << 20}\n")
    (inner / "memory.max").write_text("max\n")
    assert memory._limits(tmp_path, "/a/b", "memory.max") == [512]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "status"), [(300, "ok"), (299, "fail")])
def test_wants_on_one_file_system_add_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, free << 20))
    wanted = [Want(tmp_path / "a" / "b", 100 << 20, "this"), Want(tmp_path / "c", 200 << 20, "that")]
    found = room(wanted)
    assert found.status == status
    if status == "fail":
        assert "lacks 1 MiB" in found.cause
        assert "100 MiB for this; 200 MiB for that" in found.cause


# Limits of the kernel


def test_more_inotify_instances_than_there_are_fail_with_the_setting_to_raise() -> None:
    found = host.inotify(nodes=100_000)
    assert found.status == "fail"
    assert "sysctl -w fs.inotify.max_user_" in found.fix


def test_key_quotas_are_read_for_the_user() -> None:
    text = "    0:    98 97/97 82/1000000 1484/25000000\n 1000:     1 1/1 3/200 41/20000\n"
    assert host._key_users(text, 0) == ((82, 1484), (1000000, 25000000))
    assert host._key_users(text, 1000) == ((3, 41), (200, 20000))


def refused(number: int, log: str = "") -> RefusedError:
    return RefusedError(number, log)


def test_bpf_that_is_wholly_forbidden_is_a_matter_of_rights() -> None:
    found = tries._judge("map types", [], {"hash": refused(errno.EPERM)}, {"hash"})
    assert found.status == "fail"
    assert "not permitted" in found.cause


def test_bpf_that_lacks_something_needed_is_a_matter_of_the_kernel() -> None:
    found = tries._judge("map types", ["hash"], {"ringbuf": refused(errno.EINVAL)}, {"hash", "ringbuf"})
    assert found.status == "fail"
    assert "ringbuf: EINVAL" in found.evidence
    assert "kernel" in found.fix


def test_bpf_that_lacks_comfort_is_a_warning() -> None:
    found = tries._judge("tracing programs", [], {"tp_btf": refused(errno.EINVAL)}, set())
    assert found.status == "warn"


def test_a_refusal_tells_the_verifiers_last_word() -> None:
    log = "0: (85) call unknown#9999\ninvalid func unknown#9999\nprocessed 1 insns (limit 1000000)\n"
    assert str(refused(errno.EINVAL, log)) == "EINVAL: invalid func unknown#9999"


def test_findings_compare_by_value() -> None:
    assert Finding("a", "A", "ok", "e") == Finding("a", "A", "ok", "e", "", "")
