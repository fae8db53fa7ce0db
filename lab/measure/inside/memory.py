"""Runs on a node: the memory of each process, as a JSON list of name, kib (PSS) and cgroup."""

import json
from pathlib import Path

found = []
for folder in Path("/proc").glob("[0-9]*"):
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        name, cgroup = (folder / "comm").read_text().strip(), (folder / "cgroup").read_text()
    except (OSError, StopIteration):
        continue  # a thread of the kernel, or gone by now
    found.append({"name": name, "kib": kib, "cgroup": cgroup})
print(json.dumps(found))
