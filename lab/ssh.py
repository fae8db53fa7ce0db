"""Commands on nodes, over ssh, with the lab's own keys and known hosts."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.emulation import patience
from lab.errors import ExitCode, LabError, die
from lab.render import Rendered, RenderedNode
from lab.run import Completed, run

#: Sockets of shared ssh connections; short, since a socket's path is limited to 108 bytes. All labs of
#: the host share the folder, and ssh needs it to be there: it stays, empty, until the next boot.
SOCKETS = Path("/run/underpass")

LOST = 255  # ssh's own status when the connection failed


def argv(lab: Rendered, node: RenderedNode, command: Sequence[str], *, tty: bool = False) -> list[str]:
    """The ssh command line that runs `command` (an argument vector, quoted for us) on `node`."""
    SOCKETS.mkdir(mode=0o700, exist_ok=True)
    flags = ["-t"] if tty else ["-T"]
    remote = ["--", shlex.join(command)] if command else []
    return ["ssh", "-F", str(lab.folder / "ssh_config"), *flags, node.address, *remote]


def on_node(
    lab: Rendered,
    node: RenderedNode,
    command: Sequence[str],
    *,
    ok: Sequence[int] = (0,),
    stdin: str | Path | None = None,
    timeout: float = 60,
    quiet: bool = False,
) -> Completed:
    """Run `command` on `node`; statuses not in `ok` are a fault of the node (exit status NODE).

    `timeout` in seconds is for nodes as fast as the host; machines get more.
    """
    return run(
        argv(lab, node, command),
        ok=ok,
        stdin=stdin,
        timeout=timeout * patience(lab.provider),
        quiet=quiet,
        hint=f"`lab status` shows what the nodes do, `lab logs --console {node.name}` what it printed",
        code=ExitCode.NODE,
    )


def hand_over(lab: Rendered, node: RenderedNode, command: Sequence[str], *, tty: bool) -> int:
    """Run `command` (or a login shell) on `node` with our own stdin, stdout and stderr; its status."""
    status = subprocess.run(argv(lab, node, command, tty=tty), check=False).returncode
    if status == LOST and not answers(lab, node):
        die(
            f"{node.name} does not answer on ssh",
            hint="`lab status` shows what the nodes do; `lab start` starts them",
            code=ExitCode.NODE,
        )
    return status


def answers(lab: Rendered, node: RenderedNode) -> bool:
    """Whether a command can be run on the node now."""
    try:
        done = run(argv(lab, node, ["true"]), ok=range(256), timeout=15 * patience(lab.provider))
    except Exception:
        return False
    return done.status == 0


def answers_afresh(lab: Rendered, node: RenderedNode, seconds: float = 20) -> bool:
    """Whether ssh with the lab's keys, and the node's own host key, gets through now.

    By no shared connection: one to an earlier life of the node could be waiting for a timeout.
    """
    try:
        socket.create_connection((node.address, 22), timeout=2).close()
    except OSError:
        return False
    alone = ["-o", "ControlPath=none", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={seconds:.0f}", "-T"]
    command = ["ssh", "-F", str(lab.folder / "ssh_config"), *alone, node.address, "--", "true"]
    try:
        return run(command, ok=range(256), timeout=seconds).status == 0
    except LabError:
        return False


_ESCAPES = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]"
)


def clean(text: str) -> str:
    """Console output without cursor movements, colours and other control characters."""
    return _ESCAPES.sub("", text.replace("\r\n", "\n"))


def forget(lab: Rendered) -> None:
    """Close shared ssh connections to the lab's nodes; they would outlive a node that is gone."""
    if not SOCKETS.is_dir():
        return
    for path in SOCKETS.glob(f"{lab.tag}-*"):
        run(
            ["ssh", "-F", lab.folder / "ssh_config", "-o", f"ControlPath={path}", "-O", "exit", "lab"],
            ok=range(256),
            timeout=10,
        )
        path.unlink(missing_ok=True)
