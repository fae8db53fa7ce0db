"""Cilium's resources take what Cilium's own examples say; what is not supported is named, never ignored."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.policies import SUPPORTED, UNSUPPORTED, document
from tests.lab.network.town import Town
from tests.lab.pods import Pods
from tests.lab.waiting import until

NAMESPACE = "shapes"
COLLECTIONS = {
    "CiliumNetworkPolicy": f"/apis/cilium.io/v2/namespaces/{NAMESPACE}/ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
}
ALL: dict[str, Any] = {**SUPPORTED, **{name: rule for name, (rule, _) in UNSUPPORTED.items()}}


@pytest.fixture(scope="module")
def shapes(cluster: Cluster, town: Town) -> Any:
    """A namespace without pods; the policies of the whole cluster select nothing else."""
    pods = Pods(cluster, NAMESPACE, "")
    pods.create()
    yield pods
    cluster.kubectl("delete", "ccnp", "-l", "made=shapes")
    pods.remove()


def documents() -> list[dict[str, Any]]:
    return [document(name, rule, NAMESPACE) for name, rule in ALL.items()]


def conditions(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """name -> the condition Valid, of all policies that have one."""
    done = cluster.kubectl("get", "cnp,ccnp", "-A", "-l", "made=shapes", "-o", "json")
    found = {}
    for item in json.loads(done.stdout)["items"]:
        for condition in item.get("status", {}).get("conditions", []):
            if condition["type"] == "Valid":
                found[item["metadata"]["name"]] = condition
    return found


def test_every_field_of_cilium_is_taken_by_strict_kubectl(shapes: Pods, evidence: Evidence) -> None:
    """kubectl with strict validation takes policies with every field that Cilium's examples use"""
    text = yaml.safe_dump_all(documents())
    done = shapes.cluster.kubectl("apply", "--validate=strict", "-n", NAMESPACE, "-f", "-", stdin=text)
    evidence(f"{len(done.stdout.splitlines())} policies")
    assert "warning" not in (done.stdout + done.stderr).lower()
    kept = json.loads(
        shapes.cluster.kubectl("get", "cnp,ccnp", "-A", "-l", "made=shapes", "-o", "json").stdout
    )
    there = {
        item["metadata"]["name"]: {k: item[k] for k in ("spec", "specs") if k in item}
        for item in kept["items"]
    }
    assert there == {
        d["metadata"]["name"]: {k: d[k] for k in ("spec", "specs") if k in d} for d in documents()
    }


def test_what_is_supported_is_valid_and_what_is_not_is_named_with_its_path(
    shapes: Pods, evidence: Evidence
) -> None:
    """Each policy's status says whether it is enforced as written, and if not, which field is at fault"""
    until(lambda: set(conditions(shapes.cluster)) >= set(ALL), "every policy has a status", 30)
    found = conditions(shapes.cluster)
    wrong = [f"{name}: {found[name]['message']}" for name in SUPPORTED if found[name]["status"] != "True"]
    for name, (_, path) in UNSUPPORTED.items():
        if found[name]["status"] != "False" or f"{path}:" not in found[name]["message"]:
            wrong.append(f"{name}: {found[name]}, wanted {path}")
    evidence(f"{len(SUPPORTED)} valid, {len(UNSUPPORTED)} not valid")
    assert wrong == []


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_told_by_an_event(shapes: Pods, name: str) -> None:
    """An event names the policy and the field's path"""
    path = UNSUPPORTED[name][1]

    def told() -> list[str]:
        done = shapes.cluster.kubectl(
            "get", "events", "-A", "-o", "json", f"--field-selector=involvedObject.name={name},type=Warning"
        )
        return [e["message"] for e in json.loads(done.stdout)["items"] if f"{path}:" in e["message"]]

    until(told, f"an event tells of {path}", 20)


def test_the_plain_api_takes_them_too(
    lab: Rendered, shapes: Pods, cluster: Cluster, evidence: Evidence
) -> None:
    """The API itself, asked to be strict about fields, takes each policy and warns of nothing"""
    connection = api(cluster)
    for one in documents():
        path = f"{COLLECTIONS[one['kind']]}?fieldValidation=Strict&dryRun=All"
        one["metadata"]["name"] += "-plain"
        connection.request("POST", path, json.dumps(one), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        assert (answer.status, answer.getheader("Warning")) == (201, None), text
        made = json.loads(text)
        assert {k: made[k] for k in ("spec", "specs") if k in made} == {
            k: one[k] for k in ("spec", "specs") if k in one
        }
    evidence(f"{len(ALL)} policies")


def api(cluster: Cluster) -> http.client.HTTPSConnection:
    """A connection with the kubeconfig's own certificate."""
    import base64
    import tempfile

    config = yaml.safe_load(cluster.kubeconfig.read_text())
    place, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    data = {
        key: base64.b64decode(place.get(key) or user.get(key))
        for key in ("certificate-authority-data", "client-certificate-data", "client-key-data")
    }
    context = ssl.create_default_context(cadata=data["certificate-authority-data"].decode())
    with tempfile.NamedTemporaryFile() as file:
        file.write(data["client-certificate-data"] + b"\n" + data["client-key-data"])
        file.flush()
        context.load_cert_chain(file.name)
    url = urlsplit(place["server"])
    assert url.hostname
    return http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=10)


CLOSES: dict[str, tuple[dict[str, Any], bool]] = {
    "an L7 rule closes its direction": (
        {
            "endpointSelector": {"matchLabels": {"app": "c"}},
            "ingress": [{"toPorts": [{"ports": [{"port": "8080"}], "rules": {"http": [{"method": "GET"}]}}]}],
        },
        True,
    ),
    "a selector that cannot be read closes nothing": (
        {
            "endpointSelector": {"matchExpressions": [{"key": "app", "operator": "Like", "values": ["c"]}]},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "nobody"}}]}],
        },
        False,
    ),
}


@pytest.mark.parametrize("what", CLOSES)
def test_what_is_not_enforced_as_written_fails_closed(
    policies: Town, what: str, cluster: Cluster, space: Callable[[str], Pods]
) -> None:
    """A field that is not supported closes what its policy selects; a selector without meaning nothing"""
    spec, closes = CLOSES[what]
    policies.spaces["red"].apply(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "odd", "labels": {"made": "shapes"}},
            "spec": spec,
        }
    )
    until(lambda: conditions(cluster).get("odd", {}).get("status") == "False", "the status says so", 20)
    target = ("tcp", policies.address["r4"], 8080)
    wanted = "ETIMEDOUT" if closes else f"r4 {policies.address['r0']}"
    until(lambda: policies.probe("r0", [target]) == [wanted], what, 10)
