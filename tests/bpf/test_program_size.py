"""What the programs cost the verifier is recorded; a growth of 10 % must be meant.

`UNDERPASS_RECORD=1` writes `program_sizes.json` anew. The number that the verifier walks depends on the
kernel and is compared on the kernel that it was recorded on; the number of instructions everywhere.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from datapath import libbpf
from datapath.programs import PROGRAMS
from tests.bpf.sandbox import Node

RECORD = Path(__file__).parent / "program_sizes.json"
GROWTH = 1.10
LIMIT = 1_000_000  # what the kernel allows the verifier to walk


def measure(node: Node) -> dict[str, dict[str, int]]:
    found = {}
    for program in PROGRAMS:
        fd = node.program(program.name)
        info = libbpf.program_info(fd)
        os.close(fd)
        found[program.name] = {"instructions": info.instructions, "verified": info.verified}
    return found


def test_recorded_sizes_hold(node: Node) -> None:
    now = measure(node)
    kernel = os.uname().release
    if os.environ.get("UNDERPASS_RECORD"):
        RECORD.write_text(json.dumps({"kernel": kernel, "programs": now}, indent=1) + "\n")
    record = json.loads(RECORD.read_text())
    assert set(record["programs"]) == set(now)
    grown = [
        f"{name}: {what} {old[what]} -> {now[name][what]}"
        for name, old in record["programs"].items()
        for what in ("instructions", "verified")
        if (what == "instructions" or record["kernel"] == kernel) and now[name][what] > old[what] * GROWTH
    ]
    assert not grown, "; ".join(grown)


@pytest.mark.parametrize("name", [program.name for program in PROGRAMS])
def test_the_verifiers_limit_is_far(name: str, node: Node) -> None:
    assert measure(node)[name]["verified"] < LIMIT / 4
