"""Step 1: caller and near talk from socket to socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tenacity import retry, stop_after_delay, wait_fixed


@retry(stop=stop_after_delay(20), wait=wait_fixed(1), reraise=True)  # it opens a new one every ten seconds
def _connection(node: Callable[[str], Any]) -> dict[str, Any]:
    done = node("node-1").run("underpass explain below/caller below/near -o json")
    assert done.rc == 0, done.stderr.strip()
    found: list[dict[str, Any]] = json.loads(done.stdout)["connections"]
    assert found, "caller has no open connection to near"
    return found[-1]


def test_the_connection_is_accelerated(node: Callable[[str], Any]) -> None:
    """The connection of caller to near is accelerated"""
    seen = _connection(node)
    assert seen["accelerated"], f"it is not: {seen['reason']}: {seen['why']}"
