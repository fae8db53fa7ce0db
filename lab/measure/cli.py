"""Commands that measure. Each states machine, kernel and size, and prints what was measured."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lab import paths
from lab import render as rendering
from lab.busy import alone
from lab.cli.context import Context, become_root
from lab.errors import ExitCode, die
from lab.labfile import load
from lab.measure import agent_cost, bring_up, network, sidecars
from lab.measure.latency import report
from lab.measure.latency import run as latency
from lab.measure.latency.paths import WAYS
from lab.measure.latency.result import table as table_of
from lab.measure.machine import machine
from lab.measure.workload import cluster_of, prepare
from lab.output import Format, emit, table

app = typer.Typer(help="Measure, on this machine, what the project promises.", no_args_is_help=True)

LAB_ID = "measure"


@app.callback()
def options() -> None:
    """A callback, so that a single command keeps its name."""


@app.command("bring-up")
def bring_up_(
    context: typer.Context,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How many lives of the lab.")] = 3,
    settle: Annotated[float, typer.Option(min=0, help="Seconds of rest before memory is read.")] = 30,
) -> None:
    """A build of nothing, up, up again, stop and start of a lab, and its memory when idle.

    The lab is made for it and removed: that of `-f FILE`, else the project's under the id `measure`.
    """
    become_root()
    chosen: Context = context.obj
    with tempfile.TemporaryDirectory() as folder:
        file = chosen.file or Path(folder) / "lab.yaml"
        if not chosen.file:
            text = (paths.ROOT / "lab.yaml").read_text(encoding="utf-8")
            file.write_text(text.replace("id: demo", f"id: {LAB_ID}"), encoding="utf-8")
        lab_id = load(file).id
        with alone(lab_id):
            if rendering.read(lab_id):
                hint = f"`lab down --lab {lab_id}` removes it"
                die(f"lab {lab_id} exists already", hint=hint, code=ExitCode.BUSY)
            rows = bring_up.measure(
                file, lambda: chosen.steps(chosen.logs_of(lab_id, "measure")), rounds, settle
            )
    if chosen.output is not Format.TABLE:
        emit({"machine": machine(), "rounds": rounds, "figures": rows}, chosen.output)
        return
    print(f"{_on()}, {rounds} rounds")
    table(rows, ["name", "unit", "median", "least", "most", "target", "met"])


@app.command("network")
def network_(
    context: typer.Context,
    areas: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(network.AREAS)}; all if absent.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The sizes that are promised; takes half an hour.")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="One round of little: does it work at all?")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=99, help="Interleaved rounds.")] = None,
) -> None:
    """The network of a running lab beside a plain bridge and VXLAN; policy, pods, Services, the agent."""
    become_root()
    chosen: Context = context.obj
    wanted = tuple(areas or network.AREAS)
    if unknown := sorted(set(wanted) - set(network.AREAS)):
        die(
            f"nothing to measure is called {', '.join(unknown)}",
            hint=f"known: {', '.join(network.AREAS)}",
            code=ExitCode.USAGE,
        )
    if full and tiny:
        die("--full and --tiny exclude each other", code=ExitCode.USAGE)
    lab = chosen.lab()
    size = network.FULL if full else network.TINY if tiny else network.QUICK
    if rounds:
        size = replace(size, rounds=rounds)
    with alone(lab.id):
        steps = chosen.steps(chosen.logs_of(lab.id, "measure"))
        rows = network.measure(lab, prepare(lab, steps), steps, size, wanted)
    if chosen.output is not Format.TABLE:
        emit({"machine": machine(), "size": asdict(size), "figures": rows}, chosen.output)
        return
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(size).items())
    print(f"{_on()}\n{sizes}\n")
    table(rows, ["name", "value", "unit", "least", "most", "samples", "target", "met"])


@app.command("latency")
def latency_(
    context: typer.Context,
    into: Annotated[Path, typer.Option("--into", help="The folder for the results.")] = Path("latency"),
    quick: Annotated[bool, typer.Option("--quick", help="Under two minutes: the graph.")] = False,
    full: Annotated[bool, typer.Option("--full", help="More rounds and sizes.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="One round: does it work at all?")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=99, help="Interleaved rounds.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="Only this path; may be given again.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help=f"Only this, of {', '.join(latency.PARTS)}; may be given again.")
    ] = None,
) -> None:
    """The graph: latency by percentile, directly, redirected in the kernel, and through real proxies."""
    become_root()
    chosen: Context = context.obj
    if sum((quick, full, tiny)) > 1:
        die("--quick, --full and --tiny exclude each other", code=ExitCode.USAGE)
    known = [*(way.name for way in WAYS), sidecars.NAME]
    if unknown := sorted(set(path or []) - set(known)):
        die(f"no path is called {', '.join(unknown)}", hint=f"known: {', '.join(known)}", code=ExitCode.USAGE)
    lab = chosen.lab()
    size = latency.QUICK if quick else latency.FULL if full else latency.TINY if tiny else latency.USUAL
    if unknown := sorted(set(part or []) - set(latency.PARTS)):
        die(
            f"no part is called {', '.join(unknown)}",
            hint=f"known: {', '.join(latency.PARTS)}",
            code=ExitCode.USAGE,
        )
    size = latency.only(size, part or (), rounds)
    with alone(lab.id):
        steps = chosen.steps(chosen.logs_of(lab.id, "measure"))
        facts = machine()
        cluster = prepare(lab, steps)
        found = latency.Outcome()
        if set(path or known) - {sidecars.NAME}:
            found = latency.measure(lab, cluster, steps, size, path or [])
        mesh = sidecars.Found()
        if size.rounds and (sidecars.NAME in path if path else lab.istio_version):
            mesh = sidecars.measure(lab, cluster, steps, size.rounds, size.seconds)
            found.rows += mesh.rows
        whole = report.document(
            found.rows,
            machine=facts,
            size=asdict(size),
            versions=found.versions,
            checked=found.checked,
            notes=found.notes,
            breakdown=sidecars.breakdown(mesh),
        )
        written = report.write(into, whole, found.rows)
    if chosen.output is not Format.TABLE:
        emit({"files": [str(file) for file in written], **whole}, chosen.output)
        return
    print(f"{_on()}, {size.rounds or size.sweep_rounds or size.stream_rounds} rounds\n")
    table(whole["figures"], ["mode", "name", "value", "unit", "least", "most", "samples", "target", "met"])
    _breakdown(whole["breakdown"])
    print("".join(f"\n{note}" for note in found.notes))
    print(f"\n{written[0]}")


@app.command()
def footprint(context: typer.Context) -> None:
    """Memory of every component of a running lab, by node; shared pages are counted once over all."""
    become_root()
    chosen: Context = context.obj
    lab = chosen.lab()
    rows = agent_cost.footprint(lab, cluster_of(lab))
    sums = {
        node.name: round(sum(row["mib"] for row in rows if row["node"] == node.name), 1) for node in lab.nodes
    }
    if chosen.output is not Format.TABLE:
        emit({"machine": machine(), "mib": sums, "components": rows}, chosen.output)
        return
    table([row for row in rows if row["mib"] >= 1], ["node", "kind", "component", "process", "count", "mib"])
    print("\n" + ", ".join(f"{name}: {total:g} MiB" for name, total in sums.items()))


@app.command("sidecars")
def sidecars_(
    context: typer.Context,
    rounds: Annotated[int, typer.Option(min=1, max=99, help="Rounds of each path, taking turns.")] = 9,
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Seconds of a path in a round.")] = 1,
) -> None:
    """The part of `latency` about Istio alone: a request through two sidecars, plain and accelerated."""
    become_root()
    chosen: Context = context.obj
    lab = chosen.lab()
    with alone(lab.id):
        steps = chosen.steps(chosen.logs_of(lab.id, "measure"))
        found = sidecars.measure(lab, prepare(lab, steps), steps, rounds, seconds)
    lines, medians, parts = sidecars.figures(found.rows), table_of(found.rows), sidecars.breakdown(found)
    if chosen.output is not Format.TABLE:
        whole = {"machine": machine(), "id": lab.id, "figures": lines, "medians": medians, "breakdown": parts}
        emit({**whole, "rows": [row.to_dict() for row in found.rows]}, chosen.output)
        return
    print(f"{_on()}, {rounds} rounds of {seconds} s; microseconds\n")
    table(medians, ["path", "p50", "p75", "p90", "p99", "p50_least", "p50_most", "rate", "cpu_us", "errors"])
    print()
    table(lines, ["name", "value", "unit", "least", "most", "samples", "target", "met"])
    _breakdown(parts)


def _breakdown(parts: list[dict[str, Any]]) -> None:
    if parts:
        print("\nwhere the time of a request through two sidecars goes, microseconds")
        table(parts, ["path", "where", "us", "own_us", "kernel_us"])


def _on() -> str:
    """The machine, in one line."""
    facts = machine()
    return f"{facts['cpus']} CPUs ({facts['cpu']}), kernel {facts['kernel']}, load {facts['load']}"
