"""The agent's metrics are what Prometheus reads, and its logs are one JSON object a line."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import metrics

COUNTS = [("to-pod", "pod-egress", 7, 900), ("policy-denied", "overlay", 2, 120)]
GAUGES = {"ready": {"": 1.0}, "table_entries": {"ipcache": 5.0, "endpoints": 2.0}}


class Scraped:
    """A served registry, and whether the agent is well."""

    def __init__(self) -> None:
        self.healthy = True
        self.metrics = metrics.Metrics()
        self.metrics.watch_datapath(lambda: COUNTS)
        self.metrics.watch_agent(lambda: GAUGES)
        self.server = metrics.serve("127.0.0.1", 0, self.metrics, lambda: self.healthy)

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of a scrape, as Prometheus' own parser reads it."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {
            (s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples
        }


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    made = Scraped()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_datapaths_counters_come_by_reason_and_place(scraped: Scraped) -> None:
    samples = scraped.samples()
    for reason, place, packets, size in COUNTS:
        labels = (("place", place), ("reason", reason))
        assert samples["underpass_packets_total", labels] == packets
        assert samples["underpass_bytes_total", labels] == size


def test_the_agents_gauges_come_with_and_without_labels(scraped: Scraped) -> None:
    samples = scraped.samples()
    assert samples["underpass_ready", ()] == 1
    assert samples["underpass_table_entries", (("name", "ipcache"),)] == 5
    assert samples["underpass_agent_process_resident_memory_bytes", ()] > 1 << 20


def test_requests_of_the_plugin_are_a_histogram(scraped: Scraped) -> None:
    scraped.metrics.observe_cni("ADD", 0.02, "ok")
    scraped.metrics.observe_cni("forged\n", 0.02, "error")
    samples = scraped.samples()
    added = (("command", "ADD"), ("outcome", "ok"))
    assert samples["underpass_cni_seconds_count", added] == 1
    assert samples["underpass_cni_seconds_bucket", (*added[:1], ("le", "0.05"), *added[1:])] == 1
    assert samples["underpass_cni_seconds_count", (("command", "other"), ("outcome", "error"))] == 1


def test_a_quantile_told_by_its_bucket_says_something_around_the_promise(scraped: Scraped) -> None:
    for seconds in (0.022, 0.081, 0.104, 0.151):
        scraped.metrics.observe_cni("ADD", seconds, "ok")
    samples = scraped.samples()

    def up_to(bound: str) -> float:
        labels = (("command", "ADD"), ("le", bound), ("outcome", "ok"))
        return samples["underpass_cni_seconds_bucket", labels]

    bounds = ("0.02", "0.025", "0.075", "0.09", "0.1", "0.11", "0.15", "0.175")
    assert [up_to(bound) for bound in bounds] == [0, 1, 1, 2, 2, 3, 3, 4]


def test_health_follows_the_agent(scraped: Scraped) -> None:
    assert scraped.get("/healthz") == (200, "ok\n")
    scraped.healthy = False
    assert scraped.get("/healthz") == (503, "not ready\n")
    assert scraped.get("/secrets")[0] == 404


def test_logs_are_json_with_their_fields_and_level() -> None:
    code = (
        "from agent.log import make\nlog = make('info')\n"
        "log('debug', 'too much')\nlog('info', 'agent started', node='n')\n"
        "try: 1 / 0\nexcept ZeroDivisionError: log('error', 'engine fault', exc_info=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    started, fault = (json.loads(line) for line in done.stderr.splitlines())
    assert (started["event"], started["level"], started["node"]) == ("agent started", "info", "n")
    assert started["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in fault["exception"]


def test_who_goes_away_before_the_answer_leaves_no_trace_in_the_log(
    scraped: Scraped, capfd: pytest.CaptureFixture[str]
) -> None:
    """A probe of the kubelet, for instance, whose time is over."""
    asked, gone = threading.Event(), threading.Event()

    def slow() -> list[tuple[str, str, int, int]]:
        asked.set()
        assert gone.wait(5)
        return COUNTS

    scraped.metrics.watch_datapath(slow)
    with socket.create_connection(("127.0.0.1", scraped.server.server_port), timeout=5) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert asked.wait(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
    gone.set()
    scraped.server.shutdown()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(5)
    assert capfd.readouterr().err == ""
