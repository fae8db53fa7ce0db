"""What a machine carries that a lab could leave behind: mounts, links, namespaces, cgroups, processes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from lab.render import Rendered


def seen() -> dict[str, set[str]]:
    """Everything of the host that a lab touches, by kind."""
    return {
        "mounts": _mounts(),
        "links": _links(),
        "namespaces": {path.name for path in Path("/run/netns").glob("*")},
        "cgroups": _cgroups(),
        "processes": _processes(),
        "run": _tree(Path("/run/underpass")),
        "forwarding": {Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()},
        "routes": set(
            subprocess.run(["ip", "-4", "route"], capture_output=True, text=True).stdout.splitlines()
        ),
        "rules": set(_firewall().splitlines()),
    }


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, list[str]]:
    """What is there after that was not there before, or the other way round."""
    found = {kind: sorted(before[kind] ^ after[kind]) for kind in before}
    return {kind: lines for kind, lines in found.items() if lines}


def left_by(lab: Rendered, before: dict[str, set[str]]) -> list[str]:
    """What is different now from `before`, but for what other labs did on the host meanwhile."""
    found = difference(before, seen())
    lines = [f"{kind}: {line}" for kind, lines in found.items() for line in lines]
    others = re.compile(
        rf"underpass-(?!{lab.id}\b)|\bup(?!{lab.tag})[0-9a-f]{{8}}"
        rf"|/run/underpass/(?!{lab.tag})[0-9a-f]{{8}}-|/underpass/labs/(?!{lab.id}/)"
        # libvirt's, which serves labs of virtual machines: its daemons, their cables, its firewall.
        r"|/run/underpass/libvirt|^links: vnet\d+$"
    )
    return [line for line in lines if not others.search(line)]


def carrying_its_name(lab: Rendered, before: dict[str, set[str]]) -> list[str]:
    """As `left_by`, but of what carries the lab's name: libvirt's own chains stay."""
    mine = re.compile(rf"underpass-{re.escape(lab.id)}\b|\bup{lab.tag}|/{re.escape(lab.id)}(/|$)")
    found = difference(before, seen())
    lines = [f"{kind}: {line}" for kind, lines in found.items() if kind != "rules" for line in lines]
    return [line for line in lines if mine.search(line)]


def _mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _links() -> set[str]:
    done = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True)
    return {link["ifname"] for link in json.loads(done.stdout)}


def _cgroups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").rglob("*underpass*") if path.is_dir()}


def _processes() -> set[str]:
    """Processes that a lab could have started: by what they are called, with their arguments."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if "systemd-nspawn" in line or "underpass-" in line:
            found.add(line.strip()[:200])
    return found


def _tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")} if folder.exists() else set()


def _firewall() -> str:
    for tool in (["nft", "list", "ruleset"], ["iptables-save"]):
        try:
            rules = subprocess.run(tool, capture_output=True, text=True).stdout
            rules = re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]", "", rules)  # what passed is no rule
            return "\n".join(line for line in rules.splitlines() if "LIBVIRT" not in line)
        except FileNotFoundError:
            continue
    return ""
