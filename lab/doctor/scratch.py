"""Things a probe makes that vanish with it: network namespaces without a name, files in a private mount tree.

A namespace that only a file descriptor holds is gone, with every link in it and the far ends of its
cables, when the descriptor is closed: also when the process is killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: How the doctor's own things on a file system begin; the process follows.
PREFIX = ".underpass-doctor."

#: What is said to have been refused when mounts cannot be made at all.
UNSHARE_MOUNTS = "unshare the mount namespace"
MAKE_PRIVATE = "make mounts private"

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def check(status: int, what: str) -> None:
    """Raise the OSError of the C library's call that returned `status`."""
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def in_thread(work: Callable[[], T]) -> T:
    """Call `work` in a thread of its own: namespaces and keyrings are entered per thread."""
    answers: list[T] = []
    faults: list[BaseException] = []

    def body() -> None:
        try:
            answers.append(work())
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=body, name="doctor's probe")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return answers[0]


@contextmanager
def namespace() -> Iterator[int]:
    """A new network namespace with no name: a file descriptor that holds it."""

    def make() -> int:
        check(libc.unshare(CLONE_NEWNET), "unshare the network namespace")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    handle = in_thread(make)
    try:
        yield handle
    finally:
        os.close(handle)


def inside(handle: int | None, work: Callable[[], T]) -> T:
    """Call `work` in the network namespace that `handle` holds; None for the caller's own."""
    if handle is None:
        return work()

    def entered() -> T:
        check(libc.setns(handle, CLONE_NEWNET), "enter the probe's network namespace")
        return work()

    return in_thread(entered)


def with_private_mounts(work: Callable[[], T]) -> T:
    """Call `work` where its mounts are seen by nobody else and vanish with it."""
    ms_rec, ms_private = 16384, 1 << 18

    def entered() -> T:
        check(libc.unshare(CLONE_NEWNS), UNSHARE_MOUNTS)
        check(libc.mount(b"none", b"/", b"none", ms_rec | ms_private, None), MAKE_PRIVATE)
        return work()

    return in_thread(entered)


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    """Mount a file system; OSError naming what was refused."""
    status = libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), 0, options.encode() or None)
    check(status, f"mount {kind}")


def nearest(path: Path) -> Path:
    """The folder at `path`, or the nearest above it that is there: on the file system it will be on."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


@contextmanager
def folder(beside: Path) -> Iterator[Path]:
    """A new folder on the file system of `beside`, gone at the end; what a killed doctor left goes too."""
    place = nearest(beside)
    for old in place.glob(f"{PREFIX}*"):
        if not _alive(old.name.split(".")[-2]):
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=place, prefix=f"{PREFIX}{os.getpid()}."))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()
