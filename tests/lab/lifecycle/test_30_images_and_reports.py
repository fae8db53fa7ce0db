"""A user's image on all nodes; the kubeconfig; the report without secrets."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import yaml

from lab import builds, images
from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import connect

NAME = "example.org/of-mine:v1"
KNOCKING = "for i in {1..1200}; do echo >/dev/tcp/$KUBERNETES_SERVICE_HOST/443; sleep 0.5; done"


def _an_image(folder: Path) -> Path:
    """An archive of ours: the toolbox's image under a name of the user's."""
    index = json.loads((builds.locate()["images"].path / "index.json").read_text())
    source = next(file for file, name in index.items() if "pause" in name)
    target = folder / "of-mine.tar"
    with tarfile.open(builds.locate()["images"].path / source) as old, tarfile.open(target, "w") as new:
        for member in old.getmembers():
            data = old.extractfile(member)
            if member.name.removeprefix("./") == "index.json":
                assert data
                document = json.load(data)
                document["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": NAME}
                (folder / "index.json").write_text(json.dumps(document))
                new.add(folder / "index.json", "index.json")
            else:
                new.addfile(member, data)
    return target


def test_an_image_is_put_on_all_nodes(lab: Rendered, command: LabCommand, tmp_path: Path) -> None:
    archive = _an_image(tmp_path)
    loaded = command.json("image", "load", str(archive))
    assert [row["image"] for row in loaded] == [NAME]
    for node in lab.nodes:
        names = connect(lab, node).check_output("ctr -n k8s.io images ls -q").split()
        assert NAME in names
        connect(lab, node).check_output("ctr -n k8s.io images rm %s", NAME)


def test_the_kubeconfig_is_the_labs_own_and_merging_is_asked_for(
    lab: Rendered, command: LabCommand, tmp_path: Path
) -> None:
    own = Path(command.check("kubeconfig").stdout.strip())
    assert own.stat().st_mode & 0o777 == 0o600
    assert yaml.safe_load(own.read_text())["current-context"] == f"lab-{lab.id}"

    mine = tmp_path / "config"
    mine.write_text(
        yaml.safe_dump(
            {"kind": "Config", "contexts": [{"name": "work", "context": {}}], "current-context": "work"}
        )
    )
    before = mine.read_text()
    refused = command("kubeconfig", "--merge", str(mine), stdin="n\n")
    assert refused.returncode != 0
    assert mine.read_text() == before
    command.check("kubeconfig", "--merge", str(mine), stdin="y\n")
    merged = yaml.safe_load(mine.read_text())
    assert {entry["name"] for entry in merged["contexts"]} == {"work", f"lab-{lab.id}"}
    assert merged["current-context"] == "work"


def test_a_report_holds_what_is_needed_and_no_secret(
    lab: Rendered, command: LabCommand, tmp_path: Path
) -> None:
    secret = "dont-carry-me-out-4711"
    spoken = "nor-me-0815-in-an-environment"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "carrier"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "carrier",
                    "image": images.own()["toolbox"],
                    # A report looks on for some seconds, and is to see a flow.
                    "command": ["bash", "-c", KNOCKING],
                    "env": [{"name": "DB_PASSWORD", "value": spoken}],
                }
            ],
        },
    }
    command.check("kubectl", "create", "secret", "generic", "carried", f"--from-literal=key={secret}")
    try:
        command.check("kubectl", "apply", "-f", "-", stdin=json.dumps(pod))
        command.check("kubectl", "wait", "pod/carrier", "--for=condition=Ready", "--timeout=60s")
        archive = Path(command.json("report", "--into", str(tmp_path))["archive"])
    finally:
        command.check("kubectl", "delete", "secret/carried", "pod/carrier", "--ignore-not-found")
    assert archive.stat().st_mode & 0o777 == 0o600
    keys = [path.read_text().strip().splitlines() for path in (lab.folder / "keys").rglob("*.key")]
    bodies = ["".join(lines[1:-1] if len(lines) > 1 else lines) for lines in keys]
    assert bodies
    assert all(bodies)
    with tarfile.open(archive) as tar:
        parts = {
            member.name.partition("/")[2]: file.read().decode(errors="replace")
            for member in tar.getmembers()
            if (file := tar.extractfile(member))
        }
    names, text = list(parts), "\n".join(parts.values())
    assert "PRIVATE KEY-----\n" not in text
    flat = text.replace("\n", "")
    assert not [body for body in bodies if body in flat]
    assert "carrier" in text
    assert secret not in text
    assert spoken not in text
    for node in lab.nodes:
        assert f"nodes/{node.name}/journal.txt" in names
        assert f"nodes/{node.name}/console.txt" in names
        for what in ("status", "identities", "services", "maps"):
            assert json.loads(parts[f"nodes/{node.name}/underpass/{what}.json"])
        for what in ("endpoints", "policies", "connections"):  # there may be none on this node
            assert isinstance(json.loads(parts[f"nodes/{node.name}/underpass/{what}.json"]), list | dict)
    lines = [line for node in lab.nodes for line in parts[f"nodes/{node.name}/flows.jsonl"].splitlines()]
    assert lines and all("reason" in json.loads(line) for line in lines)
    endpoints = [json.loads(parts[f"nodes/{node.name}/underpass/endpoints.json"]) for node in lab.nodes]
    assert [row for rows in endpoints for row in rows if row["pod"] == "default/carrier"]
    assert json.loads(parts["host/versions.json"])["lock"]["kubernetes"] in parts["cluster/versions.txt"]
    assert "cluster/nodes.yaml" in names
    assert any(name.startswith("logs/") for name in names)


def test_verify_gives_a_line_a_promise_with_evidence(
    lab: Rendered, command: LabCommand, tmp_path: Path
) -> None:
    junit = tmp_path / "junit.xml"
    result = command.json("verify", "kernel", "--junit", str(junit))
    assert result["held"] is True
    assert result["promises"]
    assert all(promise["evidence"] for promise in result["promises"])
    assert "testcase" in junit.read_text()


def test_verify_fails_where_a_promise_does_not_hold(lab: Rendered, command: LabCommand) -> None:
    command.check("exec", lab.nodes[-1].name, "--", "systemctl", "stop", "kubelet")
    try:
        done = command("verify", "cluster", "-o", "json", "--progress=none")
        assert done.returncode == 10
        result = json.loads(done.stdout)
        assert result["held"] is False
        broken = [row for row in result["promises"] if row["result"] == "failed"]
        assert any("unit runs on every node" in row["promise"] for row in broken)
    finally:
        command.check("up")
