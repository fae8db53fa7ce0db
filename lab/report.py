"""`lab report`: one archive with what is needed to study a failure, secrets removed.

Every part is best effort: what cannot be had is noted in the archive instead of failing it.
"""

from __future__ import annotations

import io
import json
import platform
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lab import builds, paths, ssh
from lab.cluster import Cluster
from lab.errors import LabError
from lab.lock import lock
from lab.providers import provider
from lab.providers.base import NodeState
from lab.render import Rendered, RenderedNode
from lab.run import run

ON_NODE = {
    "journal.txt": ["journalctl", "--no-pager", "-n", "5000", "-o", "short-precise"],
    "units.txt": ["systemctl", "--no-pager", "--all", "list-units"],
    "failed.txt": ["systemctl", "--no-pager", "--failed", "status"],
    "network.txt": ["sh", "-c", "ip -d addr; ip route show table all; ip neigh; ss -tulpn; nft list ruleset"],
    "mounts.txt": ["findmnt", "--list"],
    "memory.txt": ["sh", "-c", "free -m; df -h; ps axo pid,ppid,stat,rss,etime,args --sort=-rss"],
    "containers.txt": [
        "sh",
        "-c",
        "ctr -n k8s.io containers ls; ctr -n k8s.io tasks ls; ctr -n k8s.io images ls",
    ],
    "bpf.txt": ["sh", "-c", "bpftool prog show; bpftool map show; bpftool cgroup tree; ls -lR /sys/fs/bpf"],
    "bpf-attached.txt": ["sh", "-c", "bpftool net show; bpftool cgroup tree; bpftool link show"],
    "kernel.txt": ["sh", "-c", "uname -a; dmesg | tail -n 300"],
    "versions.txt": ["sh", "-c", "containerd --version; runc --version; kubelet --version; dpkg-query -W"],
    # Flows are told as they happen: what passes in three seconds shows whether anything does.
    "flows.jsonl": ["underpass", "monitor", "--seconds", "3", "-o", "json"],
    **{
        f"underpass/{name}.json": ["underpass", *words, "-o", "json"]
        for name, words in {
            "status": ["status"],
            "endpoints": ["endpoints"],
            "identities": ["identities"],
            "services": ["services"],
            "policies": ["policy", "get"],
            "connections": ["explain"],
            "maps": ["maps"],
        }.items()
    },
}

ON_CLUSTER = {
    "nodes.yaml": ["get", "nodes", "-o", "yaml"],
    "objects.txt": ["get", "all,endpointslices,networkpolicies,leases,pv,pvc", "-A", "-o", "wide"],
    "pods.yaml": ["get", "pods", "-A", "-o", "yaml"],
    "events.txt": ["get", "events", "-A", "--sort-by=.lastTimestamp"],
    "describe-pods.txt": ["describe", "pods", "-A"],
    "readyz.txt": ["get", "--raw=/readyz?verbose"],
    "versions.txt": ["version"],
    "services.yaml": ["get", "services,endpointslices", "-A", "-o", "yaml"],
    "policies.yaml": ["get", "networkpolicies,ciliumnetworkpolicies,ciliumclusterwidenetworkpolicies", "-A",
                      "-o", "yaml"],
    "endpoints.yaml": ["get", "ciliumendpoints,ciliumidentities", "-A", "-o", "yaml"],
}  # fmt: skip

#: Asked by istioctl, where the lab has Istio.
ON_MESH = {
    "versions.txt": ["version"],
    "proxy-status.txt": ["proxy-status"],
}
#: The configuration of so many proxies at most; one is some megabytes.
MOST_PROXIES = 12

_SECRETS = (
    (re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.S), "[private key removed]"),
    (re.compile(r"\bLS0tLS1CRUdJTi[\w+/=]*"), "[PEM in base64 removed]"),
    (
        re.compile(
            r"""(?i)(name["']?: *["']?\w*(?:password|passwd|secret|token|credential|api_?key)\w*["']?,?\s*"""
            r"""["']?value["']?: *)(?:"[^"]*"|'[^']*'|[^\s,}]+)"""
        ),
        r"\1[removed]",
    ),
    (re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"), "[token removed]"),
    (re.compile(r"(?i)\b(authorization: *\w+|bearer) +\S{8,}"), r"\1 [removed]"),
    (
        re.compile(r"(?i)((?:client-key-data|password|secret|token) *[:=] *)[\"']?[^\s\"',}]{8,}"),
        r"\1[removed]",
    ),
)


