"""`python3 -m agent --config FILE`: the agent as a service."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from agent import log as logs
from agent.ipam import StateError
from agent.notify import notify
from agent.settings import SettingsError, load

CONFIGURATION, ENVIRONMENT = 2, 3


def main() -> int:
    """Run until told to end. Exit status: 0 ended, 2 wrong configuration, 3 the node is not prepared."""
    parser = argparse.ArgumentParser(prog="underpass-agent", description="The agent of a node.")
    parser.add_argument("--config", type=Path, required=True)
    given = parser.parse_args()
    try:
        settings = load(given.config)
    except SettingsError as fault:
        sys.stderr.write(f"underpass-agent: {fault}\n")
        return CONFIGURATION
    log = logs.make(settings.log_level)
    from agent.daemon import Agent

    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    try:
        agent = Agent(settings, log)
        agent.start()
    except FileNotFoundError as fault:
        log("error", "the datapath is not loaded on this node", fault=str(fault))
        return ENVIRONMENT
    except (OSError, StateError) as fault:
        log("error", "the agent cannot start", fault=str(fault))
        return ENVIRONMENT
    log("info", "agent started", node=settings.node)
    notify("READY=1")
    ending.wait()
    notify("STOPPING=1")
    log("info", "agent stopping")
    agent.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
