"""The lab file: every fault at once, each with its line; what it means in names and addresses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lab import labfile, render
from lab.errors import ExitCode, LabError
from lab.paths import ROOT

HEAD = "apiVersion: underpass.dev/v1\nkind: Lab\nid: demo\n"


def faults(text: str) -> dict[str, tuple[int, str]]:
    lab, found = labfile.parse(text)
    assert lab is None
    return {fault.field: (fault.line, fault.message) for fault in found}


def test_the_default_lab_is_valid_and_fits_its_own_schema() -> None:
    text = (ROOT / "lab.yaml").read_text()
    lab, found = labfile.parse(text)
    assert found == []
    assert lab is not None and [node.name for node in lab.nodes] == ["node-1", "node-2"]
    jsonschema.validate(yaml.safe_load(text), labfile.LabFile.model_json_schema())


def test_all_faults_are_listed_with_their_lines() -> None:
    found = faults(
        "apiVersion: v2\nkind: Lab\nid: Demo\nprovider: cloud\nnodes:\n"
        "  - name: a\n    roles: [worker]\n    memory: 3\n"
    )
    assert {field: line for field, (line, _) in found.items()} == {
        "apiVersion": 1,
        "id": 3,
        "provider": 4,
        "nodes[0].memory": 8,
    }


def test_an_unknown_field_is_an_error_and_names_its_neighbour() -> None:
    line, message = faults(HEAD + "network:\n  podz: 10.0.0.0/16\n")["network.podz"]
    assert line == 5
    assert "did you mean pods?" in message


@pytest.mark.parametrize(
    ("text", "field", "word"),
    [
        ("kubernetes:\n  version: v1.2.3\n", "kubernetes.version", "lock file"),
        ("istio:\n  version: 1.2.3\n", "istio.version", "lock file"),
        ("istio:\n  sample: true\n", "istio.sample", "did you mean samples?"),
        ("redirect:\n  ports: [80]\n", "redirect.ports", "did you mean plain_ports?"),
        ("redirect:\n  plain_ports: [80, 0]\n", "redirect.plain_ports[1]", "greater than or equal to 1"),
        ("network:\n  pods: 10.96.0.0/16\n", "network.services", "overlaps"),
        ("network:\n  nodes: 10.0.0.0/16\n", "network.nodes", "/24 to /28"),
        ("network:\n  pods: 10.0.0.1/16\n", "network.pods", "host bits"),
        ("nodes:\n  - {name: a, roles: [worker]}\n", "nodes", "exactly one"),
        (
            "nodes:\n  - {name: a, roles: [control-plane], kernel: '6.12'}\n",
            "nodes[0].kernel",
            "share the host's",
        ),
        ("machines:\n  box: debian/trixie64\n", "machines.box", "containers are made from no box"),
        ("machines:\n  hypervisor: virtualbox\n", "machines.hypervisor", "containers run on the host"),
        ("provider: vagrant\nmachines:\n  hypervisor: xen\n", "machines.hypervisor", "'libvirt' or"),
        ("provider: vagrant\nmachines:\n  box: https://x/y\n", "machines.box", "is not a name"),
        ("provider: vagrant\nmachines:\n  boxx: a\n", "machines.boxx", "did you mean box?"),
        (
            "nodes:\n  - {name: a, roles: [control-plane]}\n  - {name: a, roles: [worker]}\n",
            "nodes",
            "two nodes are called a",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(text: str, field: str, word: str) -> None:
    assert word in faults(HEAD + text)[field][1]


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\t", "a: b: c", "id: &x [*x]", "\x00"])
def test_what_is_no_lab_file_is_a_fault_and_not_a_trace(text: str) -> None:
    lab, found = labfile.parse(text)
    assert lab is None
    assert found


def test_a_file_that_is_missing_or_not_text_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path / "binary", tmp_path):
        with pytest.raises(LabError) as caught:
            labfile.load(path)
        assert caught.value.code is ExitCode.LAB_FILE
        assert caught.value.hint


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,17}[a-z0-9])?", fullmatch=True), st.integers(1, 10))
def test_names_derive_from_the_id_and_fit_where_the_kernel_takes_them(lab_id: str, count: int) -> None:
    nodes = [{"name": f"n{i}", "roles": ["worker"]} for i in range(count)]
    nodes[0]["roles"] = ["control-plane"]
    lab = labfile.LabFile.model_validate(
        {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": lab_id, "nodes": nodes}
    )
    first, second = render.render(lab), render.render(lab)
    assert first == second
    links = [first.bridge, first.uplink, *(node.host_link for node in first.nodes)]
    assert all(len(link) <= 15 for link in links)
    assert len(set(links)) == len(links)
    addresses = [first.gateway, *(node.address for node in first.nodes)]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "istio: {enabled: true}\n",
        "istio: {enabled: false}\n",
        "redirect: {plain_ports: [3306, 80, 80]}\n",
    ],
)
def test_what_is_rendered_can_be_read_again(more: str) -> None:
    lab, _ = labfile.parse(HEAD + more)
    assert lab is not None
    rendered = render.render(lab)
    data = json.loads(json.dumps(render.to_json(rendered)))
    assert render.from_json(data) == rendered
    assert render.from_json({**data, "of_another_release": 1}) == rendered


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("{}", ["images"]),
        ("{enabled: false}", ["images"]),
        ("{enabled: false, samples: true}", ["images"]),
        ("{enabled: true}", ["images", "istio-images", "sample-images"]),
        ("{enabled: true, samples: false}", ["images", "istio-images"]),
    ],
)
def test_nodes_get_the_images_of_what_is_switched_on(text: str, images: list[str]) -> None:
    lab, _ = labfile.parse(f"{HEAD}istio: {text}\n")
    assert lab is not None
    told = render.inventory(render.render(lab), {})["all"]["vars"]["underpass_lab"]
    assert told["image_artifacts"] == images
    assert told["istio"] is ("istio-images" in images)


def test_a_lab_of_another_release_can_still_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that writes more, and one that did not write all of it yet: labs of both may be on the machine."""
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    lab, _ = labfile.parse(HEAD)
    assert lab is not None
    rendered = render.render(lab)
    render.write(rendered, HEAD, {})
    file = rendered.folder / "lab.json"
    data = json.loads(file.read_text())
    data["nodes"][0]["colour"] = data["weather"] = "not known here"
    file.write_text(json.dumps(data))
    assert render.read("demo") == rendered
    del data["dns_domain"], data["nodes"][0]["mac"]
    file.write_text(json.dumps(data))
    assert render.read("demo") == rendered


