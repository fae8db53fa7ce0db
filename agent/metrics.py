"""Prometheus metrics of the agent. The datapath's counters are read from the kernel when asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent.httpserver import Server
from agent.redirect.view import Counts

# A quantile is told by the bound of its bucket: close together up to what is promised for an ADD (0.15).
SECONDS = (
    0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15,
    0.175, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

# (reason's public name, place, packets, bytes)
DatapathCounts = Iterable[tuple[str, str, int, int]]


class Metrics:
    """The agent's own counters, and what it looks up at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="underpass_agent", registry=self.registry)
        self.cni = Histogram(
            "underpass_cni_seconds",
            "Time of the plugin's requests in the agent",
            ["command", "outcome"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def observe_cni(self, command: str, seconds: float, outcome: str) -> None:
        """One finished request of the plugin."""
        known = command if command in ("ADD", "DEL", "CHECK", "GC", "STATUS") else "other"
        self.cni.labels(known, outcome).observe(seconds)

    def watch_datapath(self, read: Callable[[], DatapathCounts]) -> None:
        """Have the datapath's counters read by `read` at each scrape."""
        self.registry.register(_Datapath(read))

    def watch_agent(self, read: Callable[[], dict[str, dict[str, float]]]) -> None:
        """Have gauges read by `read`: metric's name -> label value -> number ("" for no label)."""
        self.registry.register(_Agent(read))

    def watch_redirect(self, read: Callable[[], Counts]) -> None:
        """Have socket redirect's connections and counters read by `read`."""
        self.registry.register(_Redirect(read))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Datapath(Collector):
    def __init__(self, read: Callable[[], DatapathCounts]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        labels = ["reason", "place"]
        packets = CounterMetricFamily("underpass_packets", "Packets by what became of them", labels=labels)
        size = CounterMetricFamily("underpass_bytes", "Bytes by what became of them", labels=labels)
        for reason, place, count, total in self._read():
            packets.add_metric([reason, place], count)
            size.add_metric([reason, place], total)
        yield packets
        yield size


class _Agent(Collector):
    def __init__(self, read: Callable[[], dict[str, dict[str, float]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        for name, values in self._read().items():
            labelled = any(values)
            gauge = GaugeMetricFamily(
                f"underpass_{name}", name.replace("_", " "), labels=["name"] if labelled else []
            )
            for label, value in values.items():
                gauge.add_metric([label] if labelled else [], value)
            yield gauge


class _Redirect(Collector):
    def __init__(self, read: Callable[[], Counts]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        counts = self._read()
        living = GaugeMetricFamily(
            "underpass_redirect_connections",
            "Open connections of pods; reason says why one is not accelerated",
            labels=["accelerated", "reason"],
        )
        for reason, number in {"": 0, **counts.open}.items():
            living.add_metric(["false" if reason else "true", reason], number)
        plain = CounterMetricFamily(
            "underpass_redirect_plain",
            "Sockets and messages that stayed with TCP, by reason",
            labels=["reason"],
        )
        for reason, number in counts.plain.items():
            plain.add_metric([reason], number)
        yield living
        yield plain
        for name, text, number in (
            ("accelerated", "Connections that were accelerated", counts.accelerated),
            ("messages", "Messages that went from socket to socket", counts.messages),
            ("bytes", "Bytes that went from socket to socket", counts.bytes),
        ):
            yield CounterMetricFamily(f"underpass_redirect_{name}", text, value=number)
        for name, which, value in (
            ("mean", "Mean", counts.latency_mean),
            ("most", "Longest", counts.latency_most),
        ):
            yield GaugeMetricFamily(
                f"underpass_redirect_latency_{name}_seconds",
                f"{which} time from send to read, of samples of open connections",
                value=value,
            )


def serve(address: str, port: int, metrics: Metrics, healthy: Callable[[], bool]) -> Server:
    """Serve /metrics and /healthz in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
            elif self.path == "/healthz":
                ok = healthy()
                self._send(200 if ok else 503, b"ok\n" if ok else b"not ready\n", "text/plain")
            else:
                self._send(404, b"not found\n", "text/plain")

        def _send(self, status: int, body: bytes, content: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line."""

    server = Server((address, port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
