"""Work that may take long or fail (API writes, routes), off the engine's thread, tried until it is done.

A task has a key; a newer task of the same key replaces one that waits, so that only the latest state of
a thing is ever written.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

FIRST_WAIT = 0.25
LONGEST_WAIT = 15.0

Work = Callable[[], None]


class Hopeless(Exception):
    """Trying the task again would not help. It is logged and dropped."""


@dataclass
class _Task:
    work: Work
    tries: int
    serial: int


class Outbox:
    """A few threads that do keyed work in the order in which it is due."""

    def __init__(self, workers: int, log: Callable[..., None]) -> None:
        self._log = log
        self._due: list[tuple[float, int, Hashable]] = []
        self._tasks: dict[Hashable, _Task] = {}
        self._running: set[Hashable] = set()
        self._serials = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"outbox-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def submit(self, key: Hashable, work: Work, delay: float = 0.0) -> None:
        """Do `work` after `delay` seconds, instead of whatever waits under `key`."""
        with self._changed:
            self._enter(key, _Task(work, 0, next(self._serials)), delay)

    def cancel(self, key: Hashable) -> None:
        """Forget what waits under `key`."""
        with self._changed:
            self._tasks.pop(key, None)

    @property
    def waiting(self) -> int:
        return len(self._tasks)

    def _enter(self, key: Hashable, task: _Task, delay: float) -> None:
        self._tasks[key] = task
        heapq.heappush(self._due, (time.monotonic() + delay, task.serial, key))
        self._changed.notify()

    def _take(self) -> tuple[Hashable, _Task] | None:
        """The next task that is due; None to stop. A key runs on one thread at a time."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                held: list[tuple[float, int, Hashable]] = []
                found: tuple[Hashable, _Task] | None = None
                while self._due and self._due[0][0] <= now:
                    due = heapq.heappop(self._due)
                    task = self._tasks.get(due[2])
                    if task is None or task.serial != due[1]:
                        continue
                    if due[2] in self._running:
                        held.append(due)
                        continue
                    found = (due[2], task)
                    break
                for due in held:
                    heapq.heappush(self._due, due)
                if found:
                    self._running.add(found[0])
                    del self._tasks[found[0]]
                    return found
                # One that is held is woken for by the end of its key's running task.
                pending = self._due[0][0] - now if self._due and not held else None
                self._changed.wait(pending)
            return None

    def _work(self) -> None:
        while taken := self._take():
            key, task = taken
            try:
                task.work()
            except Hopeless as fault:
                self._log("error", "task dropped", task=str(key), fault=str(fault))
            except Exception as fault:  # whatever it was, the state is still to be written
                wait = min(FIRST_WAIT * 2**task.tries, LONGEST_WAIT) * random.uniform(0.5, 1.0)  # noqa: S311
                if task.tries in (0, 5):
                    self._log("warning", "task failed", task=str(key), fault=str(fault), tries=task.tries + 1)
                with self._changed:
                    if key not in self._tasks:
                        self._enter(key, _Task(task.work, task.tries + 1, next(self._serials)), wait)
            finally:
                with self._changed:
                    self._running.discard(key)
                    self._changed.notify_all()
