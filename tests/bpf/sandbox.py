"""Where the BPF tests run: a private mount namespace with the node image, and nodes made of namespaces.

The loader runs as it does on a node, inside the node image (BCC is there), by chroot in a mount namespace
of its own. The tests run outside, with the controller's Python, and reach the pinned maps and programs
through /proc/PID/root. When the holder process ends, mounts, namespaces and everything pinned are gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

from datapath import attach, libbpf, tables
from datapath.maps import Maps, open_maps
from datapath.programs import pin_of
from lab import paths
from tests.bpf.namespaces import Namespace

POD_RANGE = ipaddress.IPv4Network("10.244.0.0/16")
SERVICE_RANGE = ipaddress.IPv4Network("10.96.0.0/16")
GATEWAY = ipaddress.IPv4Address("169.254.1.1")
CGROUP_ROOTS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))

_HOLDER = """
set -e
base=$1 image=$2 project=$3 site=$4
mount -t tmpfs -o mode=0700 underpass-bpf $base
mkdir $base/upper $base/work $base/root
mount -t overlay underpass-bpf -o lowerdir=$image,upperdir=$base/upper,workdir=$base/work $base/root
mount -t proc proc $base/root/proc
mount --rbind /sys $base/root/sys
mount --rbind /dev $base/root/dev
mkdir -p $base/root/opt/tests/datapath $base/root/opt/tests/pyroute2
mount --bind -o ro $project/datapath $base/root/opt/tests/datapath
mount --bind -o ro $site $base/root/opt/tests/pyroute2
mount -t bpf bpf $base/root/sys/fs/bpf
echo ready
exec cat
"""


def node_image() -> Path:
    """The root file system of a node: `UNDERPASS_NODE_IMAGE`, or the newest one in the artifact store."""
    given = os.environ.get("UNDERPASS_NODE_IMAGE")
    if given:
        return Path(given)
    found = sorted(
        (paths.cache() / "store").glob("node-image-*/rootfs"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise RuntimeError(
            "no node image in the artifact store: run `lab build`, or set UNDERPASS_NODE_IMAGE"
        )
    return found[-1]


def _cgroup_root() -> Path:
    for root in CGROUP_ROOTS:
        if (root / "cgroup.controllers").exists():
            return root
    raise RuntimeError("no cgroup v2 hierarchy is mounted")


class Sandbox:
    """The private mounts, and a cgroup for sockets. Use as a context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sandbox:
        base = Path(tempfile.mkdtemp(prefix="underpass-bpf-"))
        self._stack.callback(base.rmdir)
        spec = util.find_spec("pyroute2")
        assert spec and spec.origin
        project = Path(__file__).parent.parent.parent
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLDER, "holder"]
        self._holder = subprocess.Popen(
            [*command, base, node_image(), project, Path(spec.origin).parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stack.callback(self._end_holder)
        assert self._holder.stdout
        if self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("the sandbox's mounts failed")
        self.root = Path(f"/proc/{self._holder.pid}/root{base}/root")
        self._base = base
        self.cgroup = _cgroup_root() / base.name
        self.cgroup.mkdir()
        self._stack.callback(self._remove_cgroups)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end_holder(self) -> None:
        assert self._holder.stdin
        self._holder.stdin.close()
        self._holder.wait(10)

    def _remove_cgroups(self) -> None:
        for folder in sorted(self.cgroup.glob("**/"), reverse=True):
            folder.rmdir()

    def run(
        self, namespace: Namespace, *command: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the node image and a node's network namespace."""
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "chroot", f"{self._base}/root"]
        with namespace.entered():
            done = subprocess.run(
                [*enter, "env", "PYTHONPATH=/opt/tests", "PYTHONDONTWRITEBYTECODE=1", *command],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        if check and done.returncode:
            raise RuntimeError(f"{command} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done


class Node:
    """A node: a network namespace with one device (`eth0`), and its own pinned maps and programs."""

    def __init__(self, sandbox: Sandbox, name: str, number: int) -> None:
        self.sandbox = sandbox
        self.name = name
        self.number = number
        self.address = ipaddress.IPv4Address(f"192.168.77.{number}")
        self.pod_range = ipaddress.IPv4Network(f"10.244.{number}.0/24")
        self.router = ipaddress.IPv4Address(f"10.244.{number}.1")
        self.namespace = Namespace.make()
        self.cgroup = sandbox.cgroup / name
        self.cgroup.mkdir()
        self.inner_pins = Path("/sys/fs/bpf") / name
        self.pins = sandbox.root / str(self.inner_pins).lstrip("/")
        self._config = sandbox.root / "run" / f"{name}.json"

    def write_config(self, **more: Any) -> None:
        """The loader's configuration file, with changes."""
        content = {
            "node_address": str(self.address),
            "devices": ["eth0"],
            "pod_range": str(POD_RANGE),
            "service_range": str(SERVICE_RANGE),
            "cgroup": str(self.cgroup),
            "pins": str(self.inner_pins),
            "state": f"/run/{self.name}/datapath.json",
            **more,
        }
        self._config.write_text(json.dumps(content))

    def loader(self, verb: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the loader as the node would."""
        return self.sandbox.run(
            self.namespace,
            "python3",
            "-m",
            "datapath.loader",
            verb,
            "--config",
            f"/run/{self._config.name}",
            *options,
            check=check,
        )

    def up(self, *command: str) -> dict[str, Any]:
        """Load programs and maps; opens the maps. command: another way to run the loader."""
        if command:
            done = self.sandbox.run(self.namespace, *command, f"/run/{self._config.name}")
        else:
            done = self.loader("up")
        result: dict[str, Any] = json.loads(done.stdout)
        self.reopen()
        return result

    def reopen(self) -> None:
        """Open the maps that are pinned now."""
        self.maps: Maps = open_maps(self.pins)

    @contextlib.contextmanager
    def in_cgroup(self) -> Iterator[None]:
        """Sockets made inside belong to the cgroup that the socket programs are attached to."""
        before = next(
            line.split("::", 1)[1]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (_cgroup_root() / before.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))

    def program(self, name: str) -> int:
        """Descriptor of a pinned program."""
        return libbpf.open_pinned(pin_of(self.pins, name))

    def attach_pod(self, index: int) -> None:
        with self.namespace.entered():
            attach.attach_pod(index, self.pins)

    def close(self) -> None:
        self.namespace.close()
        self.cgroup.rmdir()

    def config(self) -> tables.Config:
        config = self.maps.read_config()
        assert config
        return config


def kill(process: subprocess.Popen[bytes]) -> None:
    """End one process of ours."""
    process.send_signal(signal.SIGKILL)
    process.wait(10)
