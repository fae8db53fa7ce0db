"""A connection that a pod keeps open and uses when told: to look at while it is there."""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType

from tests.lab.pods import SERVER_PORT, Pods

SECONDS = 60
#: Connects to the suite's server, which greets and then echoes. Each line of stdin is an order, each line of
#: stdout its outcome: `done`, or what ended the connection (EOF or the name of the errno) and when.
CODE = """
import errno, socket, sys, time
while True:
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 15)
        break
    except ConnectionRefusedError: time.sleep(0.05)
s.settimeout(None)
head = b''
while not head.endswith(b'\\n'): head += s.recv(1)
print(s.getsockname()[1], head.decode().strip(), flush=True)
def take(most):
    try: return s.recv(most)
    except BlockingIOError: return s.recv(most)  # once, instead of the reset: docs/redirect.md
def talk(size):
    s.sendall(b'x' * size)
    left = size
    while left:
        got = len(take(left))
        if not got: raise EOFError
        left -= got
for line in sys.stdin:
    order, number = line.split()
    try:
        if order == 'talk':
            for _ in range(int(number)): talk(256)
        elif order == 'stream':
            while True: talk(256)
        elif not take(1): raise EOFError
        print('done', flush=True)
    except EOFError: print('EOF', time.time(), flush=True)
    except OSError as e: print(errno.errorcode.get(e.errno, e.errno), time.time(), flush=True)
"""


class Talker:
    """`port` is the client's port, `greeting` what the server said first."""

    def __init__(self, pods: Pods, client: str, host: str, port: int = SERVER_PORT) -> None:
        words = ["exec", "-i", "-n", pods.namespace, client, "--"]
        words += ["python3", "-u", "-c", CODE, host, str(port)]
        self._seconds = SECONDS * pods.cluster.slowness
        self._process = subprocess.Popen(
            pods.cluster.argv(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        number, _, self.greeting = self._answer().partition(" ")
        self.port = int(number)

    def talk(self, times: int) -> None:
        """So many requests of 256 bytes, each with its reply."""
        self.order("talk", times)
        answer = self._answer()
        assert answer == "done", answer

    def order(self, what: str, number: int = 0) -> None:
        """Begin something; `ended` tells how it went. `stream`: requests for ever; `wait`: nothing."""
        assert self._process.stdin
        self._process.stdin.write(f"{what} {number}\n")
        self._process.stdin.flush()

    def ended(self) -> tuple[str, float]:
        """What ended the connection, and when (seconds since the epoch)."""
        what, _, when = self._answer().partition(" ")
        return what, float(when)

    def _answer(self) -> str:
        assert self._process.stdout
        cut = threading.Timer(self._seconds, self._process.kill)
        cut.start()
        try:
            line = self._process.stdout.readline().strip()
        finally:
            cut.cancel()
        assert line, f"the pod's end said nothing within {self._seconds:g} s"
        return line

    def __enter__(self) -> Talker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
