"""Commands that show a lab's network: agents, endpoints, identities, services, policy, flows, maps.

What a node's own command `underpass` says, of all nodes and joined.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lab import network
from lab.cli.cluster import find_node
from lab.cli.context import Context, become_root
from lab.errors import ExitCode
from lab.output import Format, emit, table
from lab.render import Rendered, RenderedNode

policy_app = typer.Typer(help="Policies, and what they mean.", no_args_is_help=True)

Node = Annotated[str | None, typer.Option("--node", help="Ask this node alone.")]


def register(app: typer.Typer) -> None:
    for command in (agents, endpoints, identities, services, flows, explain, maps):
        app.command()(command)
    policy_app.command("get")(policy_get)
    policy_app.command("trace")(policy_trace)
    app.add_typer(policy_app, name="policy")


def _lab(context: typer.Context) -> Rendered:
    become_root()
    lab: Rendered = context.obj.lab()
    return lab


def _chosen(lab: Rendered, node: str | None) -> Sequence[RenderedNode]:
    return lab.nodes if node is None else [find_node(lab, node)]


def _show(context: typer.Context, data: Any, columns: Sequence[str], faults: Sequence[str]) -> None:
    """Write rows as the user asked. What a node did not say is told apart, and makes the status NODE."""
    options: Context = context.obj
    if options.output is Format.TABLE:
        table(data, columns)
    else:
        emit(data, options.output)
    _tell(faults)


def _tell(faults: Sequence[str]) -> None:
    for fault in faults:
        print(f"lab: not complete: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(ExitCode.NODE)


def agents(context: typer.Context, node: Node = None) -> None:
    """How the agents are: ready, in touch with the API server, addresses, faults."""
    lab = _lab(context)
    answers = network.ask(lab, ["status"], _chosen(lab, node))
    rows = network.join_status(answers)
    columns = ["node", "version", "ready", "api", "addresses", "redirect", "up_seconds", "faults"]
    _show(context, rows, columns, answers.faults)


def endpoints(context: typer.Context, node: Node = None) -> None:
    """The pods of every node: address, identity, whether a policy isolates them."""
    lab = _lab(context)
    answers = network.ask(lab, ["endpoints"], _chosen(lab, node))
    columns = ["node", "pod", "address", "identity", "ingress", "egress", "policies"]
    _show(context, answers.rows(), columns, answers.faults)


def identities(context: typer.Context, node: Node = None) -> None:
    """Identities, the labels that they stand for, and the nodes that know them."""
    lab = _lab(context)
    answers = network.ask(lab, ["identities"], _chosen(lab, node))
    rows: list[dict[str, Any]] = network.join_identities(answers)
    if context.obj.output is Format.TABLE:
        rows = [
            {**row, "labels": [f"{key}={value}" if value else key for key, value in row["labels"].items()]}
            for row in rows
        ]
    _show(context, rows, ["id", "labels", "nodes"], answers.faults)


def services(context: typer.Context, node: Node = None) -> None:
    """Frontends of Services and hostPorts, their backends, and the nodes that serve them so."""
    lab = _lab(context)
    answers = network.ask(lab, ["services"], _chosen(lab, node))
    columns = ["owner", "address", "port", "protocol", "scope", "affinity_seconds", "backends", "nodes"]
    _show(context, network.join_services(answers), columns, answers.faults)


def maps(context: typer.Context, node: Node = None) -> None:
    """The pinned BPF maps of every node and how full they are."""
    lab = _lab(context)
    answers = network.ask(lab, ["maps"], _chosen(lab, node))
    _show(context, answers.rows(), ["node", "name", "type", "entries", "capacity"], answers.faults)


def policy_get(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A policy's name; all if absent.")] = "",
    node: Node = None,
) -> None:
    """The policies, whether they are valid, and the pods of all nodes that they select."""
    lab = _lab(context)
    words = ["policy", "get", *([name] if name else [])]
    answers = network.ask(lab, words, _chosen(lab, node))
    columns = ["kind", "name", "valid", "faults", "endpoints"]
    _show(context, network.join_policies(answers), columns, answers.faults)


def policy_trace(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="namespace/pod, address, identity or entity.")],
    target: Annotated[str, typer.Argument(help="namespace/pod, address, identity or entity.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the target; any if 0.")] = 0,
    protocol: Annotated[str, typer.Option(help="TCP, UDP, SCTP, ICMP.")] = "TCP",
) -> None:
    """May SOURCE connect to TARGET? Each side as the node says that enforces it; status 11 if not."""
    lab = _lab(context)
    words = ["policy", "trace", source, target, "--port", str(port), "--protocol", protocol]
    answers = network.ask(lab, words)
    found = network.join_trace(answers)
    if context.obj.output is Format.TABLE:
        table(found["sides"], ["direction", "verdict", "rule", "node"])
        print(
            f"\nidentity {found['source_identity']} -> identity {found['target_identity']} "
            f"{found['protocol']} {found['port']}: {found['verdict']}"
        )
    else:
        emit(found, context.obj.output)
    _tell(answers.faults)
    if found["verdict"] == "deny":
        raise typer.Exit(ExitCode.DENIED)


def explain(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="Who connects: namespace/pod or address; all if absent.")
    ] = "",
    target: Annotated[str, typer.Argument(help="To whom: namespace/pod or address; anybody if absent.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The server's port; any if 0.")] = 0,
) -> None:
    """Is a connection accelerated, and if not, why: each open one, and what a new one would be."""
    lab = _lab(context)
    nodes = lab.nodes
    if source:
        nodes = (lab.node(network.node_of(network.ask(lab, ["endpoints"]), source)),)
    words = ["explain", *(word for word in (source, target) if word)]
    words += ["--port", str(port)] if port else []
    answers = network.ask(lab, words, nodes)
    found = network.join_explanations(answers)
    if context.obj.output is Format.TABLE:
        _show_explanation(found)
    else:
        emit(found, context.obj.output)
    _tell(answers.faults)


def _show_explanation(found: dict[str, Any]) -> None:
    rows = [
        {
            **one,
            "client": f"{one['client_pod']} {one['client']}".strip(),
            "server": f"{one['server_pod']} {one['server']}".strip(),
            "reason": one["reason"] or "-",
            **{
                name: f"{one['from_client'][name]}/{one['from_server'][name]}"
                for name in ("messages", "bytes", "tcp_bytes")
            },
        }
        for one in found["connections"]
    ]
    if rows:
        columns = ["node", "client", "server", "accelerated", "reason", "messages", "bytes", "tcp_bytes"]
        table(rows, columns)
    else:
        print("no open connection")
    for reason, why in sorted({(one["reason"], one["why"]) for one in found["connections"] if one["reason"]}):
        print(f"{reason}: {why}")
    for one in rows:
        if one["note"]:
            print(f"{one['client']}: {one['note']}")
    new = found["next"]
    if new is not None:
        plain = f"would stay with TCP: {new['reason']}: {new['why']}"
        print(f"\na new connection {'would be accelerated' if new['accelerated'] else plain}")


def flows(
    context: typer.Context,
    node: Node = None,
    pod: Annotated[str, typer.Option(help="Only flows of this pod (namespace/name).")] = "",
    dropped: Annotated[bool, typer.Option("--dropped", help="Only what did not get through.")] = False,
    count: Annotated[int, typer.Option(min=0, help="End after so many flows.")] = 0,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long.")] = None,
) -> None:
    """Flows of all nodes as they happen, until ctrl-C; with -o json one object a line."""
    lab = _lab(context)
    words = [*(["--pod", pod] if pod else []), *(["--dropped"] if dropped else [])]
    words += ["--seconds", str(seconds)] if seconds is not None else []
    faults: list[str] = []
    seen = network.flows(lab, words, _chosen(lab, node), faults)
    try:
        for number, flow in enumerate(seen, 1):
            _print_flow(flow, context.obj.output)
            if number == count:
                break
    except KeyboardInterrupt:
        pass
    finally:
        seen.close()  # type: ignore[attr-defined]
    _tell(faults)


def _print_flow(flow: dict[str, Any], form: Format) -> None:
    if form is not Format.TABLE:
        print(json.dumps(flow), flush=True)
        return
    stamp = time.strftime("%H:%M:%S", time.localtime(flow["time"]))
    arrow = "->" if flow["direction"] == "egress" else "<-"
    rule = f" by {flow['rule']}" if flow["rule"] else ""
    if flow["messages"]:
        rule += f" {flow['messages']} messages, {flow['bytes']} bytes from socket to socket"
        rule += f", {flow['latency_microseconds']} us to read" if flow["latency_microseconds"] else ""
    print(
        f"{stamp} {flow['node']} {flow['reason']:<20} {flow['endpoint'] or '-'} {flow['local']} {arrow} "
        f"{flow['peer']} (identity {flow['peer_identity']}) {flow['protocol']}{rule}",
        flush=True,
    )
