"""Area mesh: real Istio on our network: injection, identities, who may speak to whom, where requests go."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import Evidence, connect
from tests.lab.mesh import HTTP_PORT, Mesh, policy, route, service, strict
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.waiting import until
from tests.sizes import SIZES

OK, DENIED, UNAVAILABLE, NONE = "200", "403", "503", "000"


@pytest.fixture
def rules(mesh: Mesh) -> Iterator[Mesh]:
    """The mesh's pods; rules made by a test are gone after it."""
    yield mesh
    mesh.clear("authorizationpolicy,networkpolicy,virtualservice,destinationrule")
    mesh.cluster.kubectl("delete", "peerauthentication", "only", "-n", mesh.namespace, "--ignore-not-found")
    for server in ("near", "far"):
        mesh.becomes("client", f"http://{server}/get", OK)


def test_pods_get_a_sidecar_before_their_own_containers(mesh: Mesh, evidence: Evidence) -> None:
    """A pod of an injected namespace gets its iptables, then a sidecar, then its own containers"""
    spec = mesh.get("pod", "client")["spec"]
    first = [(c["name"], c.get("restartPolicy", "Never")) for c in spec["initContainers"]]
    evidence(first)
    assert first == [("istio-init", "Never"), ("istio-proxy", "Always")]
    assert [container["name"] for container in spec["containers"]] == ["server"]


def test_certificates_name_the_workload(mesh: Mesh, lab: Rendered, evidence: Evidence) -> None:
    """Each sidecar has a certificate of the mesh's CA with the SPIFFE name of its service account"""
    for name, account in (("client", "default"), ("near", "near"), ("far", "far")):
        names = mesh.certificate(name)["subject_alt_names"]
        evidence(names)
        assert names == [{"uri": f"spiffe://{lab.dns_domain}/ns/{mesh.namespace}/sa/{account}"}]


def test_the_server_is_told_who_called(mesh: Mesh, lab: Rendered, evidence: Evidence) -> None:
    """A request that came by mutual TLS tells the server the caller's SPIFFE name"""
    for server in ("near", "far"):
        headers = json.loads(mesh.ask("client", f"http://{server}/headers").stdout)["headers"]
        caller = headers["X-Forwarded-Client-Cert"][0]
        evidence(f"{server}: {caller.rpartition(';')[2]}")
        assert caller.endswith(f"URI=spiffe://{lab.dns_domain}/ns/{mesh.namespace}/sa/default")


def test_the_demo_namespace_is_ready_to_be_used(lab: Rendered, cluster: Cluster, evidence: Evidence) -> None:
    """Pods of the namespace demo get sidecars, and take nothing but mutual TLS, from the start"""
    if lab.istio_version is None:
        pytest.skip("the lab has no Istio")
    labels = json.loads(cluster.kubectl("get", "namespace", "demo", "-o", "json").stdout)["metadata"][
        "labels"
    ]
    assert labels["istio-injection"] == "enabled"
    found = cluster.kubectl("get", "peerauthentication", "-n", "demo", "-o", "json").stdout
    modes = [item["spec"]["mtls"]["mode"] for item in json.loads(found)["items"]]
    evidence(modes)
    assert modes == ["STRICT"]


def test_memory_of_each_sidecar_and_of_istiod_is_told(
    mesh: Mesh, command: LabCommand, evidence: Evidence
) -> None:
    """`lab measure footprint` tells the memory of istiod, and of Envoy and its agent in each sidecar"""
    rows = command.json("measure", "footprint")["components"]
    told = {(row["component"], row["process"]): row["mib"] for row in rows}
    istiod = [row["mib"] for row in rows if row["component"].startswith("istio-system/istiod-")]
    sidecars = {
        name: [told[f"{mesh.namespace}/{name}", program] for program in ("envoy", "pilot-agent")]
        for name in ("client", "near", "far", "raw")
    }
    evidence(f"istiod {sum(istiod):.0f} MiB; Envoy and agent {sidecars}")
    assert sum(istiod) > 20
    assert all(part > 5 for parts in sidecars.values() for part in parts)


def test_what_is_written_to_the_mesh_is_checked(mesh: Mesh, evidence: Evidence) -> None:
    """The API server asks istiod's webhook at its Service: a rule that makes no sense is refused"""
    broken = route("VirtualService", "broken", hosts=["near"], http=[{"route": []}])
    done = mesh.cluster.kubectl(
        "apply", "-n", mesh.namespace, "-f", "-", stdin=json.dumps(broken), ok=range(256)
    )
    evidence(done.stderr.strip()[-120:])
    assert done.status != 0 and "admission webhook" in done.stderr


