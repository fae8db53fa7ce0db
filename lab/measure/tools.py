"""What load generators print, read into numbers. Times are microseconds, rates bytes or requests a second."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from lab.errors import ExitCode, die

_COLOUR = re.compile(r"\x1b\[[0-9;]*m|\[2;35m|\[0m")
_PERCENTILE = re.compile(r"percentile (\d+\.\d+)\s*=\s*([\d.]+)")
_SENT = re.compile(r"\[Total Run\].*SentMessages=(\d+); ReceivedMessages=(\d+)")
_LOST = re.compile(
    r"# dropped messages = (\d+); # duplicated messages = (\d+); # out-of-order messages = (\d+)"
)
_THROUGHPUT = re.compile(r"Total of (\d+) messages sent in ([\d.]+) sec")
_METRIC = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)

_WRK_SHARE = re.compile(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m)$", re.MULTILINE)
_WRK_TAIL = re.compile(r"^p99\.9 (\d+) us$", re.MULTILINE)
_WRK_REQUESTS = re.compile(r"(\d+) requests in ([\d.]+)(us|ms|s|m),")
_WRK_FAULTS = re.compile(r"(?:Socket errors|Non-2xx or 3xx responses): (.*)")
_IN_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}

SOCKPERF_SAW_NOTHING = "No valid observations found"

#: A script for wrk, in the language that it takes: of itself it tells no percentile behind 99.
WRK_SCRIPT = 'done = function(_, latency) print(("p99.9 %d us"):format(latency:percentile(99.9))) end'

PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Latency:
    """Round trips: percentile -> microseconds; `requests` counts all that were sent, warm-up too.

    `rate` is requests a second, 0 where it was not told. `errors` counts what was lost, doubled, out of order
    or answered with a fault.
    """

    percentiles: dict[float, float]
    requests: int
    rate: float
    errors: int


@dataclass(frozen=True)
class Stream:
    """Bytes sent one way, the seconds until all were read, and the seconds of CPU that their sender used."""

    bytes: int
    seconds: float
    cpu: float


def sockperf_latency(text: str) -> Latency:
    """The answer of `sockperf ping-pong --full-rtt`."""
    text = _COLOUR.sub("", text)
    found = {float(share): float(value) for share, value in _PERCENTILE.findall(text)}
    sent, lost = _SENT.search(text), _LOST.search(text)
    if not sent or not lost or not set(PERCENTILES) <= set(found):
        _unread("sockperf ping-pong", text)
    unanswered = int(sent[1]) - int(sent[2])
    # the timer interrupts one exchange: that one is not lost
    errors = max(0, unanswered - 1) + sum(map(int, lost.groups()))
    seconds = re.search(r"\[Total Run\] RunTime=([\d.]+)", text)
    rate = int(sent[2]) / float(seconds[1]) if seconds and float(seconds[1]) else 0.0
    return Latency({share: found[share] for share in PERCENTILES}, int(sent[1]), rate, errors)


def sockperf_throughput(text: str, size: int) -> tuple[float, int]:
    """Of `sockperf throughput` with messages of `size` bytes: bytes a second, and how many were sent."""
    found = _THROUGHPUT.search(_COLOUR.sub("", text))
    if not found or not float(found[2]):
        _unread("sockperf throughput", text)
    return int(found[1]) * size / float(found[2]), int(found[1])


def wrk_latency(text: str) -> Latency:
    """The answer of `wrk --latency`; the percentile 99.9 is there if it ran `WRK_SCRIPT`."""
    shares = {float(share): float(value) * _IN_US[unit] for share, value, unit in _WRK_SHARE.findall(text)}
    if tail := _WRK_TAIL.search(text):
        shares[99.9] = float(tail[1])
    counted = _WRK_REQUESTS.search(text)
    if not counted or not set(PERCENTILES[:4]) <= set(shares):
        return _unread("wrk", text)
    faults = sum(int(number) for line in _WRK_FAULTS.findall(text) for number in re.findall(r"\d+", line))
    seconds = float(counted[2]) * _IN_US[counted[3]] / 1e6
    return Latency(shares, int(counted[1]), int(counted[1]) / seconds, faults)


def pingpong_latency(text: str) -> Latency:
    """The answer of our own `inside/pingpong.py`."""
    try:
        data = json.loads(text)
    except ValueError:
        _unread("pingpong", text)
    shares = {float(share): float(value) for share, value in data["percentiles"].items()}
    return Latency(shares, int(data["requests"]), float(data["rate"]), 0)


def stream(text: str) -> Stream:
    """The answer of the sender of our own `inside/streams.py`."""
    try:
        found = Stream(**json.loads(text))
    except (ValueError, TypeError):
        _unread("streams", text)
    return found


def iperf(text: str) -> float:
    """Bytes a second that the receiver of `iperf3 -J` got."""
    try:
        data: dict[str, Any] = json.loads(text)
        return float(data["end"]["sum_received"]["bits_per_second"]) / 8
    except (ValueError, KeyError):
        _unread("iperf3", text)


def histogram(text: str, name: str, **labels: str) -> list[tuple[float, float]]:
    """The buckets of a histogram in Prometheus text: (upper bound, count up to it)."""
    buckets = []
    for metric, inside, value in _METRIC.findall(text):
        given = dict(re.findall(r'(\w+)="([^"]*)"', inside))
        if metric == f"{name}_bucket" and labels.items() <= given.items():
            buckets.append((float(given["le"]), float(value)))
    return sorted(buckets)


def _unread(tool: str, text: str) -> NoReturn:
    die(
        f"{tool} did not tell what was asked for",
        details=text.strip().splitlines()[-10:],
        hint="the lines above are the tool's; `lab kubectl get pods -A` shows whether its server runs",
        code=ExitCode.NODE,
    )
