"""Step 5: caller stays with TCP; others do not, and it still talks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tenacity import retry, stop_after_delay, wait_fixed


@retry(stop=stop_after_delay(20), wait=wait_fixed(1), reraise=True)  # until its connections are new ones
def test_the_connection_stays_with_tcp(node: Callable[[str], Any]) -> None:
    """The connection of caller to near is plain TCP, because it opted out"""
    done = node("node-1").run("underpass explain below/caller below/near -o json")
    assert done.rc == 0, done.stderr.strip()
    found = json.loads(done.stdout)["connections"]
    assert found, "caller has no open connection to near"
    assert not found[-1]["accelerated"], "it is accelerated"
    assert found[-1]["reason"] == "opted-out", f"its reason is {found[-1]['reason']}"
