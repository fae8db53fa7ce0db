"""Runs in a pod, detached: keeps traffic going until told to stop. `flows FOLDER [[KIND, HOST, PORT], ...]`.

Kinds: `stream` (one TCP connection, all that is sent must come back), `datagrams` (one UDP flow, each must
be answered), `fresh` (a new TCP connection each time), `knock` (what is denied: new TCP and UDP flows).
It stops when FOLDER/stop is there and leaves FOLDER/result, a JSON list of
{kind, host, sent, received, fault}: bytes of a stream, else a number of attempts.
"""

import errno
import json
import os
import socket
import sys
import threading
import time

FOLDER = sys.argv[1]
STOP = f"{FOLDER}/stop"
PAUSE = 0.02
PATIENCE = 20.0
BLOCK = bytes(range(256)) * 8


class Flow:
    """One flow and what became of it."""

    def __init__(self, kind: str, host: str, port: int) -> None:
        self.kind, self.to = kind, (host, port)
        self.sent = self.received = 0
        self.fault = ""

    def run(self) -> None:
        """Until the end; a fault ends it before."""
        try:
            getattr(self, self.kind)()
        except OSError as fault:
            self.fault = errno.errorcode.get(fault.errno or 0, str(fault))

    def stream(self) -> None:
        with socket.create_connection(self.to, PATIENCE) as end, end.makefile("rb") as answers:
            answers.readline()  # the greeting
            while True:
                last = over()
                end.sendall(BLOCK)
                self.sent += len(BLOCK)
                back = answers.read(len(BLOCK))
                self.received += len(back)
                if back != BLOCK:
                    self.fault = "another answer than was sent"
                if last or self.fault:
                    return
                time.sleep(PAUSE)

    def datagrams(self) -> None:
        """Answers are counted as they come; the last ones have a second to arrive."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.connect(self.to)
            end.settimeout(1.0)
            counting = threading.Thread(target=self._count, args=(end,))
            counting.start()
            while not over():
                end.send(b"x")
                self.sent += 1
                time.sleep(PAUSE)
            counting.join()

    def _count(self, end: socket.socket) -> None:
        while True:
            try:
                end.recv(2048)
                self.received += 1
            except TimeoutError:
                if over():
                    return
            except OSError as fault:
                self.fault = errno.errorcode.get(fault.errno or 0, str(fault))

    def fresh(self) -> None:
        while not over():
            self.sent += 1
            with socket.create_connection(self.to, PATIENCE) as end:
                self.received += bool(end.recv(100))
            time.sleep(PAUSE)

    def knock(self) -> None:
        while not over():
            self.sent += 1
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"x", self.to)
            try:
                socket.create_connection(self.to, 0.1).close()
                self.received += 1
            except OSError:
                pass


def over() -> bool:
    return os.path.exists(STOP)  # noqa: PTH110


flows = [Flow(*wanted) for wanted in json.loads(sys.argv[2])]
threads = [threading.Thread(target=flow.run) for flow in flows]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
result = [
    {"kind": f.kind, "host": f.to[0], "sent": f.sent, "received": f.received, "fault": f.fault} for f in flows
]
with open(f"{FOLDER}/result.new", "w") as file:  # noqa: PTH123
    json.dump(result, file)
os.rename(f"{FOLDER}/result.new", f"{FOLDER}/result")  # noqa: PTH104
