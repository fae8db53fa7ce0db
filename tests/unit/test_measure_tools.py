"""What load generators print is read as it is meant, and refused where it is not all there."""

from __future__ import annotations

import pytest

from lab.errors import LabError
from lab.measure import tools

SOCKPERF = """\
sockperf: \x1b[2;35m== version #3.7-no.git == \x1b[0m
sockperf: Starting test...
sockperf: [Total Run] RunTime=1.000 sec; Warm up time=400 msec; SentMessages=53201; ReceivedMessages=53200
sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=31799; ReceivedMessages=31799
sockperf: \x1b[2;35m====> avg-rtt=17.287 (std-dev=10.161)\x1b[0m
sockperf: # dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0
sockperf: \x1b[2;35mTotal 31799 observations\x1b[0m; each percentile contains 317.99 observations
sockperf: ---> <MAX> observation = 1481.582
sockperf: ---> percentile 99.990 =  379.075
sockperf: ---> percentile 99.900 =   62.473
sockperf: ---> percentile 99.000 =   38.377
sockperf: ---> percentile 90.000 =   17.766
sockperf: ---> percentile 75.000 =   17.305
sockperf: ---> percentile 50.000 =   16.374
sockperf: ---> <MIN> observation =   15.663
"""

WRK = """\
Running 1s test @ http://10.0.0.2:8080/256
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.88ms    2.51ms  21.38ms   95.44%
    Req/Sec     1.86k   440.10     2.12k    90.00%
  Latency Distribution
     50%  311.00us
     75%  415.00us
     90%    0.87ms
     99%   15.97ms
  1851 requests in 1.00s, 1.44MB read
Requests/sec:   1847.15
"""


def test_sockperf_tells_round_trips_and_every_request_that_was_sent() -> None:
    seen = tools.sockperf_latency(SOCKPERF)
    assert seen.percentiles == {50.0: 16.374, 75.0: 17.305, 90.0: 17.766, 99.0: 38.377, 99.9: 62.473}
    assert (seen.requests, seen.rate, seen.errors) == (53201, 53200.0, 0)


@pytest.mark.parametrize(
    ("was", "is_", "errors"),
    [
        ("ReceivedMessages=53200", "ReceivedMessages=53190", 10),
        ("# dropped messages = 0", "# dropped messages = 3", 3),
        ("# duplicated messages = 0", "# duplicated messages = 2", 2),
    ],
)
def test_what_sockperf_lost_or_doubled_is_an_error(was: str, is_: str, errors: int) -> None:
    assert tools.sockperf_latency(SOCKPERF.replace(was, is_)).errors == errors


def test_wrk_mixes_units_and_all_become_microseconds() -> None:
    seen = tools.wrk_latency(WRK)
    assert seen.percentiles == {50.0: 311.0, 75.0: 415.0, 90.0: 870.0, 99.0: 15970.0}
    assert (seen.requests, seen.rate, seen.errors) == (1851, 1851.0, 0)


def test_wrks_script_adds_the_tail() -> None:
    assert tools.wrk_latency(WRK + "p99.9 16123 us\n").percentiles[99.9] == 16123.0


def test_wrks_socket_errors_and_bad_answers_are_errors() -> None:
    faults = "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 8\n"
    assert tools.wrk_latency(WRK.replace("Requests/sec", faults + "Requests/sec")).errors == 15


def test_a_streams_rate_is_in_bytes_a_second() -> None:
    seen = tools.sockperf_throughput("sockperf: Total of 97005 messages sent in 2.000 sec", 4096)
    assert seen == (198666240, 97005)
    assert tools.iperf('{"end": {"sum_received": {"bits_per_second": 8000000000.0}}}') == 1e9


@pytest.mark.parametrize(
    "read",
    [
        tools.sockperf_latency,
        tools.wrk_latency,
        tools.iperf,
        tools.pingpong_latency,
        tools.stream,
        lambda text: tools.sockperf_throughput(text, 64),
    ],
)
def test_an_answer_without_figures_is_a_fault_that_shows_it(read: object) -> None:
    with pytest.raises(LabError) as fault:
        read("connect: Connection refused\n")  # type: ignore[operator]
    assert "connect: Connection refused" in fault.value.details


def test_a_histogram_is_read_for_the_labels_that_are_asked_for() -> None:
    text = """\
# TYPE underpass_cni_seconds histogram
underpass_cni_seconds_bucket{command="ADD",le="0.15",outcome="ok"} 9.0
underpass_cni_seconds_bucket{command="ADD",le="0.1",outcome="ok"} 4.0
underpass_cni_seconds_bucket{command="ADD",le="+Inf",outcome="ok"} 10.0
underpass_cni_seconds_bucket{command="DEL",le="0.1",outcome="ok"} 7.0
underpass_cni_seconds_count{command="ADD",outcome="ok"} 10.0
"""
    found = tools.histogram(text, "underpass_cni_seconds", command="ADD", outcome="ok")
    assert found == [(0.1, 4.0), (0.15, 9.0), (float("inf"), 10.0)]
