"""Probes of the host's programs: each by running it, and systemd-nspawn by starting a container."""

from __future__ import annotations

import os
from pathlib import Path

from lab import builds, emulation, paths
from lab.bootstrap import NEEDS
from lab.builds.contained import with_us
from lab.doctor.finding import Probe, Seen, fail, ok
from lab.doctor.groups import own
from lab.doctor.scratch import folder, namespace
from lab.errors import LabError
from lab.providers.nspawn.machine import ENVIRONMENT, PROGRAM, SYSTEM_CALLS
from lab.run import run

SECONDS = 20.0
RIGHTS = (
    "use a machine of your own or a full virtual machine: inside another container, nspawn needs "
    "all capabilities, writable control groups and no system call filter"
)

#: Programs that matter only while artifacts are missing, and those that no lab needs.
_TO_BUILD = {"mmdebstrap", "buildah", "gcc"}
_BESIDE = {"shellcheck", "nft", "zstd"}

#: Moves itself into the groups $2.. (as many as $1), hides /run, and becomes the rest of the words.
#: nspawn keeps directories in /run, which it would leave there if it were killed.
_ENTER = """
count=$1; shift
while [ "$count" -gt 0 ]; do echo $$ > "$1/cgroup.procs"; shift; count=$((count - 1)); done
mount -t tmpfs tmpfs /run
exec "$@"
"""


def probes() -> list[Probe]:
    return [
        Probe("programs", "Programs on the host", programs, root=False),
        Probe("nspawn", "Starting a system container", container),
    ]


def programs() -> Seen:
    """Run each program that this lab will call."""
    there = builds.locate()
    complete = all(recipe.name in there for recipe in builds.needed())
    left_out = _BESIDE | (_TO_BUILD if complete else set())
    wanted = [need for need in NEEDS if need.program and need.program[0] not in left_out]
    missing, seen = [], []
    for need in wanted:
        try:
            done = run(need.program, timeout=SECONDS * emulation.slowness())
        except LabError as fault:
            missing.append(need)
            seen.append(f"{need.program[0]}: {fault.message}")
            continue
        seen.append(f"{need.program[0]} {_version(done.stdout + done.stderr)}".strip())
    if missing:
        purposes = "; ".join(f"{need.program[0]} {need.purpose}" for need in missing)
        packages = " ".join(need.package for need in missing)
        return fail(
            "; ".join(seen),
            f"missing or broken: {purposes}",
            f"make setup, which installs them; by hand: apt-get install {packages}",
        )
    return ok(", ".join(seen))


def _version(text: str) -> str:
    """The first word of a program's answer that looks like a version."""
    words = text.replace(",", " ").split()
    return next((word.strip("()") for word in words if any(c.isdigit() for c in word) and "." in word), "")


def container() -> Seen:
    """Start a container on the host's own /usr, with the rights of a node, and let it say a word."""
    try:
        return _start()
    except LabError as fault:
        return fail(fault.message, "a container cannot even be prepared here", fault.hint or RIGHTS)


def _start() -> Seen:
    with folder(paths.state()) as root, own("nspawn") as groups, namespace() as network:
        binds = _tree(root)
        groups_ = [str(group) for _, group in groups]
        command = [
            *("unshare", "--mount", "--propagation=slave", "--"),
            *("sh", "-e", "-c", _ENTER, "enter", str(len(groups_)), *groups_),
            *("env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())),
            *(PROGRAM, "--quiet", "--settings=no", "--register=no", "--keep-unit"),
            *(f"--machine=underpass-doctor-{os.getpid()}", f"--directory={root}"),
            f"--network-namespace-path=/proc/{os.getpid()}/fd/{network}",
            *("--capability=all", f"--system-call-filter={SYSTEM_CALLS}"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
            *("--bind=/dev/kmsg", *(f"--bind-ro={bind}" for bind in binds)),
            *("/usr/bin/echo", "alive"),
        ]
        try:
            done = run(with_us(command), timeout=SECONDS * emulation.slowness())
        except LabError as fault:
            said = " / ".join(line for line in fault.details if not line.startswith("command: "))
            return fail(
                f"{fault.message}: {said}"[:600],
                "systemd-nspawn cannot start a container here",
                RIGHTS,
            )
    if done.stdout.strip() != "alive":
        return fail(repr(done.stdout), "a container started but did not run its program", "see `dmesg`")
    return ok("started, ran a program, removed")


def _tree(root: Path) -> list[str]:
    """The least that a program of the host needs to run: /usr, and what leads there; binds to make."""
    binds = ["/usr"]
    (root / "usr").mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        there = Path("/", name)
        if there.is_symlink():
            (root / name).symlink_to(there.readlink())
        elif there.is_dir():
            (root / name).mkdir()
            binds.append(str(there))
    return binds
