"""Set a checkout up: host packages, `.venv` with the locked Python packages, the `lab` command.

Run by `make setup` as ``python3 -I lab/bootstrap.py``, before anything is installed: standard library
only, and it parses on Python 3.7, so that it can say that a Python is too old. Running it again does
what is missing and nothing else; a kill at any moment is mended by the next run.

Exit statuses are those of `lab` (docs/exit-codes.md): 4 for the host, 5 for a registry or a wrong hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "controller.lock"
PYTHON_LEAST = (3, 11)

#: In `.venv`: says what it was made from. Written last.
STAMP = "underpass.json"
#: In `.venv`: there while packages are being installed; what a kill leaves is not to be trusted.
UNFINISHED = "underpass.unfinished"

HOST, ARTIFACT, INTERRUPTED = 4, 5, 130  # of lab.errors.ExitCode, which is not importable yet
TAIL = 15  # lines of a failed program's output that are shown,
WIDTH = 300  # and how much of each
BEAT = 10.0  # seconds between signs of life


class Need(NamedTuple):
    """A Debian package that the host must have, and a program of it whose running proves it."""

    package: str
    program: tuple[str, ...]
    purpose: str


#: Everything beyond Debian's essential packages that this project starts on the host.
NEEDS = (
    Need("systemd-container", ("systemd-nspawn", "--version"), "runs the nodes"),
    Need("openssh-client", ("ssh", "-V"), "reaches the nodes"),
    Need("iproute2", ("ip", "-V"), "shows the host's network in reports"),
    Need("mmdebstrap", ("mmdebstrap", "--version"), "builds the node image"),
    Need("debian-archive-keyring", (), "checks the signatures of the node image's packages"),
    Need("ca-certificates", (), "checks the registries' certificates"),
    Need("buildah", ("buildah", "--version"), "builds container images"),
    Need("gcc", ("gcc", "--version"), "builds the pause container"),
    Need("libc6-dev", (), "builds the pause container"),
    Need("zstd", ("zstd", "--version"), "compresses bundles"),
    Need("shellcheck", ("shellcheck", "--version"), "checks shell scripts in the test suite"),
    Need("libbpf1", (), "reads BPF maps in the test suite"),
    Need("nftables", ("nft", "--version"), "makes firewalls for the test suite"),
)

#: What virtual machines need on top. Installed where they are asked for (`VMS=1`), and for the whole suite.
VM_NEEDS = (
    Need("vagrant", ("vagrant", "--version"), "runs virtual machines"),
    Need("vagrant-libvirt", (), "lets Vagrant speak to libvirt"),
    Need("libvirt-daemon-system", ("libvirtd", "--version"), "runs virtual machines"),
    Need("libvirt-clients", ("virsh", "--version"), "asks libvirt"),
    Need("qemu-system-x86", ("qemu-system-x86_64", "--version"), "runs virtual machines"),
    Need("qemu-utils", ("qemu-img", "--version"), "builds the machines' box"),
    Need("dnsmasq-base", ("dnsmasq", "--version"), "gives machines the address that Vagrant finds them by"),
    Need("iptables", ("iptables", "--version"), "libvirt calls it"),
    Need("e2fsprogs", ("mkfs.ext4", "-V"), "makes the machines' disks"),
    Need("grub-pc-bin", (), "boots the machines"),
    Need("grub-common", ("grub-mkimage", "--version"), "boots the machines"),
)
#: The environment variable that asks for them: by anything but nothing and `0`.
VMS = "UNDERPASS_VMS"


class SetupError(Exception):
    """Setup cannot go on: what happened, what to do, exit status, and the tail of a program's output."""

    def __init__(self, message: str, hint: str, code: int = HOST, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.details = list(details)


def die(message: str, hint: str, code: int = HOST) -> NoReturn:
    raise SetupError(message, hint, code)


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


def main() -> int:
    began = time.monotonic()
    try:
        check_python(sys.version_info[:2])
        check_machine(platform.system(), platform.machine())
        with alone():
            changed = host_packages()
            if os.environ.get(VMS, "0") not in ("", "0"):
                changed |= machine_packages()
            changed |= environment()
    except SetupError as fault:
        say(fault.message)
        for line in fault.details:
            sys.stderr.write(f"  {line}\n")
        sys.stderr.write(f"  what to do: {fault.hint}\n")
        return fault.code
    except KeyboardInterrupt:
        say("interrupted; the same command again goes on from here")
        return INTERRUPTED
    except OSError as fault:
        say(f"{fault.filename or 'the host'}: {fault.strerror or fault}")
        sys.stderr.write("  what to do: see that you may write to the checkout and that the disk has room\n")
        return HOST
    word = "ready" if changed else "nothing to do"
    say(f"{word} ({time.monotonic() - began:.1f} s); the command is .venv/bin/lab")
    return 0


def check_python(version: tuple[int, ...]) -> None:
    if tuple(version) < PYTHON_LEAST:
        least = ".".join(map(str, PYTHON_LEAST))
        die(
            f"Python {'.'.join(map(str, version))} is too old; {least} or newer is needed",
            f"Debian 12 and newer have it; elsewhere: make PYTHON=/path/to/python{least}",
        )


def check_machine(system: str, machine: str) -> None:
    if (system, machine) != ("Linux", "x86_64"):
        die(
            f"this is {system} on {machine}; Underpass runs on Linux on amd64 (x86_64)",
            "use an amd64 machine or virtual machine with Debian 13",
        )


@contextmanager
def alone() -> Iterator[None]:
    """One setup of this checkout at a time; the kernel drops the lock with its process."""
    handle = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup of this checkout is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# The host's packages


def host_packages() -> bool:
    """What the host needs; whether any of it was installed now."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-query")):
        missing = [need for need in NEEDS if need.program and not shutil.which(need.program[0])]
        if missing:
            programs = ", ".join(need.program[0] for need in missing)
            packages = " ".join(need.package for need in missing)
            die(
                f"this host has no apt, and lacks: {programs}",
                f"install them with its own package manager (Debian calls the packages: {packages})",
            )
        return False
    wanted = [need.package for need in NEEDS]
    if importlib.util.find_spec("ensurepip") is None:
        wanted.append("python3-venv")
    missing_packages = absent(wanted, installed(wanted))
    if not missing_packages:
        return False
    say(f"installing {len(missing_packages)} host packages: {' '.join(missing_packages)}")
    apt(missing_packages)
    return True


def machine_packages() -> bool:
    """What virtual machines need. A host that cannot have it is not refused: the lab runs without."""
    lacking = absent([need.package for need in VM_NEEDS], installed([need.package for need in VM_NEEDS]))
    if not lacking:
        return False
    if not (shutil.which("apt-get") and shutil.which("dpkg-query")):
        say(f"this host has no apt; virtual machines need: {' '.join(lacking)}")
        return False
    say(f"installing {len(lacking)} host packages for virtual machines: {' '.join(lacking)}")
    try:
        apt(lacking)
        return True
    except SetupError as fault:
        say(f"{fault.message}: labs of virtual machines will not run here; what to do: {fault.hint}")
        return False


def installed(packages: Sequence[str]) -> str:
    """What dpkg knows of `packages`: lines of name and status."""
    shown = "${Package} ${db:Status-Status}\\n"
    done = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={shown}", *packages],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,  # it fails where it knows nothing of one
    )
    return done.stdout


def absent(wanted: Sequence[str], known: str) -> list[str]:
    """Those of `wanted` that dpkg-query's answer does not show as installed."""
    there = {line.split()[0] for line in known.splitlines() if line.split()[1:] == ["installed"]}
    return [package for package in wanted if package not in there]


def apt(packages: Sequence[str]) -> None:
    hint = (
        "the lines above are apt's; see that `apt-get update` works here, then run the same command again. "
        f"By hand: apt-get install {' '.join(packages)}"
    )
    quiet = ["-q", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"]
    if any(Path("/var/lib/dpkg/updates").iterdir()):
        stream(as_root(["dpkg", "--configure", "-a"]), "finishing an interrupted dpkg", hint, HOST)
    stream(as_root(["apt-get", "update", *quiet]), "apt-get update", hint, HOST)
    command = ["apt-get", "install", *quiet, "--yes", "--no-install-recommends", *packages]
    stream(as_root(command), "apt-get install", hint, HOST)


def as_root(command: Sequence[str]) -> list[str]:
    """`command` for root, with nothing asked of the user but sudo's password."""
    settled = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=a", *command]
    if os.geteuid() == 0:
        return settled
    if not shutil.which("sudo"):
        die("host packages are missing, and there is no sudo", f"run as root: {shlex.join(command)}")
    return ["sudo", *settled]


# The virtual environment


def environment() -> bool:
    """Make `.venv` whole; returns whether anything had to be done."""
    want = {
        "lock": digest(LOCK),
        "project": digest(ROOT / "pyproject.toml"),
        "python": platform.python_version(),
        "place": str(VENV),
    }
    python = VENV / "bin" / "python"
    have = stamp(VENV)
    unfinished = VENV / UNFINISHED
    whole = not unfinished.exists() and (VENV / "bin" / "lab").exists()
    if whole and have == want and usable(python, want["python"]):
        return False
    same = {key: have[key] == want[key] for key in ("python", "place") if key in have}
    if unfinished.exists() or not all(same.values()) or not usable(python, want["python"]):
        clear(VENV)
    VENV.mkdir(exist_ok=True)
    unfinished.touch()
    if not usable(python, want["python"]):
        say(f"making .venv with Python {want['python']}")
        stream(
            [*with_us(), sys.executable, "-I", "-m", "venv", str(VENV)],
            "python -m venv",
            "install the package python3-venv, then run the same command again",
            HOST,
        )
    packages(python)
    project(python)
    write(VENV / STAMP, json.dumps(want, indent=2) + "\n")
    unfinished.unlink()
    return True


def stamp(venv: Path) -> dict[str, str]:
    """What `venv` says that it was made from; empty if it says nothing."""
    try:
        found = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def usable(python: Path, version: str) -> bool:
    """Whether `python` runs, is of `version` and has pip."""
    ask = "import pip, platform, sys; sys.stdout.write(platform.python_version())"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", ask],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0 and done.stdout == version


def clear(venv: Path) -> None:
    """Empty `venv`, the mark that it is unfinished last."""
    if not venv.exists():
        return
    say("removing the old .venv")
    (venv / UNFINISHED).touch()
    for path in sorted(venv.iterdir(), key=lambda path: path.name == UNFINISHED):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def packages(python: Path) -> None:
    """Install the locked packages: from wheels at hand where there are, else from the registry."""
    count = sum(1 for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line)
    chosen = os.environ.get("UNDERPASS_WHEELS")
    if chosen:
        folder = Path(chosen)
        if not folder.is_dir():
            die(
                f"UNDERPASS_WHEELS names {folder}, which is no folder", "name a folder of wheels, or unset it"
            )
        say(f"installing up to {count} Python packages from {folder}")
        hint = "the folder must hold every wheel of requirements/controller.lock for this Python"
        install(python, ["--no-index", f"--find-links={folder}"], hint)
        return
    for folder in stored_wheels(store()):
        say(f"installing up to {count} Python packages from {folder}")
        try:
            install(python, ["--no-index", f"--find-links={folder}"], "")
            return
        except SetupError:
            say("those wheels do not fit this release or this Python; asking the registry")
    say(f"installing up to {count} Python packages from the registry")
    install(
        python,
        [],
        "the lines above are pip's; see that `python3 -m pip download pip` works here, then run the same "
        "command again. Without a registry: UNDERPASS_WHEELS=FOLDER make setup",
    )


def install(python: Path, source: Sequence[str], hint: str) -> None:
    # Only wheels: building from source would fetch build tools that no lock names.
    options = ["--require-hashes", "--only-binary=:all:", "--no-deps", "--progress-bar=off"]
    command = [*pip(python), "install", *options, *source, "--requirement", str(LOCK)]
    stream(command, "pip install", hint, ARTIFACT)


def project(python: Path) -> None:
    """Install this checkout itself, so that changes to the code count at once; needs no registry."""
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    stream(
        [*pip(python), "install", *options, "--editable", str(ROOT)],
        "installing the lab command",
        "the lines above are pip's and setuptools'; the checkout must be complete and writable",
        ARTIFACT,
    )


def pip(python: Path) -> list[str]:
    return [*with_us(), str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]


def store() -> Path:
    """The artifact store, where `lab.paths` has it too."""
    cache = os.environ.get("UNDERPASS_CACHE")
    if cache:
        return Path(cache) / "store"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "underpass" / "store"


def stored_wheels(entries: Path) -> list[Path]:
    """The folders of wheels in the store, newest first; an entry without its manifest is not whole."""
    try:
        found = [path for path in entries.glob("controller-wheels-*/wheels") if path.is_dir()]
        whole = [path for path in found if path.parent.with_name(f"{path.parent.name}.json").is_file()]
        return sorted(whole, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []


def digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        die(f"{path.relative_to(ROOT)} is missing", "the checkout is not complete; clone it again")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# Running programs


def with_us() -> list[str]:
    """Words before a program that end it with us, so that what a kill leaves does not go on writing."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def stream(command: Sequence[str], title: str, hint: str, code: int) -> None:
    """Run a program, with a sign of life now and then; a failure shows the tail of its output."""
    began = time.monotonic()
    lines: list[str] = []
    try:
        process = subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as fault:
        die(f"cannot start {command[0]}: {fault.strerror}", hint, code)
    assert process.stdout
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(over, title, began, lines), daemon=True)
    beats.start()
    try:
        _drain(process.stdout, lines)
        status = process.wait()
    except BaseException:
        with suppress(PermissionError):  # sudo's: it gets the terminal's ctrl-C itself
            process.terminate()
        process.wait()
        raise
    finally:
        over.set()
        beats.join()
    if status:
        raise SetupError(
            f"{title} failed with status {status}",
            hint,
            code,
            [f"command: {shlex.join(command)}", *(line[:WIDTH] for line in lines[-TAIL:])],
        )


def _drain(pipe: IO[str], lines: list[str]) -> None:
    for line in pipe:
        lines.append(line.rstrip())


def _beat(over: threading.Event, title: str, began: float, lines: list[str]) -> None:
    while not over.wait(BEAT):
        last = lines[-1].strip()[:100] if lines else ""
        say(f"  {title}: {time.monotonic() - began:.0f} s; {last}")


if __name__ == "__main__":
    sys.exit(main())
