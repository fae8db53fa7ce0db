"""The disks that a lab hands to its machines: who they are, and the artifacts. Read only, made by mkfs.

Each is an ext4 file system with a label, attached as a cdrom, so that no snapshot holds it and no
guest can write it. All of it, and what libvirt keeps of the lab, is in `/var/lib/libvirt/underpass/ID`:
a place that QEMU may read whoever it runs as.

    underpass.json                 what the Vagrantfile reads
    identity-NODE.img              name, keys, addresses of a node
    store.img, store.json          the artifacts, and which they are; for VirtualBox, both end in `.iso`
    console-NODE.log               what the node wrote to its console
    started-NODE                   the artifacts that the node was started with
    pool/                          the machines' own disks, libvirt's
    dot/, home/                    what Vagrant keeps: of the lab, of boxes
"""

from __future__ import annotations

import ipaddress
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import yaml

from lab.builds.contained import enclosed
from lab.errors import ExitCode, die
from lab.files import write_atomic
from lab.providers import identity
from lab.render import Rendered, RenderedNode
from lab.run import run

TOP = Path("/var/lib/libvirt/underpass")
MIB = 1 << 20
#: Artifacts that no node reads: what nodes are made from, what other artifacts are made from.
_NOT_FOR_NODES = {
    "node-image",
    "controller-wheels",
    "vm-box",
    "vm-box-virtualbox",
    "cnitool",
    "coredns",
    "envoy",
    "measure-image",
    "samples",
    "test-programs",
}

_BIND = """
top=$1; shift
for source; do
    mkdir "$top/${source##*/}"
    mount --bind "$source" "$top/${source##*/}"
done
exec mkfs.ext4 -q -F -L UP-STORE -O ^has_journal -b 4096 -m 0 -E root_owner=0:0 -d "$top" "$IMAGE" "$SIZE"
"""


