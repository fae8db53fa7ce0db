"""Requests without a pause from inside a pod, while something happens: how many were answered, which not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.lab.pods import Pods
from tests.lab.waiting import until

#: It ends by itself after so many seconds; a request fails after so many. Both grow with the lab's slowness.
LIMIT = 180
PATIENCE = 10
#: So many ask at a time; a lab that is slow is loaded as much by one.
THREADS = 4

#: Threads ask the URL again and again; every answer but 200 is a failure, and so is none in time.
_CLIENT = """
import http.client, json, os, sys, threading, time
host, port, path, name = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
end, count, failures, lock = time.monotonic() + float(sys.argv[5]), 0, [], threading.Lock()
patience, askers = float(sys.argv[6]), int(sys.argv[7])
def work():
    global count
    connection = None
    while time.monotonic() < end and not os.path.exists(name + ".stop"):
        began = time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection(host, port, timeout=patience)
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
        open(name + ".count", "w").write(str(count)); time.sleep(0.01)
threads = [threading.Thread(target=work) for _ in range(askers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"count": count, "failures": failures}))
"""


@dataclass
class Load:
    """What came of it: requests, and of those that failed the time, the seconds taken, and what was got."""

    seen: Callable[[], int]
    count: int = 0
    failures: list[list[object]] = field(default_factory=list)

    def goes_on(self, requests: int = 50) -> None:
        """Wait until so many more requests are through."""
        before = self.seen()
        until(lambda: self.seen() >= before + requests, f"{requests} more requests", 60)


@contextmanager
def load(pods: Pods, client: str, host: str, path: str = "/get", port: int = 80) -> Iterator[Load]:
    """Requests from pod `client` while the body runs; the result is filled at its end."""
    name = f"/tmp/load-{host}"
    pods.exec(client, ["rm", "-f", f"{name}.stop", f"{name}.count"])
    slowness = pods.cluster.slowness
    limit, patience, askers = LIMIT * slowness, PATIENCE * slowness, max(1, round(THREADS / slowness))
    command = ["python3", "-c", _CLIENT, host, str(port), path, name, str(limit), str(patience), str(askers)]
    argv = pods.cluster.argv(["exec", "-n", pods.namespace, client, "--", *command])

    def seen() -> int:
        return int(pods.exec(client, ["cat", f"{name}.count"]).stdout or 0)

    result = Load(seen)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            result.goes_on(10)
            yield result
            result.goes_on()
        finally:
            pods.exec(client, ["touch", f"{name}.stop"])
            out, err = process.communicate(timeout=limit)
    assert process.returncode == 0, err
    told = json.loads(out)
    result.count, result.failures = told["count"], told["failures"]
