"""A stream through zstd, where the host has it: bundles are gigabytes, so nothing is kept in between.

These are the only programs that `lab.run` does not start: it keeps output as text.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lab.errors import ExitCode, LabError, die

_MAGIC = bytes.fromhex("28b52ffd")
_BLOCK = 1 << 20


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream that ends in the file `path`, compressed if the host has zstd, else as it is."""
    with path.open("wb") as file:
        if not shutil.which("zstd"):
            yield file
            return
        process = subprocess.Popen(
            ["zstd", "-T0", "-6", "--quiet"], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE
        )
        with _ended(process, path):
            assert process.stdin
            yield process.stdin


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """The contents of `path`, decompressed if it is compressed."""
    with path.open("rb", buffering=0) as file:  # zstd goes on where we stop reading
        compressed = file.read(len(_MAGIC)) == _MAGIC
        file.seek(0)
        if not compressed:
            yield file
            return
        if not shutil.which("zstd"):
            die(
                f"{path} is compressed with zstd, which this host lacks",
                hint="install it: apt-get install zstd",
                code=ExitCode.HOST,
            )
        process = subprocess.Popen(
            ["zstd", "--decompress", "--stdout", "--quiet"],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with _ended(process, path):
            assert process.stdout
            yield process.stdout


@contextmanager
def _ended(process: subprocess.Popen[bytes], path: Path) -> Iterator[None]:
    """End zstd with the block; `LabError` with its complaint if it failed."""
    assert process.stderr
    try:
        yield
        if process.stdin:
            process.stdin.close()
        while process.stdout and process.stdout.read(_BLOCK):
            pass  # what follows the archive's end; zstd checks its sum behind it
    except BrokenPipeError:
        pass  # zstd has gone: its words, below, say why
    except BaseException:
        process.kill()
        raise
    finally:
        complaint = process.stderr.read().decode(errors="replace").strip()
        status = process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
    if status:
        raise LabError(f"zstd failed on {path}", details=complaint.splitlines(), code=ExitCode.ARTIFACT)