class Disks:
    """The disks of one lab."""

    def __init__(self, lab: Rendered) -> None:
        self.lab = lab
        self.top = TOP / lab.id
        self.pool = self.top / "pool"
        self.dot = self.top / "dot"
        self.home = self.top / "home"
        self.settings = self.dot / "underpass.json"
        # VirtualBox takes what is called `.img` for a floppy disk. What is in it is all the same to both.
        self._ending = ".iso" if lab.hypervisor == "virtualbox" else ".img"
        self.store = self.top / f"store{self._ending}"

    def identity(self, node: str) -> Path:
        return self.top / f"identity-{node}{self._ending}"

    def console(self, node: str) -> Path:
        return self.top / f"console-{node}.log"

    def make(self) -> int:
        """The folders; QEMU may go through them and list nothing."""
        changed = int(not self.top.exists())
        for folder, mode in ((TOP, 0o711), (self.top, 0o711), (self.pool, 0o711), (self.dot, 0o700)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        return changed

    def make_identity(self, node: RenderedNode) -> int:
        """The disk that makes a machine `node`; 1 if it was made anew."""
        files = {
            **{f"always/{path}": file for path, file in identity.always(self.lab, node).items()},
            **{f"always/{path}": (text.encode(), 0o644) for path, text in network(self.lab, node).items()},
            "once/etc/hosts": (identity.hosts_file(self.lab).encode(), 0o644),
        }
        stage = self.top / f".stage-{node.name}"
        shutil.rmtree(stage, ignore_errors=True)
        for path, (content, mode) in files.items():
            target = stage / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            target.touch(mode=0o600)
            target.write_bytes(content)
            target.chmod(mode)
        for folder in ("root", "root/.ssh"):
            (stage / "always" / folder).chmod(0o700)
        mark = self.top / f"identity-{node.name}.json"
        said = json.dumps({path: [content.hex(), mode] for path, (content, mode) in files.items()})
        if self.identity(node.name).exists() and not write_atomic(mark, said, 0o600):
            shutil.rmtree(stage)
            return 0
        write_atomic(mark, said, 0o600)
        image = self.identity(node.name)
        part = image.with_suffix(".part")
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        run(
            [
                *("mkfs.ext4", "-q", "-F", "-L", "UP-IDENTITY", "-O", "^has_journal", "-b", "4096"),
                *("-E", "root_owner=0:0", "-d", stage, part, "4m"),
            ],
            code=ExitCode.NODE,
        )
        part.replace(image)
        shutil.rmtree(stage)
        return 1

    def make_store(self, store: Path) -> int:
        """The disk with the lab's artifacts, out of the folder `store`; 1 if it was made anew."""
        names = sorted(artifacts(self.lab))
        mark = self.top / "store.json"
        if self.store.exists() and mark.exists() and json.loads(mark.read_bytes()) == names:
            return 0
        sources = [store / name for name in names]
        missing = [source.name for source in sources if not source.is_dir()]
        if missing:
            die(
                f"the artifacts of lab {self.lab.id} are not all there: {', '.join(missing)}",
                hint="`lab up` builds them",
                code=ExitCode.ARTIFACT,
            )
        size = sum(int(run(["du", "-sm", source]).stdout.split()[0]) for source in sources)
        stage = self.top / ".stage-store"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        part = self.top / "store.part"
        part.unlink(missing_ok=True)
        run(
            enclosed(["sh", "-e", "-c", _BIND, "bind", stage, *sources]),
            env={"IMAGE": str(part), "SIZE": f"{size + size // 10 + 32}m"},
            hint="the disk needs as much room as the artifacts: `df /var/lib/libvirt`",
            code=ExitCode.NODE,
        )
        part.chmod(0o644)
        part.replace(self.store)
        write_atomic(mark, json.dumps(names))
        shutil.rmtree(stage)
        return 1

    def started_with(self, node: str) -> str:
        """The artifacts that the node's last start found, as `store.json` had them."""
        try:
            return (self.top / f"started-{node}").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def offered(self) -> str:
        return (self.top / "store.json").read_text(encoding="utf-8")

    def note_start(self, node: str) -> None:
        write_atomic(self.top / f"started-{node}", self.offered())

    def forget(self, node: str) -> int:
        """Remove what is kept of a node beside its own disk."""
        found = [*self.top.glob(f"*-{node}.*"), self.top / f"started-{node}"]
        for path in found:
            path.unlink(missing_ok=True)
        return int(bool(found))

    def remove(self) -> int:
        if not self.top.exists():
            return 0
        run(["rm", "-rf", "--one-file-system", self.top], code=ExitCode.NODE)
        if TOP.is_dir() and not any(TOP.iterdir()):
            TOP.rmdir()
        return 1


def artifacts(lab: Rendered) -> set[str]:
    """The folders of the store that the lab's nodes read, by its inventory."""
    text = (lab.folder / "inventory.yaml").read_text(encoding="utf-8")
    variables = yaml.safe_load(text)["all"]["vars"]
    known: Mapping[str, str] = variables["underpass_artifacts"]
    wanted = set(variables["underpass_lab"]["image_artifacts"])
    left_out = _NOT_FOR_NODES | {name for name in known if name.endswith("images") and name not in wanted}
    if not lab.istio_version:
        left_out.add("istio")
    if not lab.box:
        left_out.add("node-packages")
    return {PurePosixPath(path).name for name, path in known.items() if name not in left_out}


def network(lab: Rendered, node: RenderedNode) -> dict[str, str]:
    """The node's own link: its static address, and no way out. Path -> content."""
    return {
        "etc/systemd/network/10-nodes.network": "# The lab's network: no default route, by intent.\n"
        f"[Match]\nMACAddress={node.mac}\n\n"
        f"[Network]\nAddress={node.address}/{lab.prefix_length}\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n",
        # Nobody answers there; a question to the outside is refused at once.
        "etc/resolv.conf": f"nameserver {lab.gateway}\n",
    }


def management_range(lab: Rendered) -> ipaddress.IPv4Network:
    """The network by which Vagrant finds its machines: the twin of the nodes', 64 further up."""
    nodes = ipaddress.IPv4Network(lab.nodes_range)
    digits = [int(lab.tag[:2], 16), int(lab.tag[2:4], 16)]
    twin = ipaddress.IPv4Network(f"10.{192 + digits[0] % 64}.{digits[1]}.0/24")
    return twin if not twin.overlaps(nodes) else ipaddress.IPv4Network("192.168.121.0/24")


def management_mac(node: RenderedNode) -> str:
    """The hardware address of the link to that network: the other one's, with the second byte set."""
    parts = node.mac.split(":")
    return ":".join(["52", *parts[1:]])
