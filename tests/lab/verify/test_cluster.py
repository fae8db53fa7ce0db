"""Area cluster: a real, healthy, closed Kubernetes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.lock import lock
from lab.render import API_PORT, Rendered, RenderedNode
from tests.lab.conftest import Evidence, connect

ON_EVERY_NODE = ("containerd", "kubelet")
ON_THE_CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
KUBELET_PORT = 10250


@pytest.mark.parametrize("unit", ON_EVERY_NODE)
def test_node_unit_runs(host: Any, unit: str, evidence: Evidence) -> None:
    """The unit runs on every node and is enabled at boot"""
    service = host.service(unit)
    evidence(f"{unit} since {host.check_output('systemctl show -P ActiveEnterTimestamp %s', unit)}")
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize("unit", ON_THE_CONTROL_PLANE)
def test_control_plane_unit_runs(control_plane: Any, unit: str, evidence: Evidence) -> None:
    """The unit runs on the control plane and is enabled at boot"""
    service = control_plane.service(unit)
    evidence(f"{unit} since {control_plane.check_output('systemctl show -P ActiveEnterTimestamp %s', unit)}")
    assert service.is_running
    assert service.is_enabled


def test_no_unit_has_failed(host: Any, evidence: Evidence) -> None:
    """No systemd unit on the node has failed"""
    failed = host.check_output("systemctl list-units --failed --plain --no-legend")
    evidence(failed or "none")
    assert not failed


def test_there_is_no_kube_proxy(host: Any, evidence: Evidence) -> None:
    """Nothing on the node runs kube-proxy"""
    found = host.run("pgrep -f kube-proxy -c").stdout.strip()
    evidence(f"{found} processes")
    assert found == "0"


def test_api_server_is_healthy(cluster: Cluster, evidence: Evidence) -> None:
    """The API server says that it is ready, etcd included"""
    health = cluster.health()
    evidence(health)
    assert health == "ok"


def test_versions_are_those_of_the_lock_file(cluster: Cluster, lab: Rendered, evidence: Evidence) -> None:
    """API server and kubelets are of the version that the lab file and the lock file name"""
    server = json.loads(cluster.kubectl("version", "-o", "json").stdout)["serverVersion"]["gitVersion"]
    kubelets = {node.version for node in cluster.nodes()}
    evidence(f"server {server}, kubelets {sorted(kubelets)}")
    assert server == lab.kubernetes_version == lock().versions["kubernetes"]
    assert kubelets == {server}


def test_every_node_is_registered(cluster: Cluster, lab: Rendered, evidence: Evidence) -> None:
    """Every node is registered, has a pod range of its own inside the lab's, and its kubelet answers"""
    nodes = cluster.nodes()
    evidence(", ".join(f"{node.name} {node.pod_range}" for node in nodes))
    assert {node.name for node in nodes} == {node.name for node in lab.nodes}
    ranges = [node.pod_range for node in nodes]
    assert all(ranges) and len(set(ranges)) == len(ranges)
    for node in nodes:
        assert cluster.kubectl("get", f"--raw=/api/v1/nodes/{node.name}/proxy/healthz").stdout == "ok"


def test_strangers_are_refused(host: Any, lab: Rendered, evidence: Evidence) -> None:
    """Without a certificate, neither the API server nor the kubelet gives anything away"""
    ports = {f"{lab.control_plane.address}:{API_PORT}/api": "", f"127.0.0.1:{KUBELET_PORT}/pods": ""}
    for target in ports:
        ports[target] = host.check_output("curl -sk -o /dev/null -w %%{http_code} https://%s", target)
    evidence(ports)
    assert set(ports.values()) == {"401"}


def test_kubelet_has_no_open_port(host: Any, evidence: Evidence) -> None:
    """The kubelet's read-only port is off"""
    sockets = host.check_output("ss -ltnH")
    evidence(f"{len(sockets.splitlines())} listening sockets, none on 10255")
    assert not re.search(r":10255\b", sockets)


