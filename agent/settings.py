"""The agent's configuration file: JSON, every fault listed at once."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SettingsError(Exception):
    """The file cannot be used; the text names every fault."""


@dataclass(frozen=True)
class AgentSettings:
    """What is particular to a node. Ranges are those of the whole cluster.

    `state` holds what must outlive the node's boot, `run` what must not. `overlay_device` is the loader's.
    An identity that nobody has had for `identity_wait_seconds` is deleted; an attachment that is older than
    `sandbox_wait_seconds` is taken down where containerd does not list its container.
    """

    node: str
    node_address: str
    pods_range: str
    services_range: str
    kubeconfig: Path
    state: Path = Path("/var/lib/underpass")
    run: Path = Path("/run/underpass")
    pins: Path = Path("/sys/fs/bpf/underpass")
    overlay_device: str = "underpass0"
    conflist: Path = Path("/etc/cni/net.d/10-underpass.conflist")
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 9964
    log_level: str = "info"
    identity_wait_seconds: int = 600
    sandbox_wait_seconds: int = 120


def _range(value: object) -> str:
    return str(ipaddress.IPv4Network(_text(value)))


def _address(value: object) -> str:
    return str(ipaddress.IPv4Address(_text(value)))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text, not empty")
    return value


def _path(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _port(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 65536:
        raise ValueError("must be a port, 0 for none")
    return value


def _seconds(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError("must be a number of seconds, at least 1")
    return value


def _level(value: object) -> str:
    if value not in ("debug", "info", "warning", "error"):
        raise ValueError("must be debug, info, warning or error")
    return str(value)


_CONVERT: dict[str, Callable[[object], Any]] = {
    "node": _text,
    "node_address": _address,
    "pods_range": _range,
    "services_range": _range,
    "kubeconfig": _path,
    "state": _path,
    "run": _path,
    "pins": _path,
    "overlay_device": _text,
    "conflist": _path,
    "metrics_address": _address,
    "metrics_port": _port,
    "log_level": _level,
    "identity_wait_seconds": _seconds,
    "sandbox_wait_seconds": _seconds,
}
_REQUIRED = ("node", "node_address", "pods_range", "services_range", "kubeconfig")


def load(path: Path) -> AgentSettings:
    """Read and check the file. Raises SettingsError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise SettingsError(f"{path} cannot be read: {fault}") from fault
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: must hold one object")
    faults = [f"{name}: is missing" for name in _REQUIRED if name not in raw]
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in _CONVERT:
            faults.append(f"{name}: is not known")
            continue
        try:
            values[name] = _CONVERT[name](value)
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
    if faults:
        raise SettingsError(f"{path}: " + "; ".join(sorted(faults)))
    return AgentSettings(**values)
