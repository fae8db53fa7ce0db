"""Runs in a pod: connects COUNT times to HOST PORT, prints the seconds of each as a JSON list."""

import json
import socket
import sys
import time

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seconds = []
for _ in range(count):
    with socket.socket() as end:
        began = time.perf_counter()
        end.connect((host, port))
        seconds.append(time.perf_counter() - began)
        end.recv(1)  # the server closes first: no port of ours stays in TIME_WAIT
print(json.dumps(seconds))
