"""All keys and certificates of a lab, made on the controller and never on a node.

They lie in `<home>/keys`, 0600 in folders of 0700. The authorities' own keys stay there: no node can
sign. Whatever is missing, broken, near its end or says something else than the lab file is made
anew; with an authority goes all that it signed.

    ssh, ssh.pub, known_hosts            root on every node
    hosts/NODE/ssh_host_ed25519_key      the node's own host key
    pki/NAME.crt, pki/NAME.key           authorities, control plane, administrators
    pki/service-accounts.key, .pub       signs the tokens of pods
    pki/encryption.key                   32 random bytes in base64: Secrets at rest
    nodes/NODE/NAME.crt, NAME.key        kubelet, as client of the API and as server; the agent
"""

from __future__ import annotations

import base64
import binascii
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import pki
from lab.errors import ExitCode, die
from lab.files import write_atomic
from lab.pki import Pair, Wanted
from lab.render import Rendered, RenderedNode
from lab.steps import current_step

#: May do everything; bound to cluster-admin by the cluster's own objects.
ADMINS = "underpass:admins"
#: The nodes' network agents; bound to one exact ClusterRole by the agent's own objects.
AGENTS = "underpass:agents"
#: The API server when it calls a kubelet; bound by the cluster's own objects, too.
API_SERVERS = "underpass:api-servers"

ENCRYPTION_KEY_BYTES = 32

_AUTHORITIES = {"ca": "kubernetes", "etcd-ca": "etcd", "front-proxy-ca": "front-proxy"}


def folder(lab: Rendered) -> Path:
    """Where the lab's keys are."""
    return lab.folder / "keys"


def ensure(lab: Rendered, now: datetime | None = None) -> int:
    """Make every key and certificate of the lab that is missing or no longer right.

    Returns how many were made, changed or removed: 0 on a lab whose keys are in order.
    """
    now = now or pki.utc_now()
    home = folder(lab)
    for place in (home, home / "pki", home / "hosts", home / "nodes"):
        _private_folder(place)
    changed = _ssh(lab, home)
    authorities: dict[str, Pair] = {}
    for name, purpose in _AUTHORITIES.items():
        wanted = Wanted(f"underpass {lab.id} {purpose}", authority=True)
        authorities[name], made = _certificate(home / "pki", name, wanted, None, now)
        changed += made
    for name, (signer, wanted) in control_plane_certificates(lab).items():
        changed += _certificate(home / "pki", name, wanted, authorities[signer], now)[1]
    for node in lab.nodes:
        place = _private_folder(home / "nodes" / node.name)
        for name, wanted in node_certificates(node).items():
            changed += _certificate(place, name, wanted, authorities["ca"], now)[1]
    changed += _service_accounts(home / "pki")
    changed += _encryption(home / "pki" / "encryption.key")
    changed += _forget_others(lab, home)
    return changed + _kubeconfig(lab, home)


def control_plane_certificates(lab: Rendered) -> dict[str, tuple[str, Wanted]]:
    """The certificates of the control plane and of administrators: name -> (authority, what it says)."""
    plane = lab.control_plane
    service = "kubernetes.default"
    api = Wanted(
        "kube-apiserver",
        names=(
            "kubernetes",
            service,
            f"{service}.svc",
            f"{service}.svc.{lab.dns_domain}",
            plane.name,
            "localhost",
        ),
        addresses=(lab.api_service, plane.address, "127.0.0.1"),
        server=True,
    )
    etcd = Wanted(
        "etcd", names=(plane.name, "localhost"), addresses=(plane.address, "127.0.0.1"), server=True
    )
    peer = Wanted("etcd-peer", names=etcd.names, addresses=etcd.addresses, server=True, client=True)
    return {
        "apiserver": ("ca", api),
        "apiserver-kubelet-client": ("ca", Wanted("kube-apiserver", (API_SERVERS,), client=True)),
        "apiserver-etcd-client": ("etcd-ca", Wanted("kube-apiserver", client=True)),
        "front-proxy-client": ("front-proxy-ca", Wanted("front-proxy-client", client=True)),
        "etcd-server": ("etcd-ca", etcd),
        "etcd-peer": ("etcd-ca", peer),
        "controller-manager": ("ca", _client_and_local_server("system:kube-controller-manager")),
        "scheduler": ("ca", _client_and_local_server("system:kube-scheduler")),
        "super-admin": ("ca", Wanted("underpass-super-admin", ("system:masters",), client=True)),
        "admin": ("ca", Wanted("underpass-admin", (ADMINS,), client=True)),
    }


def _client_and_local_server(user: str) -> Wanted:
    """A client of the API that also serves its own health and metrics on the loopback address."""
    return Wanted(user, names=("localhost",), addresses=("127.0.0.1",), server=True, client=True)


def node_certificates(node: RenderedNode) -> dict[str, Wanted]:
    """The certificates of one node: name -> what it says. All signed by the cluster's authority."""
    user = f"system:node:{node.name}"
    return {
        "agent": Wanted(user, ("system:nodes", AGENTS), client=True),
        "kubelet-client": Wanted(user, ("system:nodes",), client=True),
        "kubelet-serving": Wanted(
            user, ("system:nodes",), names=(node.name,), addresses=(node.address, "127.0.0.1"), server=True
        ),
    }