def test_no_lab_and_node_together_give_anothers_name() -> None:
    """Lab `a` with node `b-c` and lab `a-b` with node `c` are four different things."""
    seen: set[str] = set()
    for lab_id, node in (("a", "b-c"), ("a-b", "c"), ("a-b-c", "d")):
        text = HEAD.replace("demo", lab_id) + f"nodes:\n  - {{name: {node}, roles: [control-plane]}}\n"
        lab, _ = labfile.parse(text)
        assert lab is not None
        made = render.render(lab)
        names = {made.switch, made.nodes[0].machine}
        assert len(names) == 2
        assert not names & seen
        seen |= names


def test_two_ids_share_no_name() -> None:
    def names(lab_id: str) -> set[str]:
        lab, _ = labfile.parse(HEAD.replace("demo", lab_id))
        assert lab is not None
        made = render.render(lab)
        return {
            made.bridge, made.uplink, made.switch, made.cgroup, made.home, made.context, made.nodes_range,
            *(value for node in made.nodes for value in (node.machine, node.host_link, node.mac)),
        }  # fmt: skip

    assert not names("one") & names("two")


@pytest.mark.parametrize(
    ("text", "enabled", "ports"),
    [
        ("", True, []),
        ("redirect: {enabled: false}\n", False, []),
        ("redirect: {plain_ports: [9092, 80, 9092]}\n", True, [80, 9092]),
    ],
)
def test_nodes_are_told_what_is_to_be_accelerated(text: str, enabled: bool, ports: list[int]) -> None:
    lab, _ = labfile.parse(HEAD + text)
    assert lab is not None
    told = render.inventory(render.render(lab), {})["all"]["vars"]["underpass_lab"]
    assert (told["redirect"], told["plain_ports"]) == (enabled, ports)
