"""The artifact store: folders `<name>-<key>`, each with its manifest beside it, under the user's cache.

Layout below the root: `store/` (finished entries; the nodes see this folder), `tmp/` (builds under
way), `locks/`, `quarantine/` (entries that were found damaged), `tools/`. An entry is made in `tmp/`
and renamed, so that at any moment it is there in full or not at all; the kernel drops a lock with its
process, so that a killed build leaves nothing but a folder in `tmp/`, which the next one removes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lab import paths
from lab.errors import ExitCode, LabError, die
from lab.files import write_atomic
from lab.retry import retry_context
from lab.run import run
from lab.steps import Step, Steps, current_step
from lab.store import space, tree
from lab.store.artifact import Artifact, Building, Manifest, Recipe

#: What is mounted, as this process sees it.
MOUNTS = Path("/proc/self/mountinfo")

SHOWN = 10


class Store:
    """The store below `root`, by default the user's cache."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or paths.cache()
        self.entries = self.root / "store"
        self.tmp = self.root / "tmp"
        self.quarantine = self.root / "quarantine"
        self.tools = self.root / "tools"
        self._locks = self.root / "locks"

    def entry(self, name: str, key: str) -> Artifact:
        """The entry of that name and key, be it there or not."""
        return Artifact(name, key, self.entries / f"{name}-{key}")

    def there(self, artifact: Artifact) -> bool:
        """Whether the entry is in the store (not whether it is sound)."""
        return artifact.path.is_dir() and artifact.manifest_file.is_file()

    def ensure(self, recipe: Recipe, steps: Steps, needs: Mapping[str, Artifact] | None = None) -> Artifact:
        """The artifact of `recipe`, built if it is not there or found damaged. One step.

        `needs` holds the finished artifacts that the recipe asks for. A second caller waits for
        the first. Raises `LabError`; then nothing half-made is left.
        """
        artifact = self.entry(recipe.name, recipe.key)
        with steps.step(f"build-{recipe.name}", recipe.title) as step:
            if self.sound(artifact):
                step.say("there already")
                return artifact
            self._make_folders()
            with self.locked(artifact), self._work(artifact) as work:
                if self.sound(artifact, step):
                    step.say("another command has just built it")
                    return artifact
                if artifact.path.exists():
                    self.put_aside(artifact)
                space.require(self.tmp, recipe.space, f"building {recipe.name}")
                with space.explained(self.tmp, f"building {recipe.name}"), _usual_modes():
                    self._build(recipe, artifact, work, step, needs or {})
            step.change()
        return artifact

    def sound(self, artifact: Artifact, step: Step | None = None) -> bool:
        """Whether the entry is there and, by a look at each file's stat, as its manifest says."""
        if not self.there(artifact):
            return False
        try:
            faults = _first(self.check(artifact))
        except (LabError, OSError) as fault:
            faults = [str(fault)]
        if step:
            for line in faults:
                step.say(f"{artifact.path.name} is damaged: {line}")
        return not faults

    def check(self, artifact: Artifact, *, thorough: bool = False) -> list[tree.Difference]:
        """What in the entry is not as its manifest says; by stat, or all by hash if `thorough`."""
        return tree.compare(artifact.path, artifact.manifest.files, thorough=thorough)

    def verify(self, artifact: Artifact) -> None:
        """Hash every file of the entry; `LabError` (ARTIFACT) with what differs."""
        if not self.there(artifact):
            die(
                f"artifact {artifact.name} is not in the store",
                hint="`lab build` builds it",
                code=ExitCode.ARTIFACT,
            )
        differences = self.check(artifact, thorough=True)
        for difference in differences:
            # So that the next look by stat alone, which trusts the time, finds it too.
            with suppress(OSError):
                os.utime(artifact.path / difference.path, follow_symlinks=False)
        if differences:
            raise LabError(
                f"artifact {artifact.name} is damaged: {artifact.path}",
                details=_first(differences),
                hint=f"`lab build {artifact.name}` puts it aside and builds it again",
                code=ExitCode.ARTIFACT,
            )

    @contextmanager
    def locked(self, artifact: Artifact) -> Iterator[None]:
        """Hold the entry's lock; says who has it while waiting."""
        self._make_folders()
        holder = self._locks / f"{artifact.path.name}.pid"
        lock = FileLock(self._locks / f"{artifact.path.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if step := current_step():
                step.say(f"another build of {artifact.name} is running{_pid(holder)}, waiting")
            lock.acquire(timeout=-1, poll_interval=0.2)
        try:
            holder.write_text(f"{os.getpid()}\n", encoding="ascii")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def work_folder(self, artifact: Artifact) -> Iterator[Path]:
        """A folder in `tmp/` for making the entry; its lock must be held. Always removed again."""
        self._make_folders()
        with self._work(artifact) as work:
            yield work

    def publish(self, artifact: Artifact, folder: Path, manifest: Manifest) -> None:
        """Make the finished `folder` (in `tmp/`) the entry, in one rename; its lock must be held."""
        written = folder.with_name("manifest.json")
        write_atomic(written, manifest.to_json(), 0o644)
        # What was written must be on the disk before the name says that it is complete.
        run(["sync", "--file-system", folder], code=ExitCode.HOST)
        written.replace(artifact.manifest_file)
        folder.rename(artifact.path)

    def put_aside(self, artifact: Artifact) -> None:
        """Move a damaged entry away; its lock must be held. A lab that runs on it keeps its files."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = self.quarantine / f"{artifact.path.name}.{stamp}"
        artifact.path.rename(aside)
        artifact.manifest_file.unlink(missing_ok=True)
        if step := current_step():
            step.say(f"the damaged {artifact.name} was moved to {aside}")

    def sweep(self) -> int:
        """Remove what killed builds left in `tmp/`, except where a build is running; how many."""
        removed = 0
        for folder in self.tmp.iterdir() if self.tmp.is_dir() else ():
            lock = FileLock(self._locks / f"{folder.name.rpartition('.')[0]}.lock")
            try:
                with lock.acquire(timeout=0):
                    remove(folder)
                    removed += 1
            except Timeout:
                continue
        return removed

    def clean(self, keep: set[str]) -> int:
        """Remove the entries (folder names) that are not in `keep`, and all that was put aside; how many.

        What is mounted, by a running node, stays.
        """
        mounts = MOUNTS.read_text(encoding="utf-8")
        removed = self.sweep()
        listed = self.entries.iterdir() if self.entries.is_dir() else ()
        for entry in sorted({path.name.removesuffix(".json") for path in listed} - keep):
            if entry in mounts:
                continue
            name, _, key = entry.rpartition("-")
            with self.locked(self.entry(name, key)):
                remove(self.entries / f"{entry}.json")
                remove(self.entries / entry)
            removed += 1
        for folder in self.quarantine.iterdir() if self.quarantine.is_dir() else ():
            # A mount goes on under the name that the folder had when it was mounted.
            if folder.name.partition(".")[0] not in mounts:
                remove(folder)
                removed += 1
        return removed

    def _make_folders(self) -> None:
        # Nodes reach into the entries as users of their own; nobody but us looks at work under way.
        for folder, mode in (
            (self.root, 0o755),
            (self.entries, 0o755),
            (self.tmp, 0o700),
            (self._locks, 0o755),
            (self.quarantine, 0o700),
            (self.tools, 0o755),
        ):
            if folder.is_dir():
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(mode)
            except OSError as fault:
                die(
                    f"cannot make {folder}: {fault.strerror}",
                    hint="set UNDERPASS_CACHE to a folder that you may write to",
                    code=ExitCode.HOST,
                )

    @contextmanager
    def _work(self, artifact: Artifact) -> Iterator[Path]:
        for left in self.tmp.glob(f"{artifact.path.name}.*"):
            remove(left)
        work = Path(tempfile.mkdtemp(dir=self.tmp, prefix=f"{artifact.path.name}."))
        try:
            yield work
        finally:
            remove(work)

    def _build(
        self, recipe: Recipe, artifact: Artifact, work: Path, step: Step, needs: Mapping[str, Artifact]
    ) -> None:
        folder, scratch = work / "entry", work / "scratch"
        folder.mkdir(mode=0o755)
        scratch.mkdir(mode=0o700)
        began = time.monotonic()
        needed = {name: needs[name] for name in recipe.needs}
        building = Building(recipe.name, recipe.key, folder, scratch, step, needed)
        recipe.build(building)
        step.say("hashing the files")
        files = tree.scan(folder)
        manifest = Manifest(
            name=recipe.name,
            key=recipe.key,
            inputs=dict(recipe.inputs),
            tools=building.tools,
            facts=building.facts,
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began, 1),
            digest=tree.digest(files),
            size=tree.size(files),
            files=files,
        )
        self.publish(artifact, folder, manifest)


def _pid(holder: Path) -> str:
    try:
        pid = holder.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    return f" (process {pid})" if pid else ""


@contextmanager
def _usual_modes() -> Iterator[None]:
    """New files readable for all, whatever the user's umask: nodes read them as many users."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def remove(folder: Path) -> None:
    """Remove a folder or file, but never reach through a mount that somebody left in it."""
    if not folder.is_dir() or folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    inside = f"{folder.resolve()}/"
    mounts = [
        line.split()[4].encode().decode("unicode_escape")
        for line in MOUNTS.read_text(encoding="utf-8").splitlines()
    ]
    if held := [mount for mount in mounts if mount.startswith(inside)]:
        die(
            f"{folder} cannot be removed: something is mounted inside",
            details=held,
            hint="unmount it (`umount --recursive`), then try again",
            code=ExitCode.HOST,
        )
    # What a killed build started may take a moment to end, and may still add a file.
    for attempt in retry_context(on=OSError, attempts=None, timeout=10, wait_max=1):
        with attempt:
            if folder.exists():
                shutil.rmtree(folder)


def _first(differences: list[tree.Difference]) -> list[str]:
    more = len(differences) - SHOWN
    return [*map(str, differences[:SHOWN]), *([f"and {more} more"] if more > 0 else [])]
