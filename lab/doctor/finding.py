"""What a probe is and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one probe found. `fail`: the lab cannot run; `warn`: it can, with the loss that `cause` tells.

    `evidence` is what was seen. `cause` and `fix` are empty when all is well.
    """

    id: str
    title: str
    status: Status
    evidence: str
    cause: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """What a probe's `run` gives back: a `Finding` without the probe's own name."""

    status: Status
    evidence: str
    cause: str = ""
    fix: str = ""


def ok(evidence: str) -> Seen:
    return Seen("ok", evidence)


def warn(evidence: str, cause: str, fix: str) -> Seen:
    return Seen("warn", evidence, cause, fix)


def fail(evidence: str, cause: str, fix: str) -> Seen:
    return Seen("fail", evidence, cause, fix)


@dataclass(frozen=True)
class Probe:
    """One question to the host. `run` tries, and removes whatever it made, also when it fails.

    `root`: whether only root can ask it.
    """

    id: str
    title: str
    run: Callable[[], Seen]
    root: bool = True

    def finding(self) -> Finding:
        """Run it. A fault that the probe did not expect is a failed probe, with what was refused."""
        try:
            seen = self.run()
        except Exception as fault:
            seen = fail(
                f"{type(fault).__name__}: {fault}",
                "the kernel or the host refused a step of this probe",
                "see the evidence; `lab --debug doctor` and `dmesg` may tell more",
            )
        return Finding(self.id, self.title, seen.status, seen.evidence, seen.cause, seen.fix)
