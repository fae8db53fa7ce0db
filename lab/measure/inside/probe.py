"""Runs in a pod: a UDP probe to HOST PORT each millisecond, for SECONDS. Prints `TIME open`, `TIME closed`.

Open: the time at which the first probe was sent that came back. Closed: that of the first that did
not, told once nothing has come back for QUIET seconds. Times are seconds of the wall clock.
"""

import contextlib
import socket
import sys
import time

QUIET = 0.15

host, port, until = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])

end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.connect((host, port))
end.settimeout(0.001)
sent: dict[int, float] = {}
state, number, last_back = "", 0, -1
while time.monotonic() < until:
    number += 1
    sent[number] = now = time.time()
    with contextlib.suppress(OSError):
        end.send(number.to_bytes(8, "big"))
    try:
        while True:
            back = int.from_bytes(end.recv(2048), "big")
            last_back = max(last_back, back)
            if state != "open":
                state = "open"
                print(sent.get(back, now), state, flush=True)
            if last_back == number:
                break
    except OSError:
        pass
    oldest = sent.get(last_back + 1, now)
    if state != "closed" and now - oldest > QUIET:
        state = "closed"
        print(oldest, state, flush=True)
    if len(sent) > 20000:
        sent = {key: value for key, value in sent.items() if key > last_back}
        if len(sent) > 10000:
            sent = {}
            last_back = number
    time.sleep(max(0.0, now + 0.001 - time.time()))
