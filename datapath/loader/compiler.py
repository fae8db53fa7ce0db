"""Compile and load by BCC: the only module that imports it.

All programs are compiled as one text, so LLVM and the headers are read once. The maps exist already; their
descriptors reach the source as macros. What is loaded is pinned by the caller, then this process ends.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapath import tracing
from datapath.libbpf import ProgramInfo, ProgramType, program_info
from datapath.loader.errors import Exit, LoaderError
from datapath.programs import INCLUDE, PROGRAMS, Program

HEADERS = Path("/usr/src")
MODULES = Path("/lib/modules")
# Fields of kernel structs that the programs read: their place is the running kernel's.
_FIELDS = (("tcp_sock", "write_seq"),)
_TYPES_WITH_HOOK = (ProgramType.CGROUP_SOCK_ADDR, ProgramType.CGROUP_SOCKOPT)


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


def compile_all(maps: Mapping[str, int]) -> list[Loaded]:
    """Compile and load every program. maps: descriptors by map name.

    BCC writes the compiler's and the verifier's messages to standard error.
    """
    prepare_headers()
    import bcc  # maps LLVM, some 100 MB: only when there is something to compile

    text = "".join(f'#line 1 "{program.source.name}"\n{program.source.read_text()}\n' for program in PROGRAMS)
    flags = [
        "-DUNDERPASS_BCC",
        f"-I{INCLUDE}",
        "-Wall",
        "-Werror",
        *(f"-DMAP_FD_{name}={fd}" for name, fd in maps.items()),
        *_offsets(),
    ]
    try:
        module = bcc.BPF(text=text, cflags=flags)
        return [_load(module, program) for program in PROGRAMS]
    except Exception as error:  # BCC raises bare Exception
        raise LoaderError(
            f"the programs do not compile or load: {error}",
            hint="the messages above are the compiler's and the verifier's",
            code=Exit.COMPILE,
        ) from error


def _offsets() -> list[str]:
    try:
        return [f"-DOFFSET_{struct}_{field}={tracing.offset_of(struct, field)}" for struct, field in _FIELDS]
    except (OSError, LookupError) as error:
        raise LoaderError(
            f"cannot read the kernel's types: {error}",
            hint="the kernel needs CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux)",
        ) from error


def _load(module: Any, program: Program) -> Loaded:
    if program.type is ProgramType.TRACING:  # BCC knows no such programs
        assert program.attach is not None
        fd = tracing.load(program.name, module.dump_func(program.name), program.attach, program.hook)
    elif program.type in _TYPES_WITH_HOOK:
        loaded = module.load_func(program.name, int(program.type), attach_type=int(program.attach or 0))
        fd = os.dup(loaded.fd)
    else:
        fd = os.dup(module.load_func(program.name, int(program.type)).fd)
    return Loaded(program, fd, program_info(fd))
