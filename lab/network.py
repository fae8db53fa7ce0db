"""What the agents of a lab's nodes say: asked by the node command `underpass` over ssh, and joined.

Each node knows its own pods and the whole cluster's identities, Services and policies. The functions
that join are pure: answers of the nodes in, rows out.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lab import ssh
from lab.errors import ExitCode, LabError
from lab.render import Rendered, RenderedNode
from lab.run import CommandError

ASK_SECONDS = 30
#: Exit statuses of `underpass` with an answer on stdout: answered, and "the verdict is deny".
_ANSWERED = (0, 4)

#: What an agent of an older release leaves out.
_UNTOLD = {"self_test": {"works": None, "detail": ""}}
_REDIRECT = {True: "works", False: "does not work", None: "off or not tried yet"}

Row = dict[str, Any]


@dataclass
class Answers:
    """What the nodes said: node's name -> answer; and a line for each node that did not say anything."""

    by_node: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Lists of things that each belong to one node, put together, with the node's name first."""
        return [{"node": node, **row} for node, answer in self.by_node.items() for row in answer]


def ask(lab: Rendered, words: Sequence[str], nodes: Sequence[RenderedNode] | None = None) -> Answers:
    """Ask the agents of `nodes` (all of the lab's if absent) at once. Raises `LabError` if none answers."""
    asked = lab.nodes if nodes is None else nodes

    def one(node: RenderedNode) -> tuple[str, Any, str]:
        try:
            done = ssh.on_node(
                lab, node, ["underpass", *words, "-o", "json"], ok=range(256), timeout=ASK_SECONDS
            )
        except CommandError as fault:
            return node.name, None, f"{node.name}: {fault.message}"
        if done.status in _ANSWERED:
            return node.name, json.loads(done.stdout), ""
        said = done.stderr.strip().splitlines() or [f"no answer (status {done.status})"]
        return node.name, None, f"{node.name}: {said[-1].removeprefix('underpass: ')}"

    answers = Answers()
    with ThreadPoolExecutor(max(len(asked), 1)) as pool:
        for name, answer, fault in pool.map(one, asked):
            if fault:
                answers.faults.append(fault)
            else:
                answers.by_node[name] = answer
    if not answers.by_node:
        raise LabError(
            f"no agent of lab {lab.id} answers",
            details=answers.faults,
            hint="`lab status` shows what the nodes do, `lab logs NODE -u underpass-agent` why",
            code=ExitCode.NODE,
        )
    return answers


def join_status(answers: Answers) -> list[Row]:
    """One row for each agent, with what an operator looks at first."""
    rows = []
    for node, said in answers.by_node.items():
        faults = [f"{kind}: {fault}" for kind, fault in said["kubernetes"]["faults"].items()]
        faults += [f"table {name}: {count} failed writes" for name, count in said["table_faults"].items()]
        faults += [f"{one['policy']} is not valid" for one in said["policies_not_valid"]]
        faults += [f"forged labels on {pod}" for pod in said["forged_labels"]]
        tested = said.get("redirect", _UNTOLD)["self_test"]
        if tested["works"] is False:
            faults.append(f"socket redirect: {tested['detail']}")
        rows.append(
            {
                "node": node,
                "version": said["version"],
                "ready": said["ready"],
                "api": "reachable" if said["kubernetes"]["reachable"] else "not reachable",
                "addresses": f"{said['addresses']['held']}/{said['addresses']['capacity']}",
                "up_seconds": said["uptime_seconds"],
                "redirect": _REDIRECT[tested["works"]],
                "faults": faults,
            }
        )
    return rows


def join_identities(answers: Answers) -> list[Row]:
    """One row for each identity. `nodes` knows it; all nodes do, a moment after it was made."""
    return _join(answers, ("id", "labels"), lambda one: (one["id"],))


def join_services(answers: Answers) -> list[Row]:
    """One row for each frontend and set of backends: with a Local policy these differ between nodes."""
    columns = ("owner", "address", "port", "protocol", "scope", "affinity_seconds")
    return _join(
        answers,
        (*columns, "backends"),
        lambda one: (*(one[column] for column in columns), *one["backends"]),
    )


