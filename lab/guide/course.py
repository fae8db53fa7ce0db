"""The guides there are, and how far a learner has come in each on a lab."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import paths
from lab.errors import ExitCode, die
from lab.files import write_atomic
from lab.guide.document import Block, Evaluator, Section, sections
from lab.labfile import LabFile, load
from lab.render import Rendered

FOLDER = paths.ROOT / "guides"
#: Carried by each object without a namespace (and each namespace) that a guide makes; its value is the guide.
LABEL = "underpass.dev/guide"

_MINUTES = re.compile(r"\b(\d+) minutes\b")
_HINT = re.compile(r"^\*\*Hint\.\*\* (.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A step: what is read, the blocks that are typed, those of the solution, hints, checks."""

    section: Section
    solution: Section | None
    checks: tuple[Path, ...]

    @property
    def number(self) -> int:
        return self.section.number

    @property
    def title(self) -> str:
        return self.section.title

    @property
    def parts(self) -> list[Section]:
        return [self.section, *([self.solution] if self.solution else [])]

    @property
    def blocks(self) -> list[Block]:
        """All that has to be typed, the solution's last."""
        return [block for part in self.parts for block in part.blocks]

    @property
    def hints(self) -> list[str]:
        return _HINT.findall(self.solution.text) if self.solution else []


@dataclass(frozen=True)
class Guide:
    """A guide. `introduction` and `closing` stand before and behind the steps."""

    folder: Path
    title: str
    minutes: int
    introduction: Section
    steps: tuple[Step, ...]
    closing: tuple[Section, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def lab_file(self) -> LabFile:
        return load(self.folder / "lab.yaml")

    def step(self, number: int) -> Step:
        return self.steps[number - 1]


def names() -> list[str]:
    """The guides in the order in which they are best taken: as guides/README.md lists them."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return [name for name in re.findall(r"\]\(([a-z-]+)/guide\.md\)", text) if (FOLDER / name).is_dir()]


def read(name: str, evaluator: Evaluator | None = None) -> Guide:
    """The guide called `name`. A wrong name lists the right ones; a faulty guide says what is wrong."""
    known = names()
    if name not in known:
        die(f"no guide is called {name}", hint=f"the guides: {', '.join(known)}")
    return at(FOLDER / name, evaluator)


def at(folder: Path, evaluator: Evaluator | None = None) -> Guide:
    """The guide in `folder`."""
    first, *rest = sections(folder / "guide.md", evaluator)
    solution = folder / "solution.md"
    solutions = {
        part.number: part
        for part in (sections(solution, evaluator) if solution.exists() else [])
        if part.number
    }
    title = re.match(r"# (.+)\n", first.text)
    minutes = _MINUTES.search(first.text)
    steps = [
        Step(
            part,
            solutions.pop(part.number, None),
            tuple(sorted((folder / "checks").glob(f"test_{part.number}_*.py"))),
        )
        for part in rest
        if part.number
    ]
    if (
        title is None
        or minutes is None
        or not steps
        or [step.number for step in steps] != list(range(1, len(steps) + 1))
        or solutions
    ):
        die(
            f"{folder}: a guide begins with `# TITLE`, says how many minutes it takes, and its steps "
            "(and those of its solution.md) are `## 1. TITLE` and so on",
            code=ExitCode.BUG,
        )
    closing = tuple(part for part in rest if not part.number)
    return Guide(folder, title[1], int(minutes[1]), first, tuple(steps), closing)


@dataclass
class Progress:
    """How far a learner is on one lab: the guide at hand, and in each guide the step and hints seen.

    A step one beyond the last means that the guide is done.
    """

    current: str | None = None
    steps: dict[str, int] = field(default_factory=dict)
    hints: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, lab: Rendered) -> Progress:
        try:
            data: dict[str, Any] = json.loads(_file(lab).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        return cls(**data)

    def keep(self, lab: Rendered) -> None:
        write_atomic(_file(lab), json.dumps(asdict(self), indent=2) + "\n")

    def go_to(self, guide: str, step: int) -> None:
        self.current = guide
        self.steps[guide] = step
        self.hints.pop(guide, None)

    def forget(self, guide: str) -> None:
        self.steps.pop(guide, None)
        self.hints.pop(guide, None)
        if self.current == guide:
            self.current = None


def _file(lab: Rendered) -> Path:
    return lab.folder / "guides.json"


def lacks(guide: Guide, lab: Rendered) -> list[str]:
    """What the guide needs and the lab has not; empty where it fits."""
    wanted = guide.lab_file
    missing = []
    if len(lab.nodes) < len(wanted.nodes):
        missing.append(f"it needs {len(wanted.nodes)} nodes, lab {lab.id} has {len(lab.nodes)}")
    if wanted.istio.enabled and lab.istio_version is None:
        missing.append(f"it needs Istio, which lab {lab.id} has not")
    return missing
