"""Every count and duration of the suite, in two sizes: `ci` for each run, `full` for a soak.

`UNDERPASS_SIZE` chooses; the report's header states the size. A test takes its numbers from here and
nowhere else, so that no promise is shrunk in silence.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """The parameters; the comment gives what each counts."""

    kills_during_up: int  # moments at which a running `lab up` is killed
    power_losses: int  # times that all node processes are killed at once
    store_kills: int  # times that a writer of the artifact store is killed
    stop_starts: int  # rounds of stop and start
    labs_side_by_side: int  # labs beside the one under test
    policy_examples: int = 60  # random sets of policies held against the truth table
    address_books: int = 40  # random runs of ADD, DEL and crash against the address book
    cni_parallel: int = 40  # sandboxes wired up and taken down at once
    cni_rounds: int = 1  # times that, with plugin and agent killed at random points
    redirect_connects: int = 1500  # times connect, send, close at full speed through redirect
    redirect_reuses: int = 100  # times that one tuple is used again
    grid_examples: int = 3  # generated sets of policies tried by real connections
    agent_restarts: int = 3  # times that every agent is killed, restarted, its programs replaced
    api_away_seconds: int = 20  # how long the API server is gone
    early_pods: int = 12  # pods whose first instruction is a connect to a denied peer
    lab_cni_parallel: int = 20  # sandboxes on a node of the lab at once
    lab_cni_rounds: int = 1  # times that, with plugin and agent killed at random points
    identity_wait_seconds: int = 5  # for which an identity is unused before it is deleted
    sandbox_wait_seconds: int = 6  # for which an attachment that no runtime knows is left alone
    redirect_requests: int = 2000  # requests and replies between two pods during which no packet may move
    mesh_split_requests: int = 400  # requests that a VirtualService splits
    mesh_collisions: int = 150  # times that each client of a sidecar opens two connections of one port
    mesh_restarts: int = 1  # times that workload, istiod and agents are restarted under load
    redirect_wakeups: int = 300  # messages that each must wake an edge-triggered reader
    redirect_volume: int = 64 << 20  # bytes as requests and replies, and one way; a multiple of 64 KiB
    program_requests: int = 200  # requests to each real program under redirect
    redirect_departures: int = 3  # streams whose senders leave redirect while they send


CI = Sizes(kills_during_up=2, power_losses=1, store_kills=10, stop_starts=1, labs_side_by_side=1)
FULL = Sizes(
    kills_during_up=12,
    power_losses=5,
    store_kills=200,
    stop_starts=5,
    labs_side_by_side=3,
    policy_examples=2000,
    address_books=1000,
    cni_parallel=200,
    cni_rounds=20,
    redirect_connects=100_000,
    redirect_reuses=500,
    grid_examples=60,
    agent_restarts=50,
    api_away_seconds=600,
    early_pods=500,
    lab_cni_parallel=200,
    lab_cni_rounds=20,
    identity_wait_seconds=120,
    sandbox_wait_seconds=120,
    redirect_requests=200_000,
    mesh_split_requests=4000,
    mesh_collisions=10_000,
    mesh_restarts=20,
    redirect_wakeups=20_000,
    redirect_volume=1 << 30,
    program_requests=5000,
    redirect_departures=300,
)

NAME = os.environ.get("UNDERPASS_SIZE", "ci")
if NAME not in ("ci", "full"):
    raise SystemExit(f"UNDERPASS_SIZE is ci or full, not {NAME!r}")
SIZES = FULL if NAME == "full" else CI


def header() -> str:
    """One line for the report: the size and every parameter."""
    values: dict[str, Any] = asdict(SIZES)
    return f"size: {NAME} (" + ", ".join(f"{f.name}={values[f.name]}" for f in fields(Sizes)) + ")"