def kubeconfig(name: str, server: str, authority: bytes, pair: tuple[bytes, bytes]) -> str:
    """A kubeconfig whose cluster, user and context are all called `name`; `pair` is (certificate, key)."""

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    cluster = {"server": server, "certificate-authority-data": text(authority)}
    user = {"client-certificate-data": text(pair[0]), "client-key-data": text(pair[1])}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return yaml.safe_dump(document, sort_keys=False)


def _private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def _note(text: str) -> None:
    if step := current_step():
        step.write(f"# {text}\n")


def _certificate(
    place: Path, name: str, wanted: Wanted, signer: Pair | None, now: datetime
) -> tuple[Pair, int]:
    """The pair `name` in `place` as `wanted`, made anew where it is not; and whether it was (0 or 1)."""
    key_file, certificate_file = place / f"{name}.key", place / f"{name}.crt"
    reason: str | None
    try:
        pair = pki.pair_from_pem(key_file.read_bytes(), certificate_file.read_bytes())
        reason = pki.fault(pair, wanted, signer, now)
    except FileNotFoundError:
        reason = "it is not there"
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "it cannot be read"
    if reason:
        _note(f"making certificate {place.name}/{name}: {reason}")
        pair = pki.make(wanted, signer, now)
    # Always written: this also mends modes, and the key goes first so that a kill leaves a pair
    # that does not fit, which the next run sees.
    written = write_atomic(key_file, pki.key_to_pem(pair.key))
    written |= write_atomic(certificate_file, pki.certificate_to_pem(pair.certificate))
    return pair, int(written)


def _service_accounts(place: Path) -> int:
    file = place / "service-accounts.key"
    try:
        key = pki.key_from_pem(file.read_bytes())
    except (FileNotFoundError, ValueError, TypeError, UnsupportedAlgorithm):
        key = pki.new_key()
    written = write_atomic(file, pki.key_to_pem(key))
    written |= write_atomic(place / "service-accounts.pub", pki.public_to_pem(key))
    return int(written)


def _encryption(file: Path) -> int:
    """The key of Secrets at rest. One that is broken is never replaced: with it goes all that it locks."""
    try:
        text = file.read_text(encoding="ascii")
        usable = len(base64.b64decode(text, validate=True)) == ENCRYPTION_KEY_BYTES
    except FileNotFoundError:
        text = base64.b64encode(secrets.token_bytes(ENCRYPTION_KEY_BYTES)).decode()
        usable = True
    except (UnicodeDecodeError, binascii.Error):
        usable = False
    if not usable:
        die(
            f"{file} is not the key that it should be: {ENCRYPTION_KEY_BYTES} bytes in base64",
            hint="the control plane's node has it in /etc/kubernetes/encryption.yaml; if the lab's Secrets "
            "may be lost, `lab down` and `lab up` make it anew",
            code=ExitCode.PROVISION,
        )
    return int(write_atomic(file, text))


def _ssh(lab: Rendered, home: Path) -> int:
    """The key that logs in to every node, every node's host key, and the list of known hosts."""
    changed = _ssh_key(home / "ssh", f"underpass-{lab.id}")
    lines = []
    for node in lab.nodes:
        place = _private_folder(home / "hosts" / node.name)
        key = place / "ssh_host_ed25519_key"
        changed += _ssh_key(key, node.name)
        public = key.with_suffix(".pub").read_text(encoding="ascii").split()[:2]
        lines.append(f"{node.name},{node.address} {' '.join(public)}\n")
    return changed + write_atomic(home / "known_hosts", "".join(lines))


def _ssh_key(file: Path, comment: str) -> int:
    key: Ed25519PrivateKey | None = None
    try:
        private = file.read_bytes()
        there = serialization.load_ssh_private_key(private, password=None)
        key = there if isinstance(there, Ed25519PrivateKey) else None
    except (FileNotFoundError, ValueError, TypeError, UnsupportedAlgorithm):
        pass
    if key is None:
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    written = write_atomic(file, private)
    written |= write_atomic(file.with_name(f"{file.name}.pub"), public + f" {comment}\n".encode())
    return int(written)


def _forget_others(lab: Rendered, home: Path) -> int:
    """Remove the keys of nodes that the lab no longer has."""
    names = {node.name for node in lab.nodes}
    gone: list[Path] = [
        place
        for parent in (home / "hosts", home / "nodes")
        for place in parent.iterdir()
        if place.name not in names
    ]
    for place in gone:
        remove: Callable[[Path], None] = shutil.rmtree if place.is_dir() else Path.unlink
        remove(place)
    return len(gone)


def _kubeconfig(lab: Rendered, home: Path) -> int:
    """The administrator's kubeconfig, `<home>/kubeconfig`."""
    place = home / "pki"
    text = kubeconfig(
        lab.context,
        lab.api_url,
        (place / "ca.crt").read_bytes(),
        ((place / "admin.crt").read_bytes(), (place / "admin.key").read_bytes()),
    )
    return int(write_atomic(lab.folder / "kubeconfig", text))
