"""Commands that reach into a running lab: shell, exec, kubectl, kubeconfig, image, url, logs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lab import builds, images, paths, ssh
from lab.cli.context import Context, become_root
from lab.cluster import Cluster
from lab.errors import ExitCode, die
from lab.kubeconfig import merge
from lab.output import Format, emit, table
from lab.providers import provider
from lab.render import Rendered, RenderedNode
from lab.store import Artifact
from lab.urls import urls

_THROUGH = {"ignore_unknown_options": True, "allow_interspersed_args": False}

image_app = typer.Typer(help="Images on the lab's nodes.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command()(shell)
    app.command(context_settings=_THROUGH)(exec_)
    app.registered_commands[-1].name = "exec"
    app.command(context_settings={**_THROUGH, "help_option_names": []})(kubectl)
    app.command(context_settings={**_THROUGH, "help_option_names": []})(istioctl)
    app.command()(samples)
    app.command()(kubeconfig)
    app.command("url")(url_)
    app.command()(logs)
    image_app.command("list")(image_list)
    image_app.command("load")(image_load)
    app.add_typer(image_app, name="image")


def find_node(lab: Rendered, name: str | None) -> RenderedNode:
    """The node called `name`, or the control plane; a wrong name lists the right ones."""
    if name is None:
        return lab.control_plane
    try:
        return lab.node(name)
    except KeyError:
        names = ", ".join(node.name for node in lab.nodes)
        die(f"lab {lab.id} has no node {name}", hint=f"its nodes: {names}", code=ExitCode.USAGE)


def shell(
    context: typer.Context,
    node: Annotated[str | None, typer.Argument(help="The node; the control plane if absent.")] = None,
) -> int:
    """Open a root shell on a node."""
    become_root()
    lab: Rendered = context.obj.lab()
    return ssh.hand_over(lab, find_node(lab, node), [], tty=sys.stdin.isatty())


def exec_(
    context: typer.Context,
    node: Annotated[str, typer.Argument(help="The node.")],
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
) -> int:
    """Run a command on a node; its exit status is ours."""
    become_root()
    lab: Rendered = context.obj.lab()
    words = command[1:] if command[0] == "--" else command
    return ssh.hand_over(lab, find_node(lab, node), words, tty=False)


def kubectl(
    context: typer.Context,
    arguments: Annotated[list[str] | None, typer.Argument(help="What kubectl is to do.")] = None,
) -> int:
    """Run the lab's kubectl on the lab; arguments and exit status pass through."""
    become_root()
    lab: Rendered = context.obj.lab()
    return Cluster(lab, _artifact("kubernetes").path / "bin").hand_over(arguments or [])


def istioctl(
    context: typer.Context,
    arguments: Annotated[list[str] | None, typer.Argument(help="What istioctl is to do.")] = None,
) -> int:
    """Run the lab's istioctl on the lab; arguments and exit status pass through."""
    become_root()
    lab: Rendered = context.obj.lab()
    program = _artifact("istio").path / "bin" / "istioctl"
    kubernetes = _artifact("kubernetes").path / "bin"
    return Cluster(lab, kubernetes).hand_over(arguments or [], program)


def samples() -> None:
    """Print the folder of Istio's samples: `lab kubectl apply -n demo -f $(lab samples)/curl/curl.yaml`."""
    become_root()
    print(_artifact("samples").path / "share" / "samples")


def _artifact(name: str) -> Artifact:
    artifact = builds.locate().get(name)
    if artifact is None:
        die(
            f"the artifact {name} is not in the store",
            hint=f"`lab build {name}` makes it",
            code=ExitCode.ARTIFACT,
        )
    return artifact


def url_(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="The Service.", metavar="NAMESPACE/SERVICE")],
) -> None:
    """Print where a Service that nodes serve (NodePort) can be opened, from a browser on this machine."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    found = urls(lab, Cluster(lab, _artifact("kubernetes").path / "bin"), service)
    if options.output is Format.TABLE:
        print("\n".join(found))
    else:
        emit({"service": service, "urls": found}, options.output)


def kubeconfig(
    context: typer.Context,
    into: Annotated[
        Path | None,
        typer.Option("--merge", help="Also add the lab's context to this file (asks first).", metavar="FILE"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Print the path of the lab's kubeconfig, for `export KUBECONFIG=$(lab kubeconfig)`."""
    become_root()
    lab: Rendered = context.obj.lab()
    own = lab.folder / "kubeconfig"
    if not own.exists():
        die(f"lab {lab.id} has no kubeconfig yet", hint="`lab up` brings it up", code=ExitCode.NOT_THERE)
    if into is not None:
        if not yes:
            typer.confirm(f"Add the context {lab.context} to {into}?", abort=True, err=True)
        merge(own, into)
        print(f"added context {lab.context} to {into}", file=sys.stderr)
    print(own)


def image_list(context: typer.Context) -> None:
    """List the images that every node carries from its start; `toolbox` is for pods to try things in."""
    options: Context = context.obj
    rows = [{"name": name, "image": full} for name, full in sorted(images.own().items())]
    if options.output is Format.TABLE:
        table(rows, ["name", "image"])
    else:
        emit(rows, options.output)


def image_load(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="An image archive, an OCI layout, a folder of archives, or an artifact: `bookinfo-images`."
        ),
    ],
) -> None:
    """Put images on all nodes of the lab."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    if not source.exists() and (artifact := builds.locate().get(str(source))):
        source = artifact.path
    steps = options.steps(options.logs_of(lab.id, "image"))
    with steps.step("image", f"Load {source.name} on {len(lab.nodes)} nodes"):
        loaded = images.load(lab, source)
    rows = [{"image": name, "nodes": [node.name for node in lab.nodes]} for name in loaded]
    if options.output is Format.TABLE:
        table(rows, ["image", "nodes"])
    else:
        emit(rows, options.output)


def logs(
    context: typer.Context,
    node: Annotated[str | None, typer.Argument(help="A node: its journal. Absent: lab's own logs.")] = None,
    unit: Annotated[str | None, typer.Option("--unit", "-u", help="Only this systemd unit.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as new lines come.")] = False,
    console: Annotated[bool, typer.Option("--console", help="What the node printed on its console.")] = False,
) -> int:
    """Show a node's journal or console, or the logs of the last `lab` command that changed the lab."""
    become_root()
    options: Context = context.obj
    if node is None and not console and unit is None:
        return _own_logs(options.lab_id or options.lab().id, lines)
    lab = options.lab()
    machine = find_node(lab, node)
    if console:
        print(provider(lab).console(machine, lines))
        return 0
    command = ["journalctl", "--no-pager", "-n", str(lines)]
    command += ["-u", unit] if unit else []
    command += ["-f"] if follow else []
    return ssh.hand_over(lab, machine, command, tty=False)


def _own_logs(lab_id: str, lines: int) -> int:
    folder = paths.state() / "logs" / lab_id
    runs = sorted(folder.iterdir()) if folder.exists() else []
    if not runs:
        die(f"there are no logs of lab {lab_id}", hint="`lab up` writes them", code=ExitCode.NOT_THERE)
    for log in sorted(runs[-1].iterdir()):
        text = log.read_text(errors="replace").splitlines()
        print(f"==> {log}")
        print("\n".join(text[-lines:]))
    return 0
