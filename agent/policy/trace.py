"""What the policy says of one connection, with the rule that says it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.policy.compile import ANYBODY, Grant
from agent.policy.rules import Direction


@dataclass(frozen=True, slots=True)
class Judgement:
    """`rule` is the id of the deciding rule, 0 where nothing allows it."""

    allowed: bool
    rule: int


def judge(
    grants: Iterable[Grant], direction: Direction, identity: int, protocol: int, port: int
) -> Judgement:
    """Whether a peer of `identity` may open a connection in `direction`; a denial wins over all else."""
    allowing: list[Grant] = []
    denying: list[Grant] = []
    for grant in grants:
        if grant.direction != direction or grant.identity not in (ANYBODY, identity):
            continue
        if grant.protocol not in (0, protocol) or (grant.protocol and not grant.first <= port <= grant.last):
            continue
        (denying if grant.deny else allowing).append(grant)
    if denying:
        return Judgement(False, min(grant.rule for grant in denying))
    if allowing:
        # The narrowest speaks, as in the kernel: fewest ports, then the exact identity.
        best = min(allowing, key=lambda g: (g.protocol == 0, g.last - g.first, g.identity == ANYBODY, g.rule))
        return Judgement(True, best.rule)
    return Judgement(False, 0)
