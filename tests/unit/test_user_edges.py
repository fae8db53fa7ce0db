"""What touches a user's own things: kubeconfigs, images, locks, reports."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lab.busy import alone
from lab.errors import ExitCode, LabError
from lab.images import names_in
from lab.kubeconfig import merge
from lab.report import redact


def kubeconfig(name: str, server: str = "https://10.0.0.1:6443") -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": server}}],
            "users": [{"name": name, "user": {}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    )


def test_merging_keeps_what_was_there_and_its_current_context(tmp_path: Path) -> None:
    own, into = tmp_path / "own", tmp_path / "into"
    own.write_text(kubeconfig("lab-demo", "https://10.0.0.2:6443"))
    into.write_text(kubeconfig("work"))
    merge(own, into)
    merge(own, into)
    merged = yaml.safe_load(into.read_text())
    assert [entry["name"] for entry in merged["contexts"]] == ["work", "lab-demo"]
    assert merged["current-context"] == "work"
    assert into.stat().st_mode & 0o777 == 0o600


def test_merging_into_nothing_makes_the_file(tmp_path: Path) -> None:
    own, into = tmp_path / "own", tmp_path / "new" / "config"
    own.write_text(kubeconfig("lab-demo"))
    merge(own, into)
    assert yaml.safe_load(into.read_text())["current-context"] == "lab-demo"


@pytest.mark.parametrize("text", ["- a list", "kind: Pod", ": : :", "\x00"])
def test_what_is_no_kubeconfig_is_left_alone(tmp_path: Path, text: str) -> None:
    own, into = tmp_path / "own", tmp_path / "into"
    own.write_text(kubeconfig("lab-demo"))
    into.write_text(text)
    with pytest.raises(LabError):
        merge(own, into)
    assert into.read_text() == text


def archive(path: Path, **files: object) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_an_archives_names_are_read_in_both_forms(tmp_path: Path) -> None:
    docker = archive(tmp_path / "d.tar", manifest_json=[{"RepoTags": ["example.org/app:v1"]}])
    oci = archive(
        tmp_path / "o.tar",
        index_json={
            "manifests": [{"annotations": {"org.opencontainers.image.ref.name": "example.org/b:v2"}}]
        },
    )
    assert names_in(docker) == ["example.org/app:v1"]
    assert names_in(oci) == ["example.org/b:v2"]


def test_an_archive_without_a_name_or_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("not a tar")
    for path in (
        tmp_path / "text.tar",
        archive(tmp_path / "n.tar", index_json={"manifests": [{}]}),
        archive(tmp_path / "e.tar", other=1),
        archive(tmp_path / "l.tar", manifest_json=[{"RepoTags": None}]),
    ):
        with pytest.raises(LabError) as caught:
            names_in(path)
        assert caught.value.code is ExitCode.USAGE


def test_one_command_at_a_time_holds_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    hold = "from lab.busy import alone\nwith alone('x'):\n    print('held', flush=True)\n    input()\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LabError) as caught, alone("x"):
        pass
    assert caught.value.code is ExitCode.BUSY
    assert str(holder.pid) in caught.value.message
    with alone("y"):
        pass
    holder.kill()
    holder.communicate()
    with alone("x"):  # the kernel dropped a killed holder's lock
        pass


KEY = "-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n"


@given(st.text("ABCdef123+/=", min_size=40, max_size=200))
def test_private_keys_never_pass(body: str) -> None:
    assert body not in redact("before\n" + KEY.format(body) + "after")


@pytest.mark.parametrize(
    "secret", ["eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl", "hunter2-hunter2"]
)
@pytest.mark.parametrize(
    "text", ["Authorization: Bearer {}", "password={}", 'token: "{}"', "client-key-data: {}"]
)
def test_tokens_and_passwords_never_pass(text: str, secret: str) -> None:
    assert secret not in redact(text.format(secret))


def test_keys_in_base64_never_pass() -> None:
    encoded = base64.b64encode(KEY.format("MHcCAQEEIF3x" * 8).encode()).decode()
    assert encoded[20:60] not in redact(f"tls.key: {encoded}\n")


@pytest.mark.parametrize(
    "text",
    [
        "- name: DB_PASSWORD\n  value: {}\n",
        '{{"name":"API_TOKEN","value":"{}"}}',
        '{{\n "name": "aws_secret_key",\n "value": "{}"\n}}',
    ],
)
def test_what_an_environment_keeps_secret_never_passes(text: str) -> None:
    assert "hunter2" not in redact(text.format("hunter2"))
    assert "value" in redact(text.format("hunter2"))


def test_what_is_no_secret_stays() -> None:
    text = "Nov 23 kubelet[1]: tokens are fine; secret default/app mounted\n"
    assert redact(text) == text
    plain = "- name: HOSTNAME\n  value: web-1\n- name: PORT\n  value: 80\n"
    assert redact(plain) == plain