def redact(text: str) -> str:
    """`text` without private keys, tokens and passwords."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def write(lab: Rendered, into: Path) -> Path:
    """Write the archive into the folder `into`; returns its path."""
    into.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"underpass-{lab.id}-{stamp}"
    archive = into / f"{name}.tar.gz"
    parts = [*_host(lab), *_logs(lab), *_cluster(lab), *_nodes(lab)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(_collected, [collect for _, collect in parts]))
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w:gz") as tar:
        for (path, _), text in zip(parts, texts, strict=True):
            data = redact(text).encode()
            info = tarfile.TarInfo(f"{name}/{path}")
            info.size = len(data)
            info.mode = 0o600
            tar.addfile(info, io.BytesIO(data))
    partial.chmod(0o600)
    partial.replace(archive)
    return archive.resolve()


Part = tuple[str, Callable[[], str]]


def _collected(collect: Callable[[], str]) -> str:
    try:
        return collect()
    except Exception as fault:
        return f"could not be collected: {type(fault).__name__}: {fault}\n"


def _host(lab: Rendered) -> Iterator[Part]:
    yield "host/kernel.txt", lambda: " ".join(platform.uname()) + "\n"
    yield "host/cpus-memory.txt", lambda: run(["sh", "-c", "nproc; free -m; df -h"]).stdout
    from lab import doctor  # slow to load, and needed here alone

    yield "host/doctor.json", lambda: json.dumps([f.to_dict() for f in doctor.examine(None)], indent=1)
    yield "host/network.txt", lambda: run(["sh", "-c", "ip addr; ip route; ip netns"]).stdout
    yield "host/versions.json", lambda: json.dumps(_versions(), indent=1)
    yield "host/artifacts.txt", lambda: "\n".join(a.path.name for a in builds.locate().values())
    yield "host/leftovers.txt", lambda: "\n".join(provider(lab).leftovers())


def _versions() -> dict[str, Any]:
    names = ("underpass", "ansible-core", "ansible-runner", "kubernetes", "pytest", "typer")
    packages = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), "packages": packages, "lock": lock().versions}


def _logs(lab: Rendered) -> Iterator[Part]:
    for name in ("lab.yaml", "lab.json", "inventory.yaml"):
        yield f"lab/{name}", (lab.folder / name).read_text
    folder = paths.state() / "logs" / lab.id
    for log in sorted(folder.glob("*/*.log")):

        def read(log: Path = log) -> str:
            return log.read_text(errors="replace")

        yield f"logs/{log.parent.name}/{log.name}", read


def _cluster(lab: Rendered) -> Iterator[Part]:
    """What the API server says, and by way of it the mesh."""
    found = builds.locate()
    if "kubernetes" not in found:
        return
    cluster = Cluster(lab, found["kubernetes"].path / "bin")
    silence = _silence(cluster)
    if silence is not None:
        yield "cluster/readyz.txt", lambda: silence
        return
    for name, arguments in ON_CLUSTER.items():

        def ask(arguments: list[str] = arguments) -> str:
            done = cluster.kubectl(*arguments, "--request-timeout=10s", ok=range(256), timeout=30)
            return done.stdout + done.stderr

        yield f"cluster/{name}", ask
    if lab.istio_version and "istio" in found:
        yield from _mesh(cluster, found["istio"].path / "bin" / "istioctl")


def _silence(cluster: Cluster) -> str | None:
    """What kubectl says where the API server does not answer: each further question would wait as long."""
    try:
        cluster.kubectl("get", "--raw=/version", "--request-timeout=10s", timeout=30)
    except LabError as fault:
        return "\n".join([str(fault), *fault.details, ""])
    return None


def _mesh(cluster: Cluster, program: Path) -> Iterator[Part]:
    """What istiod and the sidecars say: versions, who is in sync, the proxies' configuration."""
    istioctl = [str(program), f"--kubeconfig={cluster.kubeconfig}"]
    for name, arguments in ON_MESH.items():

        def ask(arguments: list[str] = arguments) -> str:
            done = run([*istioctl, *arguments], ok=range(256), timeout=60, quiet=True)
            return done.stdout + done.stderr

        yield f"mesh/{name}", ask
    for namespace, pod in _proxies(cluster)[:MOST_PROXIES]:

        def dump(namespace: str = namespace, pod: str = pod) -> str:
            words = ["proxy-config", "all", f"{pod}.{namespace}", "-o", "json"]
            done = run([*istioctl, *words], ok=range(256), timeout=60, quiet=True)
            return done.stdout + done.stderr

        yield f"mesh/proxies/{namespace}.{pod}.json", dump


def _proxies(cluster: Cluster) -> list[tuple[str, str]]:
    """The pods with a sidecar; none where the API server does not say."""
    try:
        done = cluster.kubectl("get", "pods", "-A", "-o", "json", "--request-timeout=10s", timeout=30)
    except LabError:
        return []
    return [
        (pod["metadata"]["namespace"], pod["metadata"]["name"])
        for pod in json.loads(done.stdout)["items"]
        if "sidecar.istio.io/status" in pod["metadata"].get("annotations", {})
    ]


def _nodes(lab: Rendered) -> Iterator[Part]:
    host = provider(lab)
    for node in lab.nodes:

        def console(node: RenderedNode = node) -> str:
            return host.console(node, 2000)

        yield f"nodes/{node.name}/console.txt", console
        if host.status(node) is not NodeState.RUNNING:
            continue
        for name, command in ON_NODE.items():

            def ask(node: RenderedNode = node, command: list[str] = command) -> str:
                done = ssh.on_node(lab, node, command, ok=range(256), timeout=30, quiet=True)
                return done.stdout + done.stderr

            yield f"nodes/{node.name}/{name}", ask
