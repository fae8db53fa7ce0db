"""`python3 -m datapath.loader up|status|down --config FILE`. Prints one JSON object."""

import argparse
import json
import sys
from pathlib import Path

from datapath.loader import verbs
from datapath.loader.configuration import load
from datapath.loader.errors import Exit, LoaderError


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status (see `Exit`)."""
    parser = argparse.ArgumentParser(
        prog="python3 -m datapath.loader", description="Load the node's BPF programs."
    )
    parser.add_argument("verb", choices=("up", "status", "down"))
    parser.add_argument("--config", type=Path, required=True, help="JSON configuration of this node")
    parser.add_argument("--force", action="store_true", help="up: compile and replace even when current")
    parser.add_argument(
        "--kept",
        type=Path,
        action="append",
        default=[],
        help="up: file with compiled programs, taken if they fit; what is compiled goes to the first",
    )
    options = parser.parse_args(arguments)
    try:
        configuration = load(options.config)
        if options.verb == "up":
            result = verbs.up(configuration, force=options.force, kept=options.kept)
        else:
            result = getattr(verbs, options.verb)(configuration)
    except LoaderError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return int(error.code)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return int(Exit.OK)


if __name__ == "__main__":
    sys.exit(main())
