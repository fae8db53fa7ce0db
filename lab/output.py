"""Results on stdout: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Format(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def emit(data: Any, form: Format) -> None:
    """Write `data` (plain JSON data) as one document."""
    if form is Format.YAML:
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False))
    else:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write `rows` as a table; `columns` are the keys, and with a capital the headings."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.replace("_", " ").upper(), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(row.get(column))) for column in columns))
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(grid)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)
