"""Kubernetes, etcd, CoreDNS, Istio and more: Go modules, pinned by go.mod and go.sum, compiled here.

`-trimpath` and no C make the same binary of the same source with the same Go on every machine.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.builds import toolchain
from lab.builds.contained import with_us
from lab.builds.inputs import tree_digest
from lab.builds.registry import asked
from lab.builds.toolchain import Go
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import run
from lab.steps import Step
from lab.store import Building, Recipe, Store

FOLDER = Path(__file__).parent / "go"

_REPORT_EVERY = 10.0


@dataclass(frozen=True)
class Compile:
    """One call of the compiler: `programs` maps a binary's name to its package."""

    programs: dict[str, str]
    tags: str = ""
    variables: tuple[tuple[str, str], ...] = ()  # package path of a variable, its value

    def flags(self) -> list[str]:
        """The options of `go build` that decide the outcome."""
        linker = ["-s", "-w", *(f"-X={name}={value}" for name, value in self.variables)]
        tags = [f"-tags={self.tags}"] if self.tags else []
        return ["-trimpath", "-buildvcs=false", f"-ldflags={' '.join(linker)}", *tags]


@dataclass(frozen=True)
class Part:
    """A recipe over the module in `go/<name>`.

    `copies` maps paths in the artifact to (module, path in that module). `tells` maps a binary to
    the arguments that make it tell its version, which must be the locked one.
    """

    name: str
    title: str
    compiles: tuple[Compile, ...]
    copies: dict[str, tuple[str, str]]
    tells: dict[str, tuple[str, ...]]
    version: str
    space: int
    for_tests: bool = False


def parts() -> list[Part]:
    """The parts, at the versions of the lock file."""
    versions = lock().versions
    kubernetes, istio = versions["kubernetes"], versions["istio"]
    major, minor = kubernetes.removeprefix("v").split(".")[:2]
    base = "k8s.io/component-base/version"
    istio_version = (("istio.io/istio/pkg/version.buildVersion", istio),)
    commands = "k8s.io/kubernetes/cmd"
    kube = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet")
    return [
        Part(
            name="etcd",
            title=f"etcd {versions['etcd']}",
            compiles=(
                Compile({"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"}),
            ),
            copies={},
            tells={"etcd": ("--version",), "etcdctl": ("version",)},
            version=versions["etcd"].removeprefix("v"),
            space=2 << 30,
        ),
        Part(
            name="coredns",
            title=f"CoreDNS {versions['coredns']}",
            compiles=(Compile({"coredns": "github.com/coredns/coredns"}),),
            copies={},
            tells={"coredns": ("-version",)},
            version=versions["coredns"].removeprefix("v"),
            space=3 << 30,
        ),
        Part(
            name="kubernetes",
            title=f"Kubernetes {kubernetes}",
            compiles=(
                Compile(
                    {program: f"{commands}/{program}" for program in kube},
                    variables=(
                        (f"{base}.gitVersion", kubernetes),
                        (f"{base}.gitMajor", major),
                        (f"{base}.gitMinor", minor),
                        (f"{base}.gitTreeState", "clean"),
                    ),
                ),
            ),
            # What upstream calls its images, and its CoreDNS deployment: read, never typed in.
            copies={
                "share/dependencies.yaml": ("k8s.io/kubernetes", "build/dependencies.yaml"),
                "share/pause.c": ("k8s.io/kubernetes", "build/pause/linux/pause.c"),
                "share/coredns.yaml.in": (
                    "k8s.io/kubernetes",
                    "cluster/addons/dns/coredns/coredns.yaml.in",
                ),
            },
            tells={program: ("--version",) for program in kube if program != "kubectl"}
            | {"kubectl": ("version", "--client")},
            version=kubernetes,
            space=6 << 30,
        ),
        Part(
            name="istio",
            title=f"Istio {istio}",
            compiles=(
                Compile(
                    {"pilot-agent": "istio.io/istio/pilot/cmd/pilot-agent"},
                    tags="agent,disable_pgv",
                    variables=istio_version,
                ),
                Compile(
                    {
                        "pilot-discovery": "istio.io/istio/pilot/cmd/pilot-discovery",
                        "istioctl": "istio.io/istio/istioctl/cmd/istioctl",
                    },
                    tags="vtprotobuf,disable_pgv",
                    variables=istio_version,
                ),
            ),
            copies={
                "share/manifests": ("istio.io/istio", "manifests"),
                "share/envoy_bootstrap.json": (
                    "istio.io/istio",
                    "tools/packaging/common/envoy_bootstrap.json",
                ),
            },
            tells={
                "pilot-agent": ("version", "--short"),
                "pilot-discovery": ("version", "--short"),
                "istioctl": ("version", "--short", "--remote=false"),
            },
            version=istio,
            space=6 << 30,
        ),
        Part(
            name="samples",
            title="Istio's sample applications",
            compiles=(
                Compile({"go-httpbin": "github.com/mccutchen/go-httpbin/v2/cmd/go-httpbin"}),
                Compile({"tcp-echo": "istio.io/istio/samples/tcp-echo/src"}),
            ),
            copies={"share/samples": ("istio.io/istio", "samples")},
            tells={},
            version=istio,
            space=1 << 30,
        ),
        # The CNI project's own libcni, as a program: it drives our plugin in the suite.
        Part(
            name="cnitool",
            title=f"cnitool {versions['cnitool']}",
            compiles=(Compile({"cnitool": "github.com/containernetworking/cni/cnitool"}),),
            copies={},
            tells={},
            version=versions["cnitool"],
            space=1 << 29,
            for_tests=True,
        ),
    ]


