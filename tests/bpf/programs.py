"""Real programs for the tests: servers as people run them, started inside pods."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import builds
from lab.builds.contained import enclosed
from lab.steps import Steps
from tests.bpf.counting import wait_for
from tests.bpf.fabric import Pod

#: Sends the body back as it comes.
NODE = """
const [host, port] = process.argv[1].split(":")
require("http").createServer((request, response) => request.pipe(response)).listen(Number(port), host)
"""

ASYNCIO = """
import asyncio, sys

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def main():
    host, port = sys.argv[1].split(":")
    async with await asyncio.start_server(echo, host, int(port)) as server:
        await server.serve_forever()

asyncio.run(main())
"""

NGINX = """
daemon off; pid /tmp/pid; error_log /tmp/error; worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
  uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; sendfile on; tcp_nopush on;
  client_max_body_size 8m; client_body_buffer_size 8m; keepalive_requests 1000000;
  server {{ listen {at}; root /tmp/www; }}
}}
"""

HAPROXY = """
global
  maxconn 512
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen all
  bind {at}
  server one {backend}
"""


def root_of_programs() -> Path:
    """The root file system that programs run in, from the artifact store, or built."""
    return builds.build_all(Steps(), {"test-programs"})["test-programs"].path / "rootfs"


_ENTER = """
root=$1; shift
mount --rbind $root $root
mount -o remount,bind,ro $root
mount -t proc proc $root/proc
mount --rbind /dev $root/dev
mount -t tmpfs tmpfs $root/tmp
cp -r $FILES/. $root/tmp/
exec chroot $root "$@"
"""


@dataclass
class Programs:
    """Starts programs inside pods, from the root file system `root`; all end with the `with` block."""

    root: Path
    scratch: Path
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _count: int = 0

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self, pod: Pod, port: int, command: Sequence[str], files: Mapping[str, bytes] | None = None
    ) -> None:
        """Run `command` in `pod`, with `files` in its /tmp, and wait until `port` takes connections.

        In the node's cgroup, as a pod's processes are.
        """
        self._count += 1
        folder = self.scratch / f"files-{self._count}"
        folder.mkdir()
        for name, data in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        words = enclosed(["sh", "-euc", _ENTER, "enter", str(self.root), *command])
        env = {"PATH": f"/usr/local/bin:/usr/sbin:/sbin:{os.defpath}", "FILES": str(folder)}
        output = self._stack.enter_context((folder / "output").open("wb"))
        with pod.node.in_cgroup(), pod.namespace.entered():
            process = subprocess.Popen(words, env=env, stdout=output, stderr=output)
        self._stack.callback(_end, process)

        def listens() -> bool:
            assert process.poll() is None, (folder / "output").read_text()
            return _listens(pod, port)

        wait_for(listens, f"{command[0]} takes connections", 30)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def _listens(pod: Pod, port: int) -> bool:
    """Whether a socket of the pod listens: asked of the kernel, no connection is made for it."""
    with pod.namespace.entered():
        table = Path("/proc/thread-self/net/tcp").read_text() + Path("/proc/thread-self/net/tcp6").read_text()
    rows = (line.split() for line in table.splitlines())
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)