@pytest.mark.parametrize("server", ["near", "far"])
def test_plain_text_is_refused_whoever_speaks_it(
    rules: Mesh, outside: Pods, lab: Rendered, server: str, evidence: Evidence
) -> None:
    """Under STRICT, plain text gets no answer: from a pod, from one in the node's network, from the node"""
    url = f"http://{rules.address(server)}:{HTTP_PORT}/get"

    def by_pod(name: str) -> str:
        done = outside.exec(name, ["curl", "-s", "-o", "/dev/null", "-m", "3", "-w", "%{http_code}", url])
        return done.stdout.strip()

    def by_node() -> str:
        ask = "curl -s -o /dev/null -m 3 -w '%%{http_code}' %s || true"
        return str(connect(lab, lab.nodes[0]).check_output(ask, url)).strip()

    seen = {"plain": by_pod("plain"), "host": by_pod("host"), "node": by_node()}
    evidence(seen)
    assert set(seen.values()) == {NONE}
    # The same three get through where Istio is told to let them: it is STRICT that refused.
    rules.apply(strict("PERMISSIVE", name="only", app=server))
    until(lambda: by_pod("plain") == OK, f"plain text reaches {server} where it is permitted")
    assert (by_pod("host"), by_node()) == (OK, OK)


def test_pods_with_sidecars_reach_pods_without(mesh: Mesh, outside: Pods, evidence: Evidence) -> None:
    """A pod with a sidecar reaches one that has none, in plain text"""
    answer = mesh.talk("client", outside.address("plain"))
    evidence(answer)
    assert answer.startswith("plain ")


def test_who_may_call_is_decided_by_principal(rules: Mesh, lab: Rendered, evidence: Evidence) -> None:
    """An AuthorizationPolicy that names one service account admits that one; the others get 403"""
    allowed = f"{lab.dns_domain}/ns/{rules.namespace}/sa/near"
    rules.apply(
        policy(
            "AuthorizationPolicy",
            "only-near",
            selector={"matchLabels": {"app": "far"}},
            action="ALLOW",
            rules=[{"from": [{"source": {"principals": [allowed]}}]}],
        )
    )
    rules.becomes("client", "http://far/get", DENIED)

    def refused() -> str | None:
        # A connection that was there before may be answered by the rules of before, until it is drained.
        answer = rules.ask("client", "http://far/get").stdout
        return answer if answer.startswith("RBAC: access denied") else None

    body = until(refused, "the server's sidecar says why")
    rules.apply(
        policy(
            "AuthorizationPolicy",
            "only-near",
            selector={"matchLabels": {"app": "far"}},
            action="ALLOW",
            rules=[{"from": [{"source": {"principals": [allowed.replace("/near", "/default")]}}]}],
        )
    )
    rules.becomes("client", "http://far/get", OK)
    evidence(body)


@pytest.mark.parametrize("server", ["near", "far"])
def test_network_policy_holds_below_the_mesh(rules: Mesh, server: str, evidence: Evidence) -> None:
    """A NetworkPolicy that closes a pod closes it to sidecars too, whatever the mesh allows"""
    rules.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "closed"},
            "spec": {"podSelector": {"matchLabels": {"app": server}}, "policyTypes": ["Ingress"]},
        }
    )
    url = f"http://{server}/get"
    seen = until(
        lambda: got if (got := rules.status("client", url, limit=3)) in (UNAVAILABLE, NONE) else None,
        f"{server} is closed",
    )
    evidence(seen)
    # Connections from before may answer by the rules of before for a while: the other is asked until it does.
    rules.becomes("client", f"http://{'far' if server == 'near' else 'near'}/get", OK)


def test_headless_services_pass_the_sidecar(rules: Mesh, evidence: Evidence) -> None:
    """A headless Service is reached through the sidecar, at each of its pods"""
    ports = [{"name": "http", "port": HTTP_PORT}]
    rules.apply(service("headless", {"split": "yes"}, clusterIP="None", ports=ports))
    url = f"http://headless:{HTTP_PORT}/hostname"
    rules.becomes("client", url, OK)
    seen: set[str] = set()

    def all_of_them() -> bool:
        seen.add(json.loads(rules.ask("client", url).stdout)["hostname"])
        return seen == {"near", "far"}

    until(all_of_them, "both pods behind the headless Service answer")
    evidence(sorted(seen))


