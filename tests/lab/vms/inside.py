"""A virtual machine that is the host of a lab of its own.

It is of a box of ours, Debian 13 as `make setup VMS=1` leaves it, has a checkout and the artifacts, which
are handed in by http, and no way out.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lab import builds, keys, ssh
from lab import render as rendering
from lab.builds import hostbox
from lab.lifecycle import on_nodes
from lab.paths import ROOT
from lab.providers import provider
from lab.render import Rendered
from lab.steps import Steps
from lab.store import Artifact
from tests.lab.vms.conftest import lab_file, needs_libvirt, needs_machines

#: What is in a checkout and not of it.
NOT_OF_IT = (".venv", ".vagrant", "__pycache__", "reports", "*.egg-info", ".*_cache", ".hypothesis")
SECONDS = 3600


class Machine:
    """The machine that is a host: commands on it, in its checkout."""

    def __init__(self, lab: Rendered) -> None:
        self.lab = lab

    def __call__(self, script: str) -> str:
        """What a shell script prints there; it must succeed."""
        words = ["sh", "-ec", f"cd {hostbox.PLACE} 2>/dev/null || true\n{script}"]
        done = subprocess.run(
            ssh.argv(self.lab, self.lab.nodes[0], words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def lab_command(self, *words: str) -> Any:
        """The JSON document of a `lab` command."""
        return json.loads(self(shlex.join([".venv/bin/lab", *words, "-o", "json", "--progress=none"])))

    def seen(self) -> dict[str, list[str]]:
        """What there is of what a lab could leave behind."""
        script = "import json; from tests.lab import hoststate as h; "
        script += "print(json.dumps({kind: sorted(found) for kind, found in h.seen().items()}))"
        return json.loads(self(shlex.join([".venv/bin/python", "-c", script])))  # type: ignore[no-any-return]


@contextmanager
def handed_out(address: str, archives: dict[str, list[str]]) -> Iterator[str]:
    """An http server on `address` that gives, under each name, what that `tar` command writes; its URL."""

    class Archives(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with subprocess.Popen(archives[self.path.strip("/")], stdout=subprocess.PIPE) as tar:
                assert tar.stdout
                self.send_response(200)
                self.end_headers()
                shutil.copyfileobj(tar.stdout, self.wfile, 1 << 20)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Archives) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def tar_of_store(artifacts: list[Artifact]) -> list[str]:
    """The command that writes entries of the store with their manifests, times and attributes."""
    names = [name for artifact in artifacts for name in (artifact.path.name, artifact.manifest_file.name)]
    options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    return ["tar", f"--directory={artifacts[0].path.parent}", *options, "--create", "--file=-", *names]


def tar_of_checkout() -> list[str]:
    left_out = [f"--exclude={pattern}" for pattern in NOT_OF_IT]
    return ["tar", f"--directory={ROOT}", "--exclude-vcs", *left_out, "--create", "--file=-", "."]


@contextmanager
def inside(
    lab_id: str, shape: str, file: Path, inner: str, inner_provider: str = "nspawn"
) -> Iterator[Machine]:
    """The machine, started; skipped where the host cannot have one.

    shape: a further line of its node in the lab file `file`, which is written. inner: the lab file of the
    lab in it, which is not brought up.
    """
    text = f"{lab_file(lab_id)}nodes:\n  - name: host\n    roles: [control-plane]\n    {shape}\n"
    file.write_text(text)
    lab = rendering.render_file(file)
    needs_libvirt()
    needs_machines(lab)
    host = provider(lab)
    host.destroy()
    box = builds.build_all(Steps(), only={hostbox.NAME})[hostbox.NAME].path
    artifacts = builds.build_all(Steps(), for_bundle=True, provider=inner_provider)
    name = "node-programs"  # those of nspawn have none; the machine's kernel is the one that these are for
    artifacts[name] = builds.build_all(Steps(), only={name})[name]
    lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.ensure(lab)
    rendering.write(lab, text, on_nodes({}))
    try:
        host.create(box, box.parent)
        host.start(lab.nodes[0])
        machine = Machine(lab)
        archives = {"store": tar_of_store(list(artifacts.values())), "checkout": tar_of_checkout()}
        with handed_out(lab.gateway, archives) as url:
            store = "/root/.cache/underpass/store"
            machine(f"mkdir -p {store}; curl -sSf {url}/store | tar -C {store} --xattrs-include='*' -xpf -")
            machine(f"curl -sSf {url}/checkout | tar -C {hostbox.PLACE} -xf -")
        machine(f"cat >lab.yaml <<'END'\n{inner}END")
        yield machine
    finally:
        host.destroy()
        shutil.rmtree(lab.folder, ignore_errors=True)
        file.unlink()
    assert host.leftovers() == []
