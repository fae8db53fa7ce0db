"""A lab's keys: made once, private, mended where they are missing or wrong, and no more than that."""

from __future__ import annotations

import base64
import stat
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from lab import keys, pki
from lab.errors import LabError
from lab.labfile import parse
from lab.render import Rendered, render

TWO_NODES = "apiVersion: underpass.dev/v1\nkind: Lab\nid: keys\n"
ONE_NODE = TWO_NODES + "nodes:\n  - name: node-1\n    roles: [control-plane]\n"


def lab_of(text: str) -> Rendered:
    parsed, faults = parse(text)
    assert parsed is not None, faults
    return render(parsed)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rendered:
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    lab = lab_of(TWO_NODES)
    keys.ensure(lab)
    return lab


def contents(lab: Rendered) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in lab.folder.rglob("*") if path.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_second_time_changes_nothing(lab: Rendered) -> None:
    before = contents(lab)
    assert keys.ensure(lab) == 0
    assert contents(lab) == before


def test_everything_is_private(lab: Rendered) -> None:
    home = keys.folder(lab)
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((lab.folder / "kubeconfig").stat().st_mode) == 0o600


def test_open_modes_are_mended(lab: Rendered) -> None:
    home = keys.folder(lab)
    (home / "pki" / "ca.key").chmod(0o644)
    home.chmod(0o755)
    assert keys.ensure(lab) == 1
    assert stat.S_IMODE((home / "pki" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name",
    [
        "ssh",
        "ssh.pub",
        "known_hosts",
        "hosts/node-2/ssh_host_ed25519_key.pub",
        "pki/apiserver.crt",
        "pki/apiserver.key",
        "pki/service-accounts.pub",
        "pki/encryption.key",
        "nodes/node-2/kubelet-serving.key",
        "../kubeconfig",
    ],
)
def test_what_was_removed_is_made_again_and_nothing_else(lab: Rendered, name: str) -> None:
    before = contents(lab)
    gone = (keys.folder(lab) / name).resolve()
    gone.unlink()
    assert keys.ensure(lab) >= 1
    assert gone.exists()
    related = {gone, gone.with_suffix(".crt"), gone.with_suffix(".key"), gone.with_suffix(".pub")}
    changed = {path for path, data in contents(lab).items() if before[path] != data}
    assert changed <= related
    assert keys.ensure(lab) == 0


def test_a_broken_certificate_is_made_again(lab: Rendered) -> None:
    broken = keys.folder(lab) / "pki" / "scheduler.crt"
    broken.write_text("not a certificate")
    assert keys.ensure(lab) == 1
    assert "system:kube-scheduler" in certificate(broken).subject.rfc4514_string()


def test_a_new_authority_takes_all_that_it_signed_along(lab: Rendered) -> None:
    home = keys.folder(lab)
    before = contents(lab)
    (home / "pki" / "etcd-ca.key").unlink()
    keys.ensure(lab)
    changed = {path.name for path, data in contents(lab).items() if before[path] != data}
    stems = ("etcd-ca", "etcd-server", "etcd-peer", "apiserver-etcd-client")
    assert changed == {f"{stem}.{end}" for stem in stems for end in ("crt", "key")}
    assert keys.ensure(lab) == 0


def test_what_is_near_its_end_is_renewed_and_the_authorities_stay(lab: Rendered) -> None:
    home = keys.folder(lab)
    before = contents(lab)
    later = pki.utc_now() + pki.LIFE - pki.RENEW_BEFORE + timedelta(days=1)
    assert keys.ensure(lab, later) > 0
    after = contents(lab)
    for name in ("ca.crt", "etcd-ca.crt", "front-proxy-ca.crt", "service-accounts.key", "encryption.key"):
        assert after[home / "pki" / name] == before[home / "pki" / name]
    for name in ("pki/apiserver.crt", "nodes/node-1/kubelet-client.crt"):
        assert after[home / name] != before[home / name]
    assert keys.ensure(lab, later) == 0


def test_the_api_server_is_known_by_every_name_it_is_called_by(lab: Rendered) -> None:
    names = certificate(keys.folder(lab) / "pki" / "apiserver.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert set(names.value.get_values_for_type(x509.DNSName)) >= {
        "kubernetes",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{lab.dns_domain}",
        lab.control_plane.name,
        "localhost",
    }
    addresses = {str(address) for address in names.value.get_values_for_type(x509.IPAddress)}
    assert addresses == {lab.api_service, lab.control_plane.address, "127.0.0.1"}


def test_a_node_is_itself_and_nobody_else(lab: Rendered) -> None:
    for node in lab.nodes:
        client = certificate(keys.folder(lab) / "nodes" / node.name / "kubelet-client.crt")
        assert client.subject.rfc4514_string() == f"CN=system:node:{node.name},O=system:nodes"


def test_an_agent_is_its_node_and_one_of_the_agents(lab: Rendered) -> None:
    """So the API lets it do what a node may to its own, and what the agents' one role says."""
    for node in lab.nodes:
        client = certificate(keys.folder(lab) / "nodes" / node.name / "agent.crt")
        parts = client.subject.rfc4514_string().split(",")
        assert sorted(parts) == [f"CN=system:node:{node.name}", "O=system:nodes", "O=underpass:agents"]


def test_only_the_super_admin_is_beyond_the_cluster_s_rules(lab: Rendered) -> None:
    masters = {
        path.name
        for path in keys.folder(lab).rglob("*.crt")
        if "system:masters" in certificate(path).subject.rfc4514_string()
    }
    assert masters == {"super-admin.crt"}


def test_each_certificate_names_the_lab_in_its_issuer(lab: Rendered) -> None:
    for path in keys.folder(lab).rglob("*.crt"):
        assert f"underpass {lab.id} " in certificate(path).issuer.rfc4514_string()


def test_known_hosts_holds_every_node_by_name_and_address(lab: Rendered) -> None:
    lines = (keys.folder(lab) / "known_hosts").read_text().splitlines()
    assert len(lines) == len(lab.nodes)
    for node, line in zip(lab.nodes, lines, strict=True):
        hosts, kind, key = line.split()
        assert hosts == f"{node.name},{node.address}"
        private = keys.folder(lab) / "hosts" / node.name / "ssh_host_ed25519_key"
        public = serialization.load_ssh_private_key(private.read_bytes(), password=None).public_key()
        assert f"{kind} {key}".encode() == public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )


def test_the_kubeconfig_is_the_labs_own(lab: Rendered) -> None:
    config = yaml.safe_load((lab.folder / "kubeconfig").read_text())
    assert config["current-context"] == lab.context
    assert config["clusters"][0]["cluster"]["server"] == lab.api_url
    user = config["users"][0]["user"]
    subject = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"])).subject
    assert subject.rfc4514_string() == f"CN=underpass-admin,O={keys.ADMINS}"


def test_the_keys_of_a_node_that_left_are_removed(lab: Rendered) -> None:
    smaller = lab_of(ONE_NODE)
    assert keys.ensure(smaller) > 0
    left = [path.name for path in keys.folder(lab).rglob("node-*")]
    assert set(left) == {"node-1"}
    assert keys.ensure(smaller) == 0


def test_a_broken_encryption_key_is_not_replaced(lab: Rendered) -> None:
    file = keys.folder(lab) / "pki" / "encryption.key"
    file.write_text("short")
    with pytest.raises(LabError, match="encryption"):
        keys.ensure(lab)
    assert file.read_text() == "short"


def test_two_labs_share_no_key(lab: Rendered) -> None:
    other = lab_of(TWO_NODES.replace("id: keys", "id: other"))
    keys.ensure(other)
    ours = {path.read_bytes() for path in keys.folder(lab).rglob("*.key")}
    theirs = {path.read_bytes() for path in keys.folder(other).rglob("*.key")}
    assert ours.isdisjoint(theirs)