def test_datagrams_and_dns_pass_beside_the_sidecar(mesh: Mesh, evidence: Evidence) -> None:
    """UDP to a pod and to a Service, and DNS by UDP and TCP, pass a pod with a sidecar"""
    ports = [{"name": "udp", "port": 80, "targetPort": SERVER_PORT, "protocol": "UDP"}]
    mesh.apply(service("datagrams", {"app": "raw"}, ports=ports))
    assert mesh.talk("client", mesh.address("raw"), proto="udp").startswith("raw ")
    answer = until(
        lambda: got if (got := mesh.talk("client", "datagrams", 80, "udp")).startswith("raw ") else None,
        "the Service for UDP answers",
    )
    names = [
        mesh.exec("client", ["dig", "+short", "+time=2", way, f"near.{mesh.namespace}.svc.cluster.local"])
        for way in ("+notcp", "+tcp")
    ]
    evidence(f"{answer}; {[done.stdout.strip() for done in names]}")
    assert {done.stdout.strip() for done in names} == {mesh.get("service", "near")["spec"]["clusterIP"]}


def test_a_server_that_speaks_first_is_reached(mesh: Mesh, evidence: Evidence) -> None:
    """TCP between sidecars carries a protocol in which the server speaks first, bytes unchanged"""
    ports = [{"name": "tcp", "port": SERVER_PORT}]
    mesh.apply(service("raw", {"app": "raw"}, ports=ports))
    answer = until(
        lambda: got if (got := mesh.talk("client", "raw")).startswith("raw ") else None,
        "the server behind its sidecar speaks",
    )
    evidence(answer)
    assert answer.startswith("raw ")


def test_probes_and_init_containers_work_under_strict(mesh: Mesh, evidence: Evidence) -> None:
    """Probes by HTTP and TCP work under STRICT, one that fails too; an init container may use the mesh"""
    call = f"curl -sSf --retry 20 --retry-delay 1 --retry-all-errors http://near.{mesh.namespace}/get"
    init = {"name": "call", "image": mesh.image, "imagePullPolicy": "Never", "command": ["sh", "-c", call]}
    first = mesh.get("pod", "near")["spec"]["nodeName"]
    mesh.run("late", first, initContainers=[init])
    try:
        mesh.ready(60)
        order = [status["name"] for status in mesh.get("pod", "late")["status"]["initContainerStatuses"]]
    finally:
        mesh.drop("late")
    wrong = {
        "name": "httpbin",
        "image": mesh.httpbin,
        "imagePullPolicy": "Never",
        "readinessProbe": mesh.probe("/status/500"),
    }

    def failed() -> str | None:
        events = mesh.cluster.kubectl(
            "get", "events", "-n", mesh.namespace, "-o", "jsonpath={.items[*].message}",
            "--field-selector=involvedObject.name=unready,reason=Unhealthy",
        ).stdout  # fmt: skip
        return events if "statuscode: 500" in events else None

    mesh.run("unready", first, containers=[wrong])
    try:
        evidence(until(failed, "the probe that fails is seen to fail")[-80:])
    finally:
        mesh.drop("unready")
    assert order == ["istio-init", "istio-proxy", "call"]


def test_requests_are_split_as_the_route_says(rules: Mesh, evidence: Evidence) -> None:
    """A VirtualService that gives one version a quarter of the requests does so, within chance"""
    rules.apply(service("split", {"split": "yes"}))
    subsets = [{"name": version, "labels": {"version": version}} for version in ("v1", "v2")]
    weights = [
        {"destination": {"host": "split", "subset": version}, "weight": weight}
        for version, weight in (("v1", 25), ("v2", 75))
    ]
    rules.apply(
        route("DestinationRule", "split", host="split", subsets=subsets),
        route("VirtualService", "split", hosts=["split"], http=[{"route": weights}]),
    )
    count = SIZES.mesh_split_requests

    def asked() -> Counter[str]:
        url = f"http://split/hostname?number=[1-{count}]"
        answers = rules.ask("client", url, limit=60).stdout
        return Counter(part.split('"')[3] for part in answers.split("}") if '"hostname"' in part)

    # Five standard deviations of a fair split on either side.
    spread = 5 * (count * 0.25 * 0.75) ** 0.5
    seen = until(
        lambda: got if abs((got := asked())["near"] - count / 4) <= spread else None,
        "a quarter of the requests goes to the first version",
        30,
    )
    evidence(dict(seen))
    assert seen.total() == count
