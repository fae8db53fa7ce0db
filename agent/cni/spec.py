"""The CNI specification's words: requests, results in each version, errors with their codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
# The first version of the specification that has the command.
_SINCE = {
    "ADD": "0.4.0",
    "DEL": "0.4.0",
    "CHECK": "0.4.0",
    "VERSION": "0.4.0",
    "GC": "1.1.0",
    "STATUS": "1.1.0",
}
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
}
_CONTAINER_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Code(IntEnum):
    """Error codes of the specification; from 100 on they are ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    INTERNAL = 100
    NO_ADDRESS = 101
    CHECK_FAILED = 102


class CniError(Exception):
    """An error as the specification wants it printed."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message if not details else f"{message}: {details}")
        self.code = code
        self.message = message
        self.details = details

    def to_json(self, version: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"cniVersion": version, "code": int(self.code), "msg": self.message}
        if self.details:
            answer["details"] = self.details
        return answer


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the plugin. `arguments` are CNI_ARGS, `config` is the network configuration."""

    command: str
    container: str
    netns: str
    interface: str
    arguments: Mapping[str, str]
    config: Mapping[str, Any]
    version: str

    @property
    def owner(self) -> tuple[str, str]:
        return (self.container, self.interface)


@dataclass(frozen=True, slots=True)
class Result:
    """What ADD gives: one interface in the sandbox with one address, and its routes."""

    interface: str
    netns: str
    mac: str
    host_interface: str
    host_mac: str
    address: str
    gateway: str
    mtu: int

    def to_json(self, version: str) -> dict[str, Any]:
        """The result in the words of `version`."""
        address: dict[str, Any] = {"address": f"{self.address}/32", "gateway": self.gateway, "interface": 1}
        if version == "0.4.0":
            address["version"] = "4"
        host: dict[str, Any] = {"name": self.host_interface, "mac": self.host_mac}
        inside: dict[str, Any] = {"name": self.interface, "mac": self.mac, "sandbox": self.netns}
        if version == "1.1.0":
            host["mtu"] = inside["mtu"] = self.mtu
        return {
            "cniVersion": version,
            "interfaces": [host, inside],
            "ips": [address],
            "routes": [{"dst": "0.0.0.0/0", "gw": self.gateway}],
            "dns": {},
        }


def version_in(config: bytes) -> str:
    """The version to answer in, as far as it can be read; the newest where it cannot."""
    try:
        version = json.loads(config).get("cniVersion")
    except (ValueError, AttributeError):
        return NEWEST
    return version if version in VERSIONS else NEWEST


def parse_request(fields: list[str], raw: bytes) -> Request:
    """Make a request of the CNI_* variables (in the plugin's order) and the standard input.

    Raises CniError with the specification's code for whatever is missing or wrong.
    """
    command, container, netns, interface, arguments, path = fields
    if command not in _SINCE:
        raise CniError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND {command!r}")
    given = {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": interface, "CNI_PATH": path}
    missing = [name for name in _NEEDS.get(command, ()) if not given[name]]
    if missing:
        raise CniError(Code.INVALID_ENVIRONMENT, "required variables are missing", ",".join(missing))
    if container and not (container[0].isalnum() and set(container) <= _CONTAINER_CHARACTERS):
        raise CniError(Code.INVALID_ENVIRONMENT, "invalid characters in CNI_CONTAINERID", container)
    if interface:
        _check_interface(interface)
    try:
        config = json.loads(raw)
    except ValueError as fault:
        raise CniError(Code.DECODING_FAILURE, "the network configuration is not JSON", str(fault)) from fault
    if not isinstance(config, dict):
        raise CniError(Code.DECODING_FAILURE, "the network configuration is not an object")
    version = config.get("cniVersion") or "0.1.0"
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f"config is {version!r}, plugin supports {list(VERSIONS)}",
        )
    if VERSIONS.index(version) < VERSIONS.index(_SINCE[command]):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"{command} needs cniVersion {_SINCE[command]}", version)
    if not config.get("name") or not isinstance(config["name"], str):
        raise CniError(Code.INVALID_CONFIGURATION, "the network configuration has no name")
    if command == "CHECK" and not isinstance(config.get("prevResult"), dict):
        raise CniError(Code.INVALID_CONFIGURATION, "CHECK needs a prevResult")
    if command == "ADD" and config.get("prevResult") is not None:
        raise CniError(Code.INVALID_CONFIGURATION, "this plugin must be the first of its chain")
    return Request(command, container, netns, interface, _arguments(arguments), config, version)


def _check_interface(name: str) -> None:
    """The specification's rules for CNI_IFNAME, which are the kernel's."""
    if len(name) > 15 or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise CniError(Code.INVALID_ENVIRONMENT, "invalid CNI_IFNAME", name)


def _arguments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(";"):
        if not part:
            continue
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise CniError(Code.INVALID_ENVIRONMENT, "CNI_ARGS must be KEY=VALUE;KEY=VALUE", part)
        found[key] = value
    return found
