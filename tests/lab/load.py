"""Requests without a pause from inside a pod, while something happens: how many were answered, which not."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.lab.pods import Pods
from tests.lab.waiting import until

#: It ends by itself after so many seconds; a request fails after so many. Both grow with the lab's slowness.
LIMIT = 180
PATIENCE = 10
#: So many ask at a time; a lab that is slow is loaded as much by one.
THREADS = 4

#: Threads ask the URL again and again; every answer but 200 is a failure, and so is none in time. It ends
#: with its input, and tells its count in lines: to look into the pod for it takes emulated nodes seconds.
_CLIENT = """
import http.client, json, sys, threading, time
host, port, path, limit, patience, askers = sys.argv[1:]
end, count, failures, lock, over = time.monotonic() + float(limit), 0, [], threading.Lock(), threading.Event()
def work():
    global count
    connection = None
    while time.monotonic() < end and not over.is_set():
        began = time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection(host, int(port), timeout=float(patience))
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            what = "" if answer.status == 200 else str(answer.status)
            if answer.will_close: connection.close(); connection = None
        except OSError as fault:
            what, connection = repr(fault), None
        except http.client.HTTPException as fault:
            what, connection = repr(fault), None
        with lock:
            count += 1
            if what: failures.append([round(time.time(), 2), round(time.monotonic() - began, 2), what])
        time.sleep(0.01)
def listen():
    sys.stdin.read(); over.set()
threading.Thread(target=listen, daemon=True).start()
threads = [threading.Thread(target=work) for _ in range(int(askers))]
for thread in threads: thread.start()
for thread in threads:
    while thread.is_alive():
        print(count, flush=True)
        thread.join(0.2)
print(json.dumps({"count": count, "failures": failures}))
"""


@dataclass
class Load:
    """What came of it: requests, and of those that failed the time, the seconds taken, and what was got."""

    count: int = 0
    failures: list[list[object]] = field(default_factory=list)

    def goes_on(self, requests: int = 50) -> None:
        """Wait until so many more requests are through."""
        before = self.count
        until(lambda: self.count >= before + requests, f"{requests} more requests", 60)


@contextmanager
def load(pods: Pods, client: str, host: str, path: str = "/get", port: int = 80) -> Iterator[Load]:
    """Requests from pod `client` while the body runs; the result is filled at its end."""
    slowness = pods.cluster.slowness
    limit, patience, askers = LIMIT * slowness, PATIENCE * slowness, max(1, round(THREADS / slowness))
    words = ["python3", "-c", _CLIENT, host, str(port), path, str(limit), str(patience), str(askers)]
    argv = pods.cluster.argv(["exec", "-i", "-n", pods.namespace, client, "--", *words])
    result, last = Load(), [""]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin and process.stdout and process.stderr

        def follow() -> None:
            assert process.stdout
            for line in process.stdout:
                last[0] = line
                if line.strip().isdigit():
                    result.count = int(line)

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            result.goes_on(10)
            yield result
            result.goes_on()
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=limit)
            finally:
                process.kill()
                follower.join()
        err = process.stderr.read()
    assert process.returncode == 0, err
    told = json.loads(last[0])
    result.count, result.failures = told["count"], told["failures"]