def recipe(part: Part, store: Store) -> Recipe:
    """The recipe of `part`. Which Go compiles is no input: it is the host's affair, and recorded."""
    module = FOLDER / part.name
    return Recipe(
        name=part.name,
        title=part.title,
        inputs={
            "modules": tree_digest(module / "go.mod", module / "go.sum"),
            "compiles": [[compile.flags(), compile.programs] for compile in part.compiles],
            "environment": toolchain.FIXED,
            "copies": {path: list(source) for path, source in part.copies.items()},
        },
        build=lambda building: _build(part, building, store),
        space=part.space,
        for_tests=part.for_tests,
    )


def _build(part: Part, building: Building, store: Store) -> None:
    module = FOLDER / part.name
    go = toolchain.find(store, building.scratch)
    building.tools["go"] = go.version
    building.facts["version"] = part.version
    programs = building.folder / "bin"
    programs.mkdir()
    for compile in part.compiles:
        _compile(go, module, compile, programs, building)
    for path, (source, inside) in part.copies.items():
        _copy(_source(go, module, source, building.scratch) / inside, building.folder / path)
    for program, arguments in part.tells.items():
        _must_tell(programs / program, arguments, part.version)


def _compile(go: Go, module: Path, compile: Compile, programs: Path, building: Building) -> None:
    environment = toolchain.environment(building.scratch)
    packages = list(compile.programs.values())
    tags = [f"-tags={compile.tags}"] if compile.tags else []
    names = ", ".join(compile.programs)
    building.step.say(f"{names}: fetching Go modules")
    with _modules_asked():
        listed = run(
            with_us([go.program, "list", "-deps", *tags, *packages]),
            cwd=module,
            env=environment,
            quiet=True,
            code=ExitCode.ARTIFACT,
        )
    whole = len(listed.stdout.splitlines())
    made = building.scratch / "bin"
    made.mkdir(exist_ok=True)
    building.step.say(f"{names}: compiling up to {whole} packages")
    with _counted(building.step, names, whole), _modules_asked():
        run(
            with_us([go.program, "build", "-v", *compile.flags(), "-o", f"{made}/", *packages]),
            cwd=module,
            env=environment,
            hint="the lines above are the Go compiler's",
            code=ExitCode.ARTIFACT,
        )
    for name, package in compile.programs.items():
        (made / _default_name(package)).rename(programs / name)


def _default_name(package: str) -> str:
    """How `go build` calls the program of `package`: its last part that is no major version."""
    parts = package.split("/")
    return parts[-2] if parts[-1][0] == "v" and parts[-1][1:].isdigit() else parts[-1]


@contextmanager
def _modules_asked() -> Iterator[None]:
    with asked("the Go module registry", "check the network; `go env GOPROXY` shows where Go looks"):
        yield


@contextmanager
def _counted(step: Step, names: str, whole: int) -> Iterator[None]:
    """Tell now and then how many packages are compiled, by the lines that they leave in the log."""
    log, over = step.log, threading.Event()
    if not log:
        yield
        return
    begin = log.stat().st_size if log.exists() else 0

    def watch() -> None:
        while not over.wait(_REPORT_EVERY):
            with log.open(encoding="utf-8", errors="replace") as file:
                file.seek(begin)
                done = sum(1 for line in file if line[:1] not in "#$" and " " not in line.strip())
            step.say(f"{names}: {done} of up to {whole} packages compiled")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _source(go: Go, module: Path, name: str, scratch: Path) -> Path:
    """Where the source of the module `name` is, at the version that `module` pins."""
    done = run(
        [go.program, "list", "-m", "-json", name],
        cwd=module,
        env=toolchain.environment(scratch),
        code=ExitCode.ARTIFACT,
    )
    return Path(json.loads(done.stdout)["Dir"])


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder out of the module cache, where everything is read-only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
    elif source.is_file():
        shutil.copyfile(source, target)
    else:
        die(
            f"the Go module has no {source.name} where this release expects it: {source}",
            code=ExitCode.ARTIFACT,
        )


def _must_tell(program: Path, arguments: Sequence[str], version: str) -> None:
    """Run what was built once: it must start, and tell the version that the lock file names."""
    done = run([program, *arguments], code=ExitCode.ARTIFACT)
    if version not in done.stdout + done.stderr:
        die(
            f"{program.name} was built but does not tell version {version}",
            details=(done.stdout + done.stderr).splitlines()[:5],
            code=ExitCode.ARTIFACT,
        )
