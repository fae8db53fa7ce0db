"""One module at a time on a node, also where a run was cut off and its last module goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.paths import ROOT
from tests.unit.test_playbooks_tree import code

turn = code("underpass_turn")

HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from underpass_turn import take
take(0, sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def _holder(root: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(ROOT / "playbooks" / "module_utils"), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_module_waits_for_the_one_before_it_and_says_so_where_that_does_not_end(tmp_path: Path) -> None:
    with _holder(tmp_path) as holder:
        with pytest.raises(turn.NoTurn, match="still at work"):
            turn.take(0.3, str(tmp_path))
        holder.kill()
    turn.take(0.3, str(tmp_path))


def test_the_turn_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    with _holder(tmp_path) as holder:
        assert holder.stdin
        holder.stdin.close()
        turn.take(10, str(tmp_path))
