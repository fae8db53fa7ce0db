"""Runs in a pod or on a node: tries connections, all at once. `probe LIMIT [[PROTOCOL, HOST, PORT], ...]`.

Prints a JSON list: for each the first line of the answer, or the name of the errno.
"""

import errno
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

LIMIT = float(sys.argv[1])


def attempt(target: tuple[str, str, int]) -> str:
    protocol, host, port = target
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as end:
        end.settimeout(LIMIT)
        try:
            end.connect((host, port))
            if protocol == "udp":
                end.send(b"x")
            return end.recv(2048).decode().splitlines()[0]
        except TimeoutError:
            return "ETIMEDOUT"
        except OSError as fault:
            return errno.errorcode.get(fault.errno or 0, "?")


targets = json.loads(sys.argv[2])
with ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps(list(pool.map(attempt, targets))))  # noqa: T201
