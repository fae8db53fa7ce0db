"""Compile and load by BCC: the only module that imports it.

All programs are compiled as one text, so LLVM and the headers are read once. The maps exist already; their
descriptors reach the source as macros. What is loaded is pinned by the caller, then this process ends.
What was compiled may be kept (`datapath.loader.kept`): libbpf then loads it, and BCC is not even imported.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapath import tracing
from datapath.libbpf import ProgramInfo, ProgramType, program_info
from datapath.loader import kept
from datapath.loader.errors import Exit, LoaderError
from datapath.programs import INCLUDE, PROGRAMS, Program

HEADERS = Path("/usr/src")
MODULES = Path("/lib/modules")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
# Fields of kernel structs that the programs read: their place is the running kernel's.
_FIELDS = (
    ("tcp_sock", "write_seq"),
    ("tcp_sock", "copied_seq"),
    ("tcp_sock", "rcv_nxt"),
    ("tcp_sock", "bytes_received"),
    ("sock", "sk_user_data"),
    ("sock", "sk_write_pending"),
    ("sk_psock", "refcnt"),
)
# The kernel wants to know at their load what they will be attached to.
_TYPES_WITH_HOOK = (ProgramType.CGROUP_SOCK_ADDR, ProgramType.CGROUP_SOCKOPT, ProgramType.TRACING)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One program in the kernel, held by a descriptor."""

    program: Program
    fd: int
    info: ProgramInfo


