"""Memory and idle CPU of the agents, and `lab measure footprint`: memory of every component of a lab."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lab import ssh
from lab.cluster import Cluster
from lab.measure.statistics import figure
from lab.measure.workload import inside
from lab.render import Rendered, RenderedNode

_UNIT = "underpass-agent"
_SERVICE = re.compile(r"/system\.slice/(?:[^\n]*/)?([\w@.\\-]+)\.service")
_POD = re.compile(r"pod([0-9a-f]{8}-[0-9a-f-]{27})")


def agents(lab: Rendered, seconds: int) -> list[dict[str, Any]]:
    """Resident memory of each agent, and the share of a core that it takes over `seconds` of rest."""
    time.sleep(3)  # what was just asked of it is not rest
    first = {node.name: _usage(lab, node) for node in lab.nodes}
    began = time.monotonic()
    time.sleep(seconds)
    last = {node.name: _usage(lab, node) for node in lab.nodes}
    rest = time.monotonic() - began
    cpu = [(last[name][0] - first[name][0]) / rest * 100 for name in last]
    return [
        figure("agent, resident memory", "MB", [usage[1] for usage in last.values()], at_most=120, share=1),
        figure("agent, idle CPU", "% of a core", cpu, at_most=1.0, share=1),
    ]


def _usage(lab: Rendered, node: RenderedNode) -> tuple[float, float]:
    """CPU seconds and resident MB of the node's agent."""
    script = (
        f"p=$(systemctl show -p MainPID --value {_UNIT}) && cat /proc/$p/stat && "
        "grep VmRSS /proc/$p/status && getconf CLK_TCK"
    )
    stat, resident, ticks = ssh.on_node(lab, node, ["sh", "-c", script]).stdout.splitlines()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / int(ticks), int(resident.split()[1]) * 1024 / 1e6


def footprint(lab: Rendered, cluster: Cluster) -> list[dict[str, Any]]:
    """MiB of each component on each node. Shared pages count in parts (PSS), so that the rows add up."""
    pods = json.loads(cluster.kubectl("get", "pods", "-A", "-o", "json").stdout)["items"]
    names = {
        pod["metadata"]["uid"]: f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in pods
    }
    rows: list[dict[str, Any]] = []
    for node in lab.nodes:
        done = ssh.on_node(lab, node, ["python3", "-"], stdin=inside("memory.py"), quiet=True)
        rows += components(node.name, json.loads(done.stdout), names)
    return rows


def components(
    node: str, processes: Iterable[Mapping[str, Any]], pods: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Sum processes (`name`, `kib`, `cgroup`) by what they belong to, the largest first.

    `pods` maps uid -> namespace/name.
    """
    total: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for process in processes:
        total[(*_belongs(process["cgroup"], pods), process["name"])].append(process["kib"])
    rows = [
        {
            "node": node,
            "kind": kind,
            "component": component,
            "process": name,
            "count": len(values),
            "mib": round(sum(values) / 1024, 1),
        }
        for (kind, component, name), values in total.items()
    ]
    return sorted(rows, key=lambda row: (-row["mib"], row["component"], row["process"]))


def _belongs(cgroup: str, pods: Mapping[str, str]) -> tuple[str, str]:
    """(`pod`, its name), (`unit`, its name) or (`other`, empty), by the process's own /proc/PID/cgroup."""
    if found := _POD.search(cgroup):
        return "pod", pods.get(found[1], f"a pod that is gone ({found[1][:8]})")
    if found := _SERVICE.search(cgroup):
        return "unit", found[1]
    return "other", ""
