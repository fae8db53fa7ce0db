"""Every command of every guide, run in order on a lab; each step's check before it and after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.guide import checks, course
from lab.guide.course import Guide, Step
from lab.guide.document import Section
from lab.guide.shell import Shell
from lab.guide.walk import Walk
from lab.render import Rendered

STEPS = [
    pytest.param(guide.name, step.number, id=f"{guide.name}-{step.number}")
    for guide in map(course.read, course.names())
    for step in guide.steps
]


class Learner:
    """Somebody who walks guides on the lab, and knows how far he is in each."""

    def __init__(self, lab: Rendered, shell: Shell) -> None:
        self._lab = lab
        self._walk = Walk(shell)
        self._guides: dict[str, Guide] = {}
        self._reached: dict[str, int] = {}
        self._stuck: set[str] = set()

    def guide(self, name: str) -> Guide:
        if name not in self._guides:
            self._guides[name] = course.read(name, self._walk)
        return self._guides[name]

    def catch_up(self, guide: Guide, number: int) -> None:
        """Do what stands before step `number`, if that was not done: each step can be run alone."""
        lacking = course.lacks(guide, self._lab)
        if lacking:
            pytest.skip(f"{guide.name} is for another lab: {'; '.join(lacking)}")
        if guide.name in self._stuck:
            pytest.fail("a step before this one failed", pytrace=False)
        if guide.name not in self._reached:
            checks.reset(self._lab, guide)
            self.read(guide.introduction)
            self._reached[guide.name] = 1
        for step in guide.steps[self._reached[guide.name] - 1 : number - 1]:
            checks.solve(self._lab, step)
        self._reached[guide.name] = number

    def do(self, guide: Guide, step: Step) -> None:
        self._stuck.add(guide.name)
        for part in step.parts:
            self.read(part)
        missing = [promise for promise in checks.check(self._lab, step) if not promise.held]
        assert missing == []
        self._stuck.remove(guide.name)
        self._reached[guide.name] = step.number + 1

    def read(self, part: Section) -> None:
        for example in part.examples:
            example.evaluate()

    def leave(self) -> None:
        for guide in self._guides.values():
            checks.reset(self._lab, guide)


@pytest.fixture(scope="module")
def learner(lab: Rendered, shell: Shell) -> Iterator[Learner]:
    learner = Learner(lab, shell)
    yield learner
    learner.leave()


@pytest.mark.parametrize(("name", "number"), STEPS)
def test_a_step_does_what_it_says(lab: Rendered, learner: Learner, name: str, number: int) -> None:
    guide = learner.guide(name)
    step = guide.step(number)
    learner.catch_up(guide, number)
    if step.checks:
        assert not checks.done(checks.check(lab, step)), "the step's check holds before the step is done"
    learner.do(guide, step)


@pytest.mark.parametrize("name", course.names())
def test_what_a_guide_tells_at_its_end_is_so(learner: Learner, name: str) -> None:
    guide = learner.guide(name)
    learner.catch_up(guide, len(guide.steps) + 1)
    for part in guide.closing:
        learner.read(part)
