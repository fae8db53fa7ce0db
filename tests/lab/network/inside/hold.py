"""Runs in a pod: holds an idle and a busy connection to each HOST until all have ended. `hold PORT HOST...`.

Prints "held" once they are there, then a line for each at its end: "KIND HOST ERRNO TIME" (EOF for a close).
"""

import errno
import os
import socket
import sys
import threading
import time

LIMIT = 60.0


def say(text: str) -> None:
    """A line in one write: threads speak at the same time."""
    os.write(1, f"{text}\n".encode())


def hold(kind: str, host: str, port: int, held: threading.Barrier) -> None:
    with socket.create_connection((host, port), LIMIT) as end:
        end.recv(100)
        held.wait(LIMIT)
        how = "EOF"
        try:
            if kind == "busy":
                end.sendall(b"x")
            while end.recv(100):
                time.sleep(0.002)
                end.sendall(b"x")
        except OSError as fault:
            how = errno.errorcode.get(fault.errno or 0, str(fault))
        say(f"{kind} {host} {how} {time.time()}")


wanted = [(kind, host) for host in sys.argv[2:] for kind in ("idle", "busy")]
barrier = threading.Barrier(len(wanted) + 1)
for kind, host in wanted:
    threading.Thread(target=hold, args=(kind, host, int(sys.argv[1]), barrier)).start()
barrier.wait(LIMIT)
say("held")