def source_digest() -> str:
    """Names the version of all C source."""
    digest = hashlib.sha256()
    for path in sorted([*INCLUDE.glob("*.h"), *(program.source for program in PROGRAMS)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def prepare_headers() -> None:
    """Make BCC find kernel headers where the running kernel is not the distribution's (system containers).

    BCC looks at /lib/modules/RELEASE/{build,source}. UAPI headers alone are used, so those of any kernel
    serve.
    """
    folder = MODULES / os.uname().release
    if (folder / "build").exists():
        return
    trees = sorted(HEADERS.glob("linux-headers-*-common"))
    if not trees:
        raise LoaderError(
            "no kernel headers found", hint="install linux-headers (any kernel's of this distribution)"
        )
    source = trees[-1]
    prefix = source.name.removesuffix("common")
    builds = [tree for tree in sorted(HEADERS.glob(f"{prefix}*")) if tree != source]
    if not builds:
        raise LoaderError(
            f"headers in {source} without their build tree", hint="install linux-headers of one flavour"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tree in (("build", builds[-1]), ("source", source)):
            link = folder / name
            if not link.is_symlink():
                link.symlink_to(tree)
    except OSError as error:
        raise LoaderError(
            f"cannot make {folder}: {error}", hint="the loader needs to write there once"
        ) from error


def load_all(
    maps: Mapping[str, int], kept_in: Sequence[Path] = (), *, force: bool = False
) -> tuple[list[Loaded], bool]:
    """Load every program; whether they were compiled for it. maps: descriptors by map name.

    The first of the files `kept_in` that holds the programs of this source, compiler and kernel is taken,
    unless `force`; else they are compiled, and kept in the first file.
    """
    offsets = _offsets()
    key = _key(offsets)
    for file in () if force else kept_in:
        code = kept.read(file, key, maps)
        if code and {program.name for program in PROGRAMS} <= set(code):
            return [_load_kept(program, code[program.name]) for program in PROGRAMS], False
    return compile_all(maps, offsets, kept_in[0] if kept_in else None), True


def compile_all(
    maps: Mapping[str, int], offsets: Mapping[str, int] | None = None, keep: Path | None = None
) -> list[Loaded]:
    """Compile and load every program. maps: descriptors by map name.

    BCC writes the compiler's and the verifier's messages to standard error.
    """
    offsets = _offsets() if offsets is None else offsets
    module = _compiled(maps, offsets)
    try:
        loaded = [_load(module, program) for program in PROGRAMS]
    except Exception as error:  # BCC raises bare Exception
        raise _refused(error) from error
    if keep:
        _keep(keep, module, maps, offsets)
    return loaded


def compile_only(file: Path, map_names: Sequence[str], kernel: Path) -> str:
    """Compile every program for a kernel that does not run here, and keep them in `file`; returns their key.

    kernel: its vmlinux, or its BTF alone.
    """
    maps = {name: 1000 + number for number, name in enumerate(map_names)}  # nothing is loaded
    offsets = _offsets(kernel)
    module = _compiled(maps, offsets)
    return _keep(file, module, maps, offsets)


def _compiled(maps: Mapping[str, int], offsets: Mapping[str, int]) -> Any:
    """BCC's module of all programs."""
    prepare_headers()
    import bcc  # maps LLVM, some 100 MB: only when there is something to compile

    text = "".join(f'#line 1 "{program.source.name}"\n{program.source.read_text()}\n' for program in PROGRAMS)
    flags = [
        "-DUNDERPASS_BCC",
        f"-I{INCLUDE}",
        "-Wall",
        "-Werror",
        *(f"-DMAP_FD_{name}={fd}" for name, fd in maps.items()),
        *(f"-DOFFSET_{name}={offset}" for name, offset in offsets.items()),
    ]
    try:
        return bcc.BPF(text=text, cflags=flags)
    except Exception as error:  # BCC raises bare Exception
        raise _refused(error) from error


def _refused(error: Exception) -> LoaderError:
    return LoaderError(
        f"the programs do not compile or load: {error}",
        hint="the messages above are the compiler's and the verifier's",
        code=Exit.COMPILE,
    )


def _offsets(kernel: Path | None = None) -> dict[str, int]:
    """Where the fields that the programs read are: in the running kernel's structs, or in `kernel`'s."""
    try:
        return {f"{struct}_{field}": tracing.offset_of(struct, field, kernel) for struct, field in _FIELDS}
    except (OSError, LookupError) as error:
        raise LoaderError(
            f"cannot read the kernel's types: {error}",
            hint="the kernel needs CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux)",
        ) from error


def _key(offsets: Mapping[str, int]) -> str:
    """What the programs' code depends on: source, compiler, places in the kernel's structs."""
    compiler = sorted(path.name for path in LIBRARIES.glob("libbcc.so.*.*.*"))
    text = json.dumps([source_digest(), compiler, dict(offsets)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _keep(file: Path, module: Any, maps: Mapping[str, int], offsets: Mapping[str, int]) -> str:
    key = _key(offsets)
    code = {program.name: module.dump_func(program.name) for program in PROGRAMS}
    try:
        kept.write(file, key, code, maps)
    except (OSError, kept.NotKept) as error:
        # What runs is not touched by it: the next boot compiles again.
        sys.stderr.write(f"warning: the compiled programs are not kept in {file}: {error}\n")
    return key


def _load_kept(program: Program, code: bytes) -> Loaded:
    attach = program.attach if program.type in _TYPES_WITH_HOOK else None
    try:
        fd = tracing.load(program.name, code, program.type, attach, program.hook)
    except OSError as error:
        raise LoaderError(
            f"the kernel does not take a kept program: {error}",
            hint="`up --force` compiles it anew",
            code=Exit.COMPILE,
        ) from error
    return Loaded(program, fd, program_info(fd))


def _load(module: Any, program: Program) -> Loaded:
    if program.type is ProgramType.TRACING:  # BCC knows no such programs
        assert program.attach is not None
        code = module.dump_func(program.name)
        fd = tracing.load(program.name, code, program.type, program.attach, program.hook)
    elif program.type in _TYPES_WITH_HOOK:
        loaded = module.load_func(program.name, int(program.type), attach_type=int(program.attach or 0))
        fd = os.dup(loaded.fd)
    else:
        fd = os.dup(module.load_func(program.name, int(program.type)).fd)
    return Loaded(program, fd, program_info(fd))
