"""Who drops a packet: firewall rules on the host that could, read only to explain what a probe has seen."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from lab import emulation
from lab.run import run

SHOWN = 4

_TABLE = re.compile(r"^table (\S+ \S+) \{")
_CHAIN = re.compile(r"^chain (\S+) \{")
_HOOK = re.compile(r"\bhook (\S+) .*?(?:policy (\w+))?;?$")
_DROPS = re.compile(r"\b(drop|reject)\b")


@dataclass(frozen=True)
class Suspect:
    """A rule or policy that drops: where it stands, and what it says."""

    place: str
    rule: str

    def __str__(self) -> str:
        return f"{self.place}: {self.rule}"


def suspects(hooks: set[str]) -> list[Suspect]:
    """What could drop packets at one of `hooks` (input, output, forward, ...), by nft or else iptables.

    A chain that no hook leads to directly is listed too where it drops: a rule may jump to it.
    """
    sources: tuple[tuple[list[str], Callable[[str, set[str]], list[Suspect]]], ...] = (
        (["nft", "--stateless", "list", "ruleset"], in_nft),
        (["iptables-save"], in_iptables),
        (["iptables-legacy-save"], in_iptables),
    )
    found: list[Suspect] = []
    for command, parse in sources:
        if shutil.which(command[0]):
            done = run(command, ok=range(256), timeout=5 * emulation.slowness())
            found += [one for one in parse(done.stdout, hooks) if one not in found]
    return found


def in_nft(ruleset: str, hooks: set[str]) -> list[Suspect]:
    """The suspects in the output of `nft list ruleset`."""
    found: list[Suspect] = []
    table = chain = ""
    hook = None
    for line in map(str.strip, ruleset.splitlines()):
        if match := _TABLE.match(line):
            table = match[1]
        elif match := _CHAIN.match(line):
            chain, hook = match[1], None
        elif line.startswith("type ") and (match := _HOOK.search(line)):
            hook = match[1]
            if hook in hooks and match[2] == "drop":
                found.append(Suspect(f"nft {table} {chain}", "policy drop"))
        elif _DROPS.search(line) and (hook is None or hook in hooks) and not line.startswith("#"):
            found.append(Suspect(f"nft {table} {chain}", line))
    return found


def in_iptables(saved: str, hooks: set[str]) -> list[Suspect]:
    """The suspects in the output of `iptables-save`."""
    others = {"INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING"} - {hook.upper() for hook in hooks}
    found: list[Suspect] = []
    table = ""
    for line in saved.splitlines():
        words = line.split()
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and words[1] == "DROP" and words[0][1:] not in others:
            found.append(Suspect(f"iptables {table} {words[0][1:]}", "policy DROP"))
        elif line.startswith("-A ") and words[1] not in others:
            target = words[words.index("-j") + 1] if "-j" in words[:-1] else ""
            if target in ("DROP", "REJECT"):
                found.append(Suspect(f"iptables {table} {words[1]}", " ".join(words[2:])))
    return found


def told(found: list[Suspect]) -> str:
    """The first few suspects in one line; empty if there are none."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(map(str, found[:SHOWN])) + more