def test_etcd_asks_for_a_certificate(control_plane: Any, lab: Rendered, evidence: Evidence) -> None:
    """etcd refuses a client without a certificate of the lab's etcd authority"""
    done = control_plane.run("curl -sk https://127.0.0.1:2379/version")
    evidence(f"curl's status {done.rc}")
    assert done.rc != 0


def test_secrets_are_encrypted_at_rest(cluster: Cluster, control_plane: Any, evidence: Evidence) -> None:
    """A Secret's value is not found in etcd's files, its encrypted form is in etcd"""
    value = "a-value-that-must-not-be-on-the-disk"
    name = "verify-encryption"
    cluster.kubectl("create", "secret", "generic", name, f"--from-literal=key={value}", "-n", "default")
    try:
        found = control_plane.run("grep -rqa %s /var/lib/etcd", value)
        raw = control_plane.check_output(
            "etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/etc/kubernetes/pki/etcd/ca.crt "
            "--cert=/etc/kubernetes/pki/apiserver-etcd-client.crt "
            "--key=/etc/kubernetes/pki/apiserver-etcd-client.key "
            f"get /registry/secrets/default/{name} --print-value-only | head -c 24"
        )
        evidence(raw)
        assert found.rc == 1
        assert raw.startswith("k8s:enc:")
    finally:
        cluster.kubectl("delete", "secret", name, "-n", "default")


def test_requests_are_audited(cluster: Cluster, control_plane: Any, evidence: Evidence) -> None:
    """The API server writes an audit log, which no one but root reads and which holds no Secret"""
    log = control_plane.file("/var/log/kubernetes/audit.log")
    evidence(f"{log.size} bytes, mode {log.mode:o}")
    assert log.size > 0
    assert log.mode == 0o600
    last = json.loads(control_plane.check_output("tail -n 1 /var/log/kubernetes/audit.log"))
    assert last["kind"] == "Event"


def test_private_keys_are_private(host: Any, evidence: Evidence) -> None:
    """Private keys and credentials on the node are readable by root alone"""
    listing = host.check_output(
        "find /etc/kubernetes /etc/etcd -name '*.key' -o -name '*.kubeconfig' -o -name 'encryption*' "
        "2>/dev/null | xargs -r stat -c '%a %U %n'"
    ).splitlines()
    evidence(f"{len(listing)} files")
    assert listing
    assert [line for line in listing if not line.startswith(("600 root", "400 root"))] == []


def test_certificates_are_the_labs_own(host: Any, lab: Rendered, evidence: Evidence) -> None:
    """Each certificate on the node was issued by one of the lab's authorities and is valid for 7 more days"""
    paths = host.check_output("find /etc/kubernetes /etc/etcd -name '*.crt' 2>/dev/null; true").split()
    assert paths
    for path in paths:
        issuer = host.check_output("openssl x509 -noout -issuer -checkend 604800 -in %s", path)
        assert lab.id in issuer, f"{path}: {issuer}"
        assert "will not expire" in issuer, f"{path}: {issuer}"
    evidence(f"{len(paths)} certificates")


def test_a_node_cannot_act_for_another(lab: Rendered, node: RenderedNode, evidence: Evidence) -> None:
    """With its own credential, a node may change its own Node object and no other node's"""
    host = connect(lab, node)
    others = [other.name for other in lab.nodes if other != node]
    if not others:
        pytest.skip("the lab has one node")
    base = "kubectl --kubeconfig=/etc/kubernetes/kubelet.kubeconfig label --dry-run=server --overwrite node"
    own = host.run(f"{base} {node.name} underpass.dev/verify=1")
    other = host.run(f"{base} {others[0]} underpass.dev/verify=1")
    evidence(other.stderr.strip()[-160:])
    assert own.rc == 0, own.stderr
    assert other.rc != 0
    assert "forbidden" in other.stderr.lower()


def test_a_node_reads_no_secret_of_others(host: Any, evidence: Evidence) -> None:
    """With its own credential, a node cannot list the cluster's Secrets"""
    done = host.run("kubectl --kubeconfig=/etc/kubernetes/kubelet.kubeconfig get secrets -A")
    evidence(done.stderr.strip()[-160:])
    assert done.rc != 0
    assert "forbidden" in done.stderr.lower()