def join_policies(answers: Answers) -> list[Row]:
    """One row for each policy, with the pods of all nodes that it selects and every fault found in it."""
    found: dict[tuple[str, str], Row] = {}
    for node, policies in answers.by_node.items():
        for one in policies:
            row = found.setdefault(
                (one["kind"], one["name"]),
                {**one, "valid": True, "faults": [], "endpoints": [], "nodes": []},
            )
            row["valid"] = row["valid"] and one["valid"]
            row["faults"] += [fault for fault in one["faults"] if fault not in row["faults"]]
            row["endpoints"] = sorted({*row["endpoints"], *one["endpoints"]})
            row["nodes"].append(node)
    return [found[key] for key in sorted(found)]


def join_trace(answers: Answers) -> Row:
    """One verdict: each side as the node says that enforces it, or, for ends that are no pods, any node."""
    sides: dict[str, Row] = {}
    for node, said in answers.by_node.items():
        for side in said["sides"]:
            known = sides.get(side["direction"])
            if known is None or (side["here"] and not known["here"]):
                sides[side["direction"]] = {**side, "node": node}
    denied = any(side["verdict"] == "deny" for side in sides.values())
    first = next(iter(answers.by_node.values()))
    return {
        **{key: first[key] for key in ("source_identity", "target_identity", "protocol", "port")},
        "verdict": "deny" if denied else "allow",
        "sides": [
            {**{k: v for k, v in side.items() if k != "here"}, "node": side["node"] if side["here"] else None}
            for side in sides.values()
        ],
    }


def node_of(endpoints: Answers, pod: str) -> str:
    """The node that a pod (namespace/name or address) runs on. Raises `LabError` where no node has it."""
    for row in endpoints.rows():
        if pod in (row["pod"], row["address"]):
            return str(row["node"])
    raise LabError(
        f"no node has a pod {pod}",
        details=endpoints.faults,
        hint="`lab endpoints` shows the pods; they are named namespace/name",
        code=ExitCode.NOT_THERE,
    )


def join_explanations(answers: Answers) -> Row:
    """The connections of all nodes that were asked; `next` is the one node's that knows the source."""
    found = [{"node": node, **one} for node, said in answers.by_node.items() for one in said["connections"]]
    first = next(iter(answers.by_node.values()))
    return {**first, "connections": found}


def _join(answers: Answers, columns: Sequence[str], key: Callable[[Row], tuple[Any, ...]]) -> list[Row]:
    """Rows that nodes have in common, once each: `columns`, and the `nodes` that said so."""
    found: dict[tuple[Any, ...], Row] = {}
    for node, rows in answers.by_node.items():
        for one in rows:
            row = found.setdefault(key(one), {**{column: one[column] for column in columns}, "nodes": []})
            row["nodes"].append(node)
    return [found[at] for at in sorted(found)]


def flows(
    lab: Rendered, words: Sequence[str], nodes: Sequence[RenderedNode], faults: list[str]
) -> Iterator[Row]:
    """The flows of all `nodes` as they happen, each with its `node`, until every monitor has ended.

    `words` are options of `underpass monitor`. Why a monitor ended that should not have is added to
    `faults`. Closing the iterator ends the monitors.
    """
    lines: queue.SimpleQueue[tuple[RenderedNode, str | None]] = queue.SimpleQueue()
    running = {
        node.name: subprocess.Popen(
            ssh.argv(lab, node, ["underpass", "monitor", "-o", "json", *words]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in nodes
    }

    def read(node: RenderedNode) -> None:
        for line in running[node.name].stdout or ():
            lines.put((node, line))
        lines.put((node, None))

    for node in nodes:
        threading.Thread(target=read, args=(node,), daemon=True).start()
    left = len(running)
    try:
        while left:
            node, line = lines.get()
            if line is not None:
                yield {"node": node.name, **json.loads(line)}
                continue
            left -= 1
            process = running[node.name]
            _, said = process.communicate()
            if process.returncode:
                reason = (said.strip().splitlines() or [f"status {process.returncode}"])[-1]
                faults.append(f"{node.name}: {reason.removeprefix('underpass: ')}")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
