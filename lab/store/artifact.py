"""What the store holds: an artifact with its manifest, and the recipe that makes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, die
from lab.steps import Step
from lab.store.tree import Listing

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What an artifact was made from and what is in it.

    `inputs` are the recipe's (their hash is the key), `tools` the versions of the programs that
    made it, `facts` what the build found out (package versions, image names), `digest` one sha256
    over `files`, `size` in bytes, `built` the time in UTC, `seconds` how long it took.
    """

    name: str
    key: str
    inputs: dict[str, Any]
    tools: dict[str, str]
    facts: dict[str, Any]
    built: str
    seconds: float
    digest: str
    size: int
    files: Listing
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def parse(text: str | bytes, where: str) -> Manifest:
    """A manifest from its JSON text; `LabError` naming `where` if it is none."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            die(
                f"{where} has format {data['format']}; this release reads format {FORMAT}",
                code=ExitCode.ARTIFACT,
            )
        return Manifest(**data)
    except (ValueError, KeyError, TypeError) as fault:
        die(f"{where} is not a manifest: {type(fault).__name__}: {fault}", code=ExitCode.ARTIFACT)


@dataclass(frozen=True)
class Artifact:
    """An entry of the store: folder `path`, with its manifest beside it."""

    name: str
    key: str
    path: Path

    @property
    def manifest_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @cached_property
    def manifest(self) -> Manifest:
        """Read when first asked for: that of a root file system is some megabytes."""
        return parse(self.manifest_file.read_bytes(), str(self.manifest_file))


@dataclass
class Building:
    """One build under way, of the artifact `name` with `key`.

    Recipes fill `folder`; `tools` and `facts` end in the manifest. `scratch` is an empty folder for
    what is needed only meanwhile. `needs` are the finished artifacts that the recipe asked for.
    """

    name: str
    key: str
    folder: Path
    scratch: Path
    step: Step
    needs: Mapping[str, Artifact]
    tools: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How to make an artifact.

    `inputs` is JSON data that fixes the outcome and knows nothing of the machine: the same release
    has the same keys everywhere, so that bundles fit. `needs` names artifacts that `build` reads;
    their keys belong in `inputs`. `space` is what the build takes on disk, in bytes.
    `for_bundles`: no lab needs it where there are registries, but a bundle does. `for_tests`: the
    project's own suite alone needs it; it is built when it is asked for by name. `provider`: only labs
    of that provider need it. `on_request`: of those, only the ones that ask for it.
    """

    name: str
    title: str
    inputs: Mapping[str, Any]
    build: Callable[[Building], None]
    needs: tuple[str, ...] = ()
    space: int = 0
    for_bundles: bool = False
    for_tests: bool = False
    provider: str | None = None
    on_request: bool = False

    @property
    def key(self) -> str:
        """16 hex digits of the sha256 of the inputs."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()[:16]
