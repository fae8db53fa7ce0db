"""The node command `underpass`: questions to the agent of this node.

Tables for people, `-o json` for programs. Exit status: 0 answered, 1 the agent refused, 2 wrong usage,
3 the agent does not answer; `policy trace` exits with 4 where the verdict is deny.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

SOCKET = "/run/underpass/agent.sock"
SECONDS = 10.0
OK, REFUSED, ABSENT, DENIED = 0, 1, 3, 4


class NoAgentError(Exception):
    """Nobody answers at the socket."""


class RefusedError(Exception):
    """The agent answered with an error."""


def lines(path: str, command: str, arguments: Mapping[str, Any], seconds: float | None) -> Iterator[Any]:
    """The answers to a question, one by one; None for each sign of life between them.

    Raises NoAgentError and RefusedError.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(json.dumps({"command": command, "arguments": dict(arguments)}).encode())
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                for line in file:
                    if not line.strip():
                        yield None
                        continue
                    answer = json.loads(line)
                    if "error" in answer:
                        raise RefusedError(answer["error"])
                    yield answer["answer"]
    except OSError as fault:
        raise NoAgentError(f"{path}: {fault.strerror or fault}") from fault


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they must be, the last one as long as it likes."""
    texts = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )


def show_status(answer: Mapping[str, Any]) -> str:
    addresses = answer["addresses"]
    kubernetes = answer["kubernetes"]
    rows = [
        ("node", answer["node"]),
        ("agent", f"{answer['version']}, up {answer['uptime_seconds']} s"),
        ("ready", "yes" if answer["ready"] else "no"),
        (
            "kubernetes",
            "reachable" if kubernetes["reachable"] else "not reachable: last known model in force",
        ),
        *((f"  {kind}", fault) for kind, fault in kubernetes["faults"].items()),
        ("addresses", f"{addresses['held']} of {addresses['capacity']} in {', '.join(addresses['ranges'])}"),
        ("tables", ", ".join(f"{name} {size}" for name, size in answer["tables"].items())),
        *((f"  {name}", f"could not be written {n} times") for name, n in answer["table_faults"].items()),
        *(
            ("peer", f"{node['name']} {' '.join(node['addresses'])} pods {' '.join(node['pods'])}")
            for node in answer["nodes"]
        ),
        *(
            ("policy", f"{p['policy']} not valid: {'; '.join(p['faults'])}")
            for p in answer["policies_not_valid"]
        ),
    ]
    redirect = answer["redirect"]
    tested = redirect["self_test"]
    works = {True: "works", False: "DOES NOT WORK", None: "on" if redirect["enabled"] else "off"}
    rows += [
        ("redirect", f"{works[tested['works']]}: {tested['detail']}"),
        ("  now", f"{redirect['accelerated']} of {redirect['connections']} connections accelerated"),
    ]
    rows += [("forged", f"{pod}: {', '.join(keys)}") for pod, keys in answer["forged_labels"].items()]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows)


def show_endpoints(answer: Sequence[Mapping[str, Any]]) -> str:
    columns = ("id", "pod", "address", "identity", "ingress", "egress", "interface")
    return table([c.upper() for c in columns], [[e[c] for c in columns] for e in answer])


def show_identities(answer: Sequence[Mapping[str, Any]]) -> str:
    rows: list[tuple[object, str]] = []
    for identity in answer:
        labels = [f"{key}={value}" if value else key for key, value in identity["labels"].items()]
        rows.extend((identity["id"] if index == 0 else "", label) for index, label in enumerate(labels))
    return table(("ID", "LABELS"), rows)


def show_services(answer: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            s["owner"],
            f"{s['address']}:{s['port']}/{s['protocol']}",
            s["scope"],
            f"{s['affinity_seconds']} s" if s["affinity_seconds"] else "-",
            " ".join(s["backends"]) or "none",
        )
        for s in answer
    ]
    return table(("SERVICE", "FRONTEND", "SCOPE", "AFFINITY", "BACKENDS"), rows)


def show_policies(answer: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for policy in answer:
        state = "valid" if policy["valid"] else "NOT VALID: " + "; ".join(policy["faults"])
        endpoints = " ".join(policy["endpoints"]) or "none here"
        rows.append((policy["kind"], policy["name"], state, len(policy["rules"]), endpoints))
    return table(("KIND", "NAME", "STATE", "RULES", "ENDPOINTS"), rows)


def show_trace(answer: Mapping[str, Any]) -> str:
    sides = [f"  {side['direction']}: {side['verdict']} ({side['rule']})" for side in answer["sides"]]
    head = (
        f"identity {answer['source_identity']} -> identity {answer['target_identity']} "
        f"{answer['protocol']} {answer['port']}: {answer['verdict']}"
    )
    return "\n".join([head, *sides])


def show_explain(answer: Mapping[str, Any]) -> str:
    rows = []
    for one in answer["connections"]:
        ways = (one["from_client"], one["from_server"])
        rows.append(
            (
                f"{one['client_pod'] or '-'} {one['client']}",
                f"{one['server_pod'] or '-'} {one['server']}",
                "yes" if one["accelerated"] else "no",
                one["reason"] or "-",
                "/".join(str(way["messages"]) for way in ways),
                "/".join(str(way["bytes"]) for way in ways),
                "/".join(str(way["tcp_bytes"]) for way in ways),
            )
        )
    head = ("CLIENT", "SERVER", "ACCELERATED", "REASON", "MESSAGES", "BYTES", "BY TCP")
    lines = [table(head, rows) if rows else "no open connection"]
    lines += [f"  {reason}: {why}" for reason, why in _reasons(answer["connections"])]
    lines += [f"  {one['client']}: {one['note']}" for one in answer["connections"] if one["note"]]
    if answer["next"] is not None:
        why = answer["next"]
        verdict = (
            f"would stay with TCP: {why['reason']}: {why['why']}" if why["reason"] else "would be accelerated"
        )
        lines.append(f"a new connection {verdict}")
    return "\n".join(lines)


def _reasons(connections: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return sorted({(one["reason"], one["why"]) for one in connections if one["reason"]})


def show_maps(answer: Sequence[Mapping[str, Any]]) -> str:
    columns = ("name", "type", "entries", "capacity")
    return table([c.upper() for c in columns], [[m[c] for c in columns] for m in answer])


def show_flow(flow: Mapping[str, Any]) -> str:
    stamp = time.strftime("%H:%M:%S", time.localtime(flow["time"]))
    arrow = "->" if flow["direction"] == "egress" else "<-"
    rule = f" by {flow['rule']}" if flow.get("rule") else ""
    if flow.get("messages"):
        rule += f" {flow['messages']} messages, {flow['bytes']} bytes from socket to socket"
        rule += f", {flow['latency_microseconds']} us to read" if flow["latency_microseconds"] else ""
    return (
        f"{stamp} {flow['reason']:<20} {flow['endpoint']} {flow['local']} {arrow} "
        f"{flow['peer']} (identity {flow['peer_identity']}) {flow['protocol']}{rule}"
    )


SHOW: dict[str, Callable[[Any], str]] = {
    "status": show_status,
    "endpoints": show_endpoints,
    "identities": show_identities,
    "services": show_services,
    "policy-get": show_policies,
    "policy-trace": show_trace,
    "explain": show_explain,
    "maps": show_maps,
}


def say(text: str) -> None:
    """A result, at once: `monitor` is read while it runs."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    sys.stderr.write(f"underpass: {text}\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="underpass", description="Asks the agent of this node.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-o", "--output", choices=["table", "json"], default="table")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("status", parents=[common], help="how the agent and its tables are")
    commands.add_parser("endpoints", parents=[common], help="the pods of this node")
    commands.add_parser("identities", parents=[common], help="identities and their labels")
    commands.add_parser("services", parents=[common], help="frontends and their backends")
    commands.add_parser("maps", parents=[common], help="the pinned maps and how full they are")
    explain = commands.add_parser(
        "explain", parents=[common], help="is a connection accelerated, and if not, why"
    )
    explain.add_argument(
        "source", nargs="?", default="", help="a pod of this node, or its address; all if absent"
    )
    explain.add_argument("target", nargs="?", default="", help="namespace/pod or address; anybody if absent")
    explain.add_argument("--port", type=int, default=0, help="the server's port; any if absent")
    monitor = commands.add_parser("monitor", parents=[common], help="flows as they happen")
    monitor.add_argument("--count", type=int, default=0, help="end after so many flows")
    monitor.add_argument("--seconds", type=float, default=None, help="end after so long")
    monitor.add_argument("--pod", default="", help="only flows of this pod (namespace/name)")
    monitor.add_argument("--dropped", action="store_true", help="only what did not get through")
    policy = commands.add_parser("policy", help="policies").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    get = policy.add_parser("get", parents=[common], help="the policies that this node knows")
    get.add_argument("name", nargs="?", default="")
    trace = policy.add_parser("trace", parents=[common], help="may SOURCE connect to TARGET?")
    trace.add_argument("source", help="namespace/pod, address, identity or entity")
    trace.add_argument("target", help="namespace/pod, address, identity or entity")
    trace.add_argument("--port", type=int, default=0)
    trace.add_argument("--protocol", default="TCP", type=str.upper)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, print, and return the exit status."""
    given = parser().parse_args(arguments)
    path = os.environ.get("UNDERPASS_SOCKET", SOCKET)
    command = f"policy-{given.action}" if given.command == "policy" else given.command
    asked = {key: value for key, value in vars(given).items() if key not in ("command", "action", "output")}
    as_json = given.output == "json"
    try:
        if command == "monitor":
            return _monitor(path, asked, as_json)
        answer = next(lines(path, command, asked, SECONDS))
    except NoAgentError as fault:
        complain(f"the agent does not answer: {fault}")
        return ABSENT
    except RefusedError as fault:
        complain(f"{fault}")
        return REFUSED
    except StopIteration:
        complain("the agent ended before it answered")
        return ABSENT
    say(json.dumps(answer, indent=2) if as_json else SHOW[command](answer))
    return DENIED if command == "policy-trace" and answer["verdict"] == "deny" else OK


def _monitor(path: str, asked: Mapping[str, Any], as_json: bool) -> int:
    count = 0
    end = None if asked["seconds"] is None else time.monotonic() + asked["seconds"]
    try:
        for flow in lines(path, "monitor", {}, None):
            if flow is not None and _is_asked_for(flow, asked):
                say(json.dumps(flow) if as_json else show_flow(flow))
                count += 1
            if (asked["count"] and count >= asked["count"]) or (end and time.monotonic() >= end):
                break
            if flow is None and _reader_left():
                break
    except (KeyboardInterrupt, BrokenPipeError):
        sys.stdout = None  # nobody is to hear of what could not be written
    return OK


def _reader_left() -> bool:
    """Whether nobody reads what we print any more: found out without printing."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except (OSError, ValueError):
        return False


def _is_asked_for(flow: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    if asked["dropped"] and not flow["dropped"]:
        return False
    return asked["pod"] in ("", flow["endpoint"])


if __name__ == "__main__":
    sys.exit(main())
