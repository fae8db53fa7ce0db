"""Runs on a node: many sandboxes at once by the real plugin, through kills. `storm PARALLEL ROUNDS SEED`.

Each round: PARALLEL network namespaces get an ADD, some of the plugins and (every second round) the agent
are killed at random moments, then all get a DEL. The address book and the links are compared with what was
answered. Prints a JSON object {adds, killed_plugins, killed_agents, faults}.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PARALLEL, ROUNDS, SEED = (int(text) for text in sys.argv[1:4])
PLUGIN = "/opt/cni/bin/underpass-cni"
SOCKET = "/run/underpass/cni.sock"
BOOK = Path("/var/lib/underpass/addresses.json")
CONFIG = json.dumps({"cniVersion": "1.0.0", "name": "underpass", "type": "underpass-cni"}).encode()
LIMIT = 120.0
SETTLE = 10.0
rng = random.Random(SEED)
count = {"adds": 0, "killed_plugins": 0, "killed_agents": 0}
faults: list[str] = []


def book() -> dict[str, str]:
    """container -> address, of the containers that are ours."""
    held = json.loads(BOOK.read_text())["attachments"]
    return {a["container"]: a["address"] for a in held if a["container"].startswith("storm-")}


def cables() -> int:
    """How many pods' cables there are that no sandbox but ours has: other pods come and go meanwhile."""
    done = subprocess.run(["ip", "-j", "link", "show", "type", "veth"], capture_output=True, check=True)
    there = {link["ifname"] for link in json.loads(done.stdout) if link["ifname"].startswith("pod")}
    held = json.loads(BOOK.read_text())["attachments"]
    return len(there - {a["host_interface"] for a in held if not a["container"].startswith("storm-")})


def count_cables(wanted: int) -> int:
    """The same, once it is as wanted, or after a while: another pod may be between its book and its cable."""
    deadline = time.monotonic() + SETTLE
    while (found := cables()) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def plugin(command: str, container: str, netns: str, kill_after: float | None = None) -> tuple[int, Any]:
    """(status, answer); with `kill_after` it is killed after so many seconds."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    process = subprocess.Popen([PLUGIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    if kill_after is not None:
        assert process.stdin
        process.stdin.write(CONFIG)
        process.stdin.close()
        time.sleep(kill_after)
        process.kill()
        process.wait()
        count["killed_plugins"] += 1
        return -9, {}
    output, _ = process.communicate(CONFIG, timeout=LIMIT)
    return process.returncode, json.loads(output) if output else {}


def await_agent(deadline: float) -> None:
    """Wait until the agent listens: plugins that are started in vain would keep it from its own start."""
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(SOCKET)
            return
        time.sleep(0.1)


def persist(command: str, container: str, netns: str) -> tuple[int, Any]:
    """Again and again while the answer is "try again later"."""
    deadline = time.monotonic() + LIMIT
    while True:
        status, answer = plugin(command, container, netns)
        if status == 0 or answer.get("code") != 11 or time.monotonic() > deadline:
            return status, answer
        time.sleep(0.2)
        await_agent(deadline)


def add(container: str, netns: str) -> str:
    """As a runtime does it: an ADD that fails is followed by a DEL, then tried again. Returns the address."""
    for _ in range(20):
        status, answer = persist("ADD", container, netns)
        if status == 0:
            count["adds"] += 1
            return str(answer["ips"][0]["address"]).removesuffix("/32")
        persist("DEL", container, "")
    raise RuntimeError(f"{container}: {answer}")


def one(number: int, answered: dict[str, str]) -> None:
    container, netns = f"storm-{number}", f"/run/netns/storm-{number}"
    if rng.random() < 0.3:
        plugin("ADD", container, netns, rng.uniform(0, 0.3))
        persist("DEL", container, "")
        container += "-again"
    answered[container] = add(container, netns)


def kill_agents(over: threading.Event) -> None:
    """At random moments, each once the last one is back: agents killed sooner would serve nobody."""
    pause = 0.3  # the first one soon, also where a round is short
    while not over.wait(pause):
        pause = rng.uniform(2, 5)
        subprocess.run(["systemctl", "kill", "--signal=KILL", "underpass-agent"], check=True)
        count["killed_agents"] += 1
        time.sleep(0.2)
        await_agent(time.monotonic() + LIMIT)


def round_of(number: int) -> None:
    answered: dict[str, str] = {}
    over = threading.Event()
    killer = threading.Thread(target=kill_agents, args=(over,))
    if number % 2 == 0:
        killer.start()
    try:
        with ThreadPoolExecutor(24) as pool:
            for outcome in [pool.submit(one, n, answered) for n in range(PARALLEL)]:
                outcome.result()
    finally:
        over.set()
        if killer.ident:
            killer.join()
    if len(set(answered.values())) != PARALLEL:
        faults.append(f"round {number}: an address was given twice")
    if book() != answered:
        faults.append(f"round {number}: the book is not what was answered")
    if (found := count_cables(PARALLEL)) != PARALLEL:
        faults.append(f"round {number}: {found} cables for {PARALLEL} sandboxes")
    with ThreadPoolExecutor(24) as pool:
        for status, answer in pool.map(lambda c: persist("DEL", c, ""), answered):
            if status:
                faults.append(f"round {number}: DEL {answer}")
    if book() or count_cables(0):
        faults.append(f"round {number}: left behind {len(book())} addresses, {cables()} cables")


names = [f"storm-{n}" for n in range(PARALLEL)]
batch = "\n".join(f"netns add {name}" for name in names)
subprocess.run(["ip", "-batch", "-"], input=batch.encode(), check=True)
try:
    for number in range(ROUNDS):
        round_of(number)
finally:
    subprocess.run(["ip", "-batch", "-"], input=batch.replace("add", "del").encode(), check=False)
print(json.dumps({**count, "faults": faults}))  # noqa: T201
sys.exit(os.EX_OK)
