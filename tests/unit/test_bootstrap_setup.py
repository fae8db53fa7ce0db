"""Setting a checkout up: what is missing is done, a second time nothing is, and a kill is mended."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import bootstrap
from lab.bootstrap import SetupError, absent, check_machine, check_python
from lab.errors import ExitCode
from lab.paths import ROOT


def test_exit_statuses_are_those_of_lab() -> None:
    assert bootstrap.HOST == ExitCode.HOST
    assert bootstrap.ARTIFACT == ExitCode.ARTIFACT
    assert bootstrap.INTERRUPTED == ExitCode.INTERRUPTED


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 10)])
def test_an_old_python_is_refused_with_what_to_do(version: tuple[int, int]) -> None:
    with pytest.raises(SetupError) as refused:
        check_python(version)
    assert refused.value.code == ExitCode.HOST
    assert "3.11 or newer" in refused.value.message


@pytest.mark.parametrize("version", [(3, 11), (3, 13), (4, 0)])
def test_a_new_enough_python_is_taken(version: tuple[int, int]) -> None:
    check_python(version)


@pytest.mark.parametrize(("system", "machine"), [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_other_machines_are_refused(system: str, machine: str) -> None:
    with pytest.raises(SetupError, match=machine):
        check_machine(system, machine)


def test_packages_that_are_not_fully_installed_are_absent() -> None:
    known = "gcc installed\nbuildah config-files\nmmdebstrap half-configured\n"
    assert absent(["gcc", "buildah", "mmdebstrap", "iproute2"], known) == [
        "buildah",
        "mmdebstrap",
        "iproute2",
    ]


def test_a_host_without_apt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program != "ssh" else "/usr/bin/ssh")
    with pytest.raises(SetupError) as refused:
        bootstrap.host_packages()
    assert refused.value.code == ExitCode.HOST
    assert "systemd-nspawn" in refused.value.message
    assert "ssh," not in refused.value.message
    assert "systemd-container" in refused.value.hint


def test_a_host_without_apt_that_has_everything_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    packaging = ("apt-get", "dpkg-query")
    monkeypatch.setattr(shutil, "which", lambda program: None if program in packaging else f"/bin/{program}")
    bootstrap.host_packages()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that setup would run; none is."""
    ran: list[list[str]] = []

    def record(command: Sequence[str], title: str, hint: str, code: int) -> None:
        ran.append(list(command))
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        if "--editable" in command:
            (Path(command[-1]) / ".venv" / "bin" / "lab").touch()

    monkeypatch.setattr(bootstrap, "stream", record)
    return ran


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a lock of two packages and no .venv; an empty artifact store."""
    (tmp_path / "requirements").mkdir()
    lock = tmp_path / "requirements" / "controller.lock"
    lock.write_text("one==1 --hash=sha256:aa\ntwo==2 --hash=sha256:bb\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "LOCK", lock)
    monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNDERPASS_WHEELS", raising=False)
    return tmp_path


def test_only_what_dpkg_does_not_have_is_installed_without_a_question(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    have = "".join(f"{need.package} installed\n" for need in bootstrap.NEEDS if need.package != "buildah")
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(bootstrap, "installed", lambda packages: have)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert bootstrap.host_packages() is True
    install = commands[-1]
    assert "DEBIAN_FRONTEND=noninteractive" in install
    assert "--yes" in install
    assert install[-1] == "buildah"
    assert install[-2].startswith("--")
    commands.clear()
    monkeypatch.setattr(bootstrap, "installed", lambda packages: have + "buildah installed\n")
    assert bootstrap.host_packages() is False
    assert commands == []


@pytest.mark.parametrize("asked", ["1", "core", "0", ""])
def test_what_virtual_machines_need_is_installed_where_it_is_asked_for(
    checkout: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    have = "".join(f"{need.package} installed\n" for need in bootstrap.NEEDS)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(bootstrap, "installed", lambda packages: have)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv(bootstrap.VMS, asked)
    assert bootstrap.main() == 0
    assert bootstrap.machine_packages() is True
    commands.pop()
    wanted = [need.package for need in bootstrap.VM_NEEDS]
    assert [command[-len(wanted) :] for command in commands].count(wanted) == (asked in ("1", "core"))


def test_a_python_without_ensurepip_gets_its_package(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    have = "".join(f"{need.package} installed\n" for need in bootstrap.NEEDS)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(bootstrap, "installed", lambda packages: have)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bootstrap.host_packages()
    assert commands[-1][-1] == "python3-venv"


def test_setup_makes_a_venv_from_the_lock_with_hashes_and_wheels_alone(
    checkout: Path, commands: list[list[str]]
) -> None:
    assert bootstrap.environment() is True
    venv, locked, project = commands
    assert venv[-2:] == ["venv", str(checkout / ".venv")]
    assert {"--require-hashes", "--only-binary=:all:", "--no-deps"} <= set(locked)
    assert {"--no-index", "--no-build-isolation", "--editable"} <= set(project)


def test_a_second_setup_does_nothing(checkout: Path, commands: list[list[str]]) -> None:
    bootstrap.environment()
    commands.clear()
    assert bootstrap.environment() is False
    assert commands == []


@pytest.mark.parametrize("file", ["requirements/controller.lock", "pyproject.toml"])
def test_a_changed_lock_or_project_is_installed_into_the_same_venv(
    checkout: Path, commands: list[list[str]], file: str
) -> None:
    bootstrap.environment()
    mark = checkout / ".venv" / "kept"
    mark.touch()
    commands.clear()
    with (checkout / file).open("a") as open_file:
        open_file.write("# changed\n")
    assert bootstrap.environment() is True
    assert mark.exists()
    assert not [command for command in commands if "venv" in command]
    assert [command for command in commands if "--require-hashes" in command]


def test_what_a_kill_left_half_installed_is_made_anew(checkout: Path, commands: list[list[str]]) -> None:
    bootstrap.environment()
    broken = checkout / ".venv" / "lib" / "half"
    broken.parent.mkdir()
    broken.touch()
    (checkout / ".venv" / bootstrap.UNFINISHED).touch()
    commands.clear()
    assert bootstrap.environment() is True
    assert not broken.exists()
    assert any("venv" in command for command in commands)
    assert not (checkout / ".venv" / bootstrap.UNFINISHED).exists()


def test_a_failure_in_the_middle_marks_the_venv_as_unfinished(
    checkout: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_registry(*_: object) -> None:
        raise SetupError("pip install failed", "see the network", bootstrap.ARTIFACT)

    monkeypatch.setattr(bootstrap, "install", no_registry)
    with pytest.raises(SetupError):
        bootstrap.environment()
    assert (checkout / ".venv" / bootstrap.UNFINISHED).exists()
    assert bootstrap.stamp(checkout / ".venv") == {}


@pytest.mark.parametrize("field", ["python", "place"])
def test_a_venv_of_another_python_or_place_is_made_anew(
    checkout: Path, commands: list[list[str]], field: str
) -> None:
    bootstrap.environment()
    stamp = checkout / ".venv" / bootstrap.STAMP
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), field: "another"}))
    commands.clear()
    assert bootstrap.environment() is True
    assert any("venv" in command for command in commands)


def test_wheels_that_are_named_are_used_and_no_registry_is_asked(
    checkout: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = checkout / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("UNDERPASS_WHEELS", str(wheels))
    bootstrap.environment()
    (locked,) = [command for command in commands if "--require-hashes" in command]
    assert {"--no-index", f"--find-links={wheels}"} <= set(locked)


def test_named_wheels_that_are_not_there_are_an_error(
    checkout: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERPASS_WHEELS", str(checkout / "nowhere"))
    with pytest.raises(SetupError, match="no folder"):
        bootstrap.environment()


def stored(checkout: Path, key: str, *, whole: bool = True) -> Path:
    wheels = checkout / "cache" / "store" / f"controller-wheels-{key}" / "wheels"
    wheels.mkdir(parents=True)
    if whole:
        wheels.parent.with_name(f"{wheels.parent.name}.json").touch()
    return wheels


def test_wheels_in_the_artifact_store_are_preferred(checkout: Path, commands: list[list[str]]) -> None:
    wheels = stored(checkout, "0123456789abcdef")
    stored(checkout, "00000000deadbeef", whole=False)
    bootstrap.environment()
    (locked,) = [command for command in commands if "--require-hashes" in command]
    assert {"--no-index", f"--find-links={wheels}"} <= set(locked)


def test_the_registry_is_asked_where_the_stored_wheels_do_not_fit(
    checkout: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(checkout, "0123456789abcdef")
    sources: list[list[str]] = []

    def install(python: Path, source: Sequence[str], hint: str) -> None:
        sources.append(list(source))
        if source:
            raise SetupError("no matching distribution", "", bootstrap.ARTIFACT)

    monkeypatch.setattr(bootstrap, "install", install)
    bootstrap.environment()
    assert sources[0][0] == "--no-index"
    assert sources[1:] == [[]]


def test_a_program_that_fails_is_shown_with_its_command_and_the_tail_of_its_output() -> None:
    script = "import sys; print('\\n'.join(map(str, range(100)))); sys.exit(3)"
    with pytest.raises(SetupError) as failed:
        bootstrap.stream([sys.executable, "-c", script], "the program", "try again", 5)
    assert failed.value.message == "the program failed with status 3"
    assert failed.value.code == 5
    assert failed.value.details[0].startswith("command: ")
    assert failed.value.details[-1] == "99"
    assert len(failed.value.details) == bootstrap.TAIL + 1


def test_a_program_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(SetupError, match="cannot start /nonexistent"):
        bootstrap.stream(["/nonexistent"], "the program", "install it", 4)


def test_errors_have_no_trace_and_their_status(tmp_path: Path) -> None:
    copy = tmp_path / "lab" / "bootstrap.py"
    copy.parent.mkdir()
    shutil.copyfile(ROOT / "lab" / "bootstrap.py", copy)
    done = subprocess.run(
        [sys.executable, "-I", str(copy)], capture_output=True, text=True, check=False, env={"PATH": "/none"}
    )
    assert done.returncode == ExitCode.HOST
    assert "what to do" in done.stderr
    assert "Traceback" not in done.stderr


def test_bootstrap_needs_nothing_but_the_standard_library() -> None:
    script = "import sys, runpy; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; "
    script += f"runpy.run_path({str(ROOT / 'lab' / 'bootstrap.py')!r}, run_name='read'); "
    script += "print([name for name in sys.modules if name.partition('.')[0] in ('lab', 'pydantic', 'yaml')])"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
