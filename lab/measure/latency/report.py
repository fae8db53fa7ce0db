"""The folder of a run: JSON, CSV, pictures, and a page for people."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.measure import sidecars
from lab.measure.latency import plot, post
from lab.measure.latency.result import GRAPH_SIZE, Row, figures, table

_HERE = Path(__file__).parent


def document(
    rows: Sequence[Row],
    *,
    machine: Mapping[str, Any],
    size: Mapping[str, Any],
    versions: Mapping[str, str],
    checked: Mapping[str, bool | None],
    notes: Sequence[str],
    breakdown: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """All of a run as plain data: ratios first."""
    return {
        "machine": dict(machine),
        "size": dict(size),
        "versions": dict(versions),
        "accelerated": dict(checked),
        "notes": list(notes),
        "figures": figures(rows) + sidecars.figures(rows),
        "medians": table(rows),
        "breakdown": list(breakdown),
        "post": {
            path: {f"p{share:g}": us for share, us in row.items()} for path, row in post.FIGURES.items()
        },
        "rows": [row.to_dict() for row in rows],
    }


def write(folder: Path, whole: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Write `result.json`, `result.csv`, the pictures and `report.html` into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    with (folder / "result.csv").open("w", encoding="utf-8", newline="") as file:
        lines = [_flat(row) for row in rows]
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
    pictures = plot.draw(rows, on(whole["machine"]), folder)
    (folder / "report.html").write_text(page(whole, pictures), encoding="utf-8")
    return [folder / name for name in ("report.html", "result.json", "result.csv", *pictures)]


def page(whole: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # few commands need it

    templates = Environment(loader=FileSystemLoader(_HERE), undefined=StrictUndefined, autoescape=True)
    shown = {**whole, "pictures": pictures, "on": on(whole["machine"]), "graph_size": GRAPH_SIZE}
    return templates.get_template("report.html.j2").render(shown)


def on(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    name = machine["cpu"] or machine["machine"]
    return (
        f"{name}, {machine['cpus']} CPUs, kernel {machine['kernel']}, TCP by {machine['congestion_control']}"
    )


def _flat(row: Row) -> dict[str, Any]:
    plain = row.to_dict()
    shares = plain.pop("percentiles")
    return {**plain, **{f"p{share}": us for share, us in shares.items()}}
