"""Where a Service can be opened; when a lab counts as verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.errors import ExitCode, LabError
from lab.labfile import LabFile
from lab.render import Rendered, render
from lab.run import Completed
from lab.urls import urls
from lab.verify import ORDER, Promise, all_hold, area_of, areas, prove
from tests.lab.waiting import until

LAB = render(LabFile.model_validate({"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "opened"}))
FIRST, SECOND = (node.address for node in LAB.nodes)


class Answers(Cluster):
    """A cluster that has one Service, and pods of it on some nodes."""

    def __init__(self, lab: Rendered, spec: dict[str, Any], at: tuple[str, ...] = ()) -> None:
        self.lab, self._spec, self._at = lab, spec, at

    def kubectl(self, *arguments: str, **_: Any) -> Completed:
        if arguments[1] == "service":
            document: dict[str, Any] = {"spec": self._spec} if arguments[2] == "web" else {}
        else:
            ends = [{"nodeName": name, "conditions": {"ready": True}} for name in self._at]
            document = {"items": [{"endpoints": ends}]}
        return Completed((), 0, json.dumps(document) if document else "", "")


def opened(name: str = "shop/web", at: tuple[str, ...] = (), **spec: Any) -> list[str]:
    return urls(LAB, Answers(LAB, {"type": "NodePort", **spec}, at), name)


def test_a_node_port_is_opened_at_a_node() -> None:
    assert opened(ports=[{"port": 80, "nodePort": 30080}]) == [f"http://{FIRST}:30080/"]


def test_each_port_has_a_url_and_udp_has_none() -> None:
    ports = [
        {"port": 443, "nodePort": 30443, "protocol": "TCP"},
        {"port": 8443, "nodePort": 30444, "name": "https-admin"},
        {"port": 53, "nodePort": 30053, "protocol": "UDP"},
    ]
    assert opened(ports=ports) == [f"https://{FIRST}:30443/", f"https://{FIRST}:30444/"]


def test_a_service_of_local_pods_is_opened_where_one_runs() -> None:
    ports = [{"port": 80, "nodePort": 30080}]
    found = opened(ports=ports, at=(LAB.nodes[1].name,), externalTrafficPolicy="Local")
    assert found == [f"http://{SECOND}:30080/"]


@pytest.mark.parametrize(
    ("name", "spec", "code"),
    [
        ("web", {"ports": []}, ExitCode.USAGE),
        ("shop/none", {"ports": []}, ExitCode.NOT_THERE),
        ("shop/web", {"type": "ClusterIP", "ports": [{"port": 80}]}, ExitCode.NOT_THERE),
        (
            "shop/web",
            {"ports": [{"port": 80, "nodePort": 30080}], "externalTrafficPolicy": "Local"},
            ExitCode.NOT_THERE,
        ),
    ],
)
def test_what_cannot_be_opened_is_said(name: str, spec: dict[str, Any], code: ExitCode) -> None:
    with pytest.raises(LabError) as caught:
        opened(name, **spec)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("results", "held"),
    [
        (["passed", "passed"], True),
        (["passed", "skipped"], True),
        (["skipped"], False),
        ([], False),
        (["passed", "failed"], False),
        (["passed", "error"], False),
    ],
)
def test_a_lab_is_verified_when_all_that_it_promises_holds(results: list[str], held: bool) -> None:
    assert all_hold([Promise("kernel", "a promise", result, "") for result in results]) is held


def test_areas_are_told_from_the_ground_up() -> None:
    assert areas()[: len(ORDER)] == list(ORDER)


def test_an_area_may_have_several_files() -> None:
    assert {area_of(Path(f"test_{name}.py")) for name in ("mesh", "mesh_redirect")} == {"mesh"}


CHECKS = '''
import signal
import pytest

@pytest.fixture
def mark():
    (PLACE / "made").touch()
    yield
    (PLACE / "made").unlink()

def test_first(evidence):
    """The first holds."""
    evidence("seen")

def test_second(mark):
    """The second does not."""
    (PLACE / "begun").touch()
    assert signal.sigtimedwait([], 60) if (PLACE / "wait").exists() else False
'''


@pytest.fixture
def checks(tmp_path: Path) -> Path:
    file = tmp_path / "test_checks.py"
    file.write_text(f"from pathlib import Path\nPLACE = Path({str(tmp_path)!r})\n{CHECKS}")
    return file


def test_promises_are_told_one_by_one_with_how_many_there_are(checks: Path) -> None:
    told: list[tuple[str, int]] = []
    found = prove(
        LAB,
        [checks],
        plugins=["lab.guide.plugin"],
        told=lambda promise, of: told.append((promise.result, of)),
    )
    assert told == [("passed", 2), ("failed", 2)]
    assert [(promise.promise, promise.evidence) for promise in found[:1]] == [("The first holds", "seen")]


def test_an_interrupt_lets_promises_clear_up_and_keeps_what_was_found(checks: Path) -> None:
    (checks.parent / "wait").touch()
    told: list[Promise] = []

    def interrupt(promise: Promise, of: int) -> None:
        told.append(promise)
        until((checks.parent / "begun").exists, "the second has begun")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(LAB, [checks], plugins=["lab.guide.plugin"], told=interrupt)
    assert [promise.result for promise in told] == ["passed"]
    assert (checks.parent / "begun").exists()
    assert not (checks.parent / "made").exists()


def test_a_suite_that_cannot_run_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "test_broken.py"
    broken.write_text("import there_is_no_such_module\n")
    with pytest.raises(LabError, match="could not run"):
        prove(LAB, [broken], plugins=["lab.guide.plugin"])
