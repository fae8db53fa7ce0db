"""`python3 -m datapath.loader.ahead --kernel VMLINUX --kept FILE`: compile for nodes that are elsewhere.

Needs BCC and headers, and nothing else of a node: no right, no map, no network.
"""

import argparse
import sys
from pathlib import Path

from datapath.loader.compiler import compile_only
from datapath.loader.errors import Exit, LoaderError
from datapath.maps.spec import pinned


def main() -> int:
    """Compile and keep; returns the exit status (see `Exit`)."""
    parser = argparse.ArgumentParser(
        prog="python3 -m datapath.loader.ahead", description="Compile the BPF programs for other nodes."
    )
    parser.add_argument("--kernel", type=Path, required=True, help="vmlinux, or the BTF, of their kernel")
    parser.add_argument("--kept", type=Path, required=True, help="file for what comes out")
    options = parser.parse_args()
    try:
        key = compile_only(options.kept, [spec.name for spec in pinned()], options.kernel)
    except LoaderError as error:
        sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
        return int(error.code)
    sys.stdout.write(f"{key}\n")
    return int(Exit.OK)


if __name__ == "__main__":
    sys.exit(main())
