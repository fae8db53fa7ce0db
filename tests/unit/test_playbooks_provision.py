"""Running a playbook: steps, changes, faults, interruptions; and the action that roles place files with.

With real Ansible and real playbooks, on "nodes" that are this machine, below a folder of the test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import provision, render, ssh
from lab.errors import ExitCode, LabError
from lab.labfile import parse
from lab.paths import ROOT
from lab.render import Rendered
from lab.steps import Steps

LAB = "apiVersion: underpass.dev/v1\nkind: Lab\nid: play\nistio: {enabled: false}\n"
ARTIFACTS = {"images": "/opt/underpass/store/images-0123456789abcdef"}
PLUGINS = ("library", "action_plugins", "module_utils", "ansible.cfg")

Play = Callable[..., provision.Result]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rendered:
    """A lab whose nodes are reached without ssh, and whose playbooks are the test's."""
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ssh, "SOCKETS", tmp_path / "sockets")
    monkeypatch.setattr(provision, "PLAYBOOKS", tmp_path / "playbooks")
    (tmp_path / "playbooks").mkdir()
    for name in PLUGINS:
        (tmp_path / "playbooks" / name).symlink_to(ROOT / "playbooks" / name)
    parsed, _ = parse(LAB)
    assert parsed is not None
    lab = render.render(parsed)
    render.write(lab, LAB, ARTIFACTS)
    inventory = yaml.safe_load((lab.folder / "inventory.yaml").read_text())
    inventory["all"]["vars"].update(
        ansible_connection="local", ansible_python_interpreter=sys.executable, root=str(tmp_path / "node")
    )
    (lab.folder / "inventory.yaml").write_text(yaml.safe_dump(inventory))
    index = tmp_path / "cache" / "store" / "images-0123456789abcdef" / "index.json"
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"pause.tar": "example.org/pause:1"}))
    return lab


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(logs=tmp_path / "logs")


@pytest.fixture
def play(lab: Rendered, steps: Steps, tmp_path: Path) -> Play:
    """Run a playbook that is given as text."""

    def run(text: str, **options: Any) -> provision.Result:
        (tmp_path / "playbooks" / "play.yaml").write_text(textwrap.dedent(text))
        with steps.step("provision", "Provision"):
            return provision.provision(lab, "play.yaml", steps, **options)

    return run


def test_plays_are_steps_and_changes_are_listed(play: Play, steps: Steps, tmp_path: Path) -> None:
    text = """
        - name: First
          hosts: nodes
          gather_facts: false
          tasks:
            - name: Say what the images are called
              ansible.builtin.debug:
                var: underpass_images.pause
        - name: Second
          hosts: control_plane
          gather_facts: false
          tasks:
            - name: Write a file
              ansible.builtin.copy:
                dest: "{{ root }}.txt"
                content: x
                mode: "0600"
        """
    assert play(text, check=True).what == ("node-1: Write a file",)
    assert not (tmp_path / "node.txt").exists()
    assert play(text).what == ("node-1: Write a file",)
    assert play(text).changed == 0
    titles = [(step.depth, step.title, step.status) for step in steps.all][-3:]
    assert titles == [(0, "Provision", "done"), (1, "First", "done"), (1, "Second", "done")]
    log = steps.all[-2].log
    assert log and "example.org/pause:1" in log.read_text()


def test_a_failed_task_is_a_fault_that_says_where_why_and_what_to_paste(play: Play, steps: Steps) -> None:
    with pytest.raises(LabError) as fault:
        play(
            """
            - name: Only
              hosts: nodes
              gather_facts: false
              tasks:
                - name: Break
                  ansible.builtin.fail:
                    msg: the reason
                  when: inventory_hostname == 'node-2'
            - name: Never
              hosts: nodes
              gather_facts: false
            """
        )
    assert fault.value.code is ExitCode.PROVISION
    assert "node-2: Break: failed" in fault.value.message
    assert "the reason" in fault.value.details
    assert any("ansible-playbook play.yaml --inventory" in line for line in fault.value.details)
    assert [(step.title, step.status) for step in steps.all] == [("Provision", "failed"), ("Only", "failed")]


def test_a_playbook_that_cannot_be_read_is_a_fault(play: Play) -> None:
    with pytest.raises(LabError) as fault:
        play("- hosts: nodes\n  tasks: [nonsense: {}]\n")
    assert fault.value.code is ExitCode.PROVISION
    assert "nonsense" in " ".join(fault.value.details)


def test_images_that_are_not_in_the_store_are_a_fault(play: Play, tmp_path: Path) -> None:
    (tmp_path / "cache/store/images-0123456789abcdef/index.json").unlink()
    with pytest.raises(LabError) as fault:
        play("- name: Never\n  hosts: nodes\n")
    assert fault.value.code is ExitCode.ARTIFACT


