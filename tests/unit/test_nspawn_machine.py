"""The command line of a node, its console, and waiting."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.labfile import LabFile
from lab.providers.base import STORE_ON_NODE
from lab.providers.nspawn import mounts
from lab.providers.nspawn.launch import KEEP_TAIL
from lab.providers.nspawn.machine import ENVIRONMENT, argv
from lab.render import render
from lab.retry import until
from lab.ssh import clean

LAB = render(LabFile.model_validate({"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "unit"}))
NODE = LAB.nodes[0]


def test_a_node_gets_its_own_names_root_and_network() -> None:
    line = argv(NODE, Path("/lab/root"), {}, Path("/cache/store"))
    assert f"--machine={NODE.machine}" in line
    assert f"--hostname={NODE.name}" in line
    assert "--directory=/lab/root" in line
    assert f"--network-namespace-path=/run/netns/{NODE.machine}" in line


def test_the_store_is_bound_read_only_and_data_directories_are_not() -> None:
    line = argv(NODE, Path("/lab/root"), {Path("/lab/etcd"): "/var/lib/etcd"}, Path("/cache/store"))
    assert f"--bind-ro=/cache/store:{STORE_ON_NODE}" in line
    assert "--bind=/lab/etcd:/var/lib/etcd" in line


def test_a_colon_in_a_path_does_not_end_it() -> None:
    line = argv(NODE, Path("/r"), {Path("/a:b\\c"): "/d"}, Path("/s"))
    assert "--bind=/a\\:b\\\\c:/d" in line


def test_nspawn_inherits_nothing_of_the_callers_environment() -> None:
    assert "HOME" not in ENVIRONMENT
    assert ENVIRONMENT["SYSTEMD_NSPAWN_API_VFS_WRITABLE"] == "network"


def test_the_console_is_shown_without_control_characters() -> None:
    shown = clean("\x1b[0;32m  OK  \x1b[0m] Started\r\n\x1b]0;title\x07login:\x1b[?2004h \x08x\ttab\n")
    assert shown == "  OK  ] Started\nlogin: x\ttab\n"


def test_a_flood_on_the_console_is_kept_to_its_tail(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    flood = "".join(f"line {number}\n" for number in range(20_000))
    copier = ["sh", "-c", KEEP_TAIL, "console", str(log), "4096"]
    subprocess.run(copier, input=flood, text=True, check=True, timeout=60)
    older = tmp_path / "console.log.old"
    kept = older.read_text() + log.read_text()
    assert flood.endswith(kept)
    assert 4096 <= len(kept) <= 2 * 4096
    assert sorted(path.name for path in tmp_path.iterdir()) == ["console.log", "console.log.old"]


def test_a_short_console_is_kept_whole(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    subprocess.run(
        ["sh", "-c", KEEP_TAIL, "console", str(log), "4096"], input="hello\n", text=True, check=True
    )
    assert log.read_text() == "hello\n"


def test_waiting_ends_with_the_condition_or_the_deadline() -> None:
    answers = iter([False, False, True])
    assert until(lambda: next(answers), 5)
    assert not until(lambda: False, 0.05)


def test_mounts_below_a_folder_are_found_innermost_first() -> None:
    table = "\n".join(
        f"{number} 1 0:1 / {point} rw - tmpfs none rw"
        for number, point in enumerate(["/", "/lab/a", "/lab/a/in\\040ner", "/labor"])
    )
    assert mounts.below(Path("/lab"), table) == [Path("/lab/a/in ner"), Path("/lab/a")]