PART = """
    - name: Place
      hosts: control_plane
      gather_facts: false
      roles:
        - role: app
    """


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A role that places files of every kind; its folder."""
    role = tmp_path / "playbooks" / "roles" / "app"
    sources = {
        "templates/etc/app/conf.j2": "{% for n in [1, 2] %}\nn = {{ n }}\n{% endfor %}\n"
        "id = {{ underpass_lab.id }}\n",
        "files/usr/bin/tool": "#!/bin/sh\necho '{{ not a template }}'\n",
        "tasks/main.yaml": """
            - name: Place the app
              underpass_part:
                name: app
                root: "{{ root }}"
                directories: {/etc/app: "0700"}
                links: {/usr/bin/alias: tool}
                files: {/etc/app/the.key: "{{ role_path }}/key"}
                secrets: ["*.key"]
            """,
        "key": "the-secret-itself",
    }
    for name, text in sources.items():
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / name).write_text(textwrap.dedent(text).lstrip() if name.endswith("yaml") else text)
    (role / "files/usr/bin/tool").chmod(0o755)
    return role


def test_a_role_places_its_tree(play: Play, app: Path, lab: Rendered, tmp_path: Path) -> None:
    node = tmp_path / "node"
    assert play(PART).what == ("node-1: Place the app",)
    assert (node / "etc/app/conf").read_text() == f"n = 1\nn = 2\nid = {lab.id}\n"
    assert (node / "usr/bin/tool").read_text() == (app / "files/usr/bin/tool").read_text()
    modes = {name: oct((node / name).stat().st_mode & 0o7777) for name in ("etc/app", "etc/app/conf")}
    assert modes == {"etc/app": "0o700", "etc/app/conf": "0o644"}
    assert (node / "usr/bin/alias").stat().st_mode & 0o7777 == 0o755
    assert (node / "etc/app/the.key").stat().st_mode & 0o7777 == 0o600
    assert play(PART).changed == 0
    assert play(PART, check=True).changed == 0


def test_no_log_holds_a_secret_that_was_placed(play: Play, app: Path, lab: Rendered, tmp_path: Path) -> None:
    play(PART, check=True)
    play(PART)
    (tmp_path / "node/etc/app/the.key").write_text("the-old-secret")
    play(PART, check=True)
    kept = [path for place in (lab.folder / "ansible", tmp_path / "logs") for path in place.rglob("*")]
    texts = [path.read_text(errors="replace") for path in kept if path.is_file()]
    assert any("Place the app" in text for text in texts)
    assert [text for text in texts if "the-secret-itself" in text or "the-old-secret" in text] == []


def test_an_undefined_variable_in_a_template_is_a_fault(play: Play, app: Path, tmp_path: Path) -> None:
    (app / "templates/etc/app/conf.j2").write_text("{{ nobody.knows.this }}\n")
    with pytest.raises(LabError) as fault:
        play(PART)
    assert "nobody" in " ".join(fault.value.details)
    assert not (tmp_path / "node").exists()


SLOW = """
    - name: Slow
      hosts: control_plane
      gather_facts: false
      tasks:
        - name: Tell who runs it, and stay
          ansible.builtin.shell: echo $PPID > {{ root }}.started; sleep 300
          changed_when: false
    """


def _until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return answer


def _playbooks_at_work(lab: Rendered) -> list[int]:
    """The processes of ansible-playbook that work on the lab's inventory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(lab.folder / "inventory.yaml") in words:
            found.append(int(folder.name))
    return found


PROGRAM = """
import sys
from pathlib import Path
from lab import provision, render, ssh
from lab.steps import Steps
provision.PLAYBOOKS = Path(sys.argv[1])
ssh.SOCKETS = Path(sys.argv[2])
lab = render.read("play")
steps = Steps()
with steps.step("provision", "Provision"):
    provision.provision(lab, "play.yaml", steps)
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, None), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_playbook_outlives_the_command_that_started_it(
    lab: Rendered, tmp_path: Path, number: signal.Signals, status: int | None
) -> None:
    (tmp_path / "playbooks" / "play.yaml").write_text(textwrap.dedent(SLOW))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "playbooks"), str(tmp_path / "sockets")]
    process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    try:
        _until((tmp_path / "node.started").exists, "the task did not start")
        assert _playbooks_at_work(lab)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == status if status is not None else "KeyboardInterrupt" in err
        _until(lambda: not _playbooks_at_work(lab), "the playbook still runs", 10)
    finally:
        process.kill()
        process.wait()
