"""Binary layouts as frozen dataclasses: one field of the class is one field of the C struct.

A record class lists its fields in the order of the C struct, each made by one of the functions below
(`u32()`, `be16()`, `address()`, `pad(2)`, ...). `pack()` gives the bytes of the C struct, `unpack()`
reads them. Padding is written out, as in the headers, so that no compiler adds any: sizes are the sum
of the fields. `tests/bpf` holds every layout against the BTF of the compiled programs.

Shapes: host-order integers are Python ints in host order; network-order fields (`be16`) are Python ints
in host order and are swapped on the way; addresses are `ipaddress` objects, IPv4 stored as
v4-mapped IPv6 (`::ffff:a.b.c.d`), so that every address is 128 bits; MACs are bytes of length 6.
"""

import dataclasses
import functools
import ipaddress
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ADDRESS_BYTES = 16
MAPPED_PREFIX = bytes(10) + b"\xff\xff"
UNSPECIFIED = ipaddress.IPv6Address(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How one field is stored: its struct code, its size, and the two conversions."""

    code: str
    size: int
    to_raw: Callable[[Any], Any] | None = None
    from_raw: Callable[[Any], Any] | None = None


def _swap16(value: int) -> int:
    return ((value & 0xFF) << 8) | (value >> 8)


@functools.lru_cache(maxsize=65536)
def address_bytes(value: Address) -> bytes:
    """The 16 bytes of an address as every map stores it (IPv4 as v4-mapped)."""
    return MAPPED_PREFIX + value.packed if value.version == 4 else value.packed


@functools.lru_cache(maxsize=65536)
def address_from(raw: bytes) -> Address:
    """The address of 16 stored bytes; v4-mapped ones come back as IPv4."""
    if raw.startswith(MAPPED_PREFIX):
        return ipaddress.IPv4Address(raw[12:])
    return ipaddress.IPv6Address(raw)


def _name_bytes(value: str) -> bytes:
    return value.encode()


def _name_from(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode()


_U8 = Kind("B", 1)
_U16 = Kind("H", 2)
_U32 = Kind("I", 4)
_U64 = Kind("Q", 8)
_BE16 = Kind("H", 2, _swap16, _swap16)
_ADDRESS = Kind("16s", ADDRESS_BYTES, address_bytes, address_from)
_MAC = Kind("6s", 6)


def _field(kind: Kind, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind})


def u8(default: Any = dataclasses.MISSING) -> Any:
    """An unsigned 8-bit field."""
    return _field(_U8, default)


def u16(default: Any = dataclasses.MISSING) -> Any:
    """An unsigned 16-bit field in host order."""
    return _field(_U16, default)


def u32(default: Any = dataclasses.MISSING) -> Any:
    """An unsigned 32-bit field in host order."""
    return _field(_U32, default)


def u64(default: Any = dataclasses.MISSING) -> Any:
    """An unsigned 64-bit field in host order."""
    return _field(_U64, default)


def be16(default: Any = dataclasses.MISSING) -> Any:
    """A 16-bit field in network order (ports); an ordinary int in Python."""
    return _field(_BE16, default)


def addr(default: Any = dataclasses.MISSING) -> Any:
    """A 128-bit address."""
    return _field(_ADDRESS, default)


def ethernet(default: Any = dataclasses.MISSING) -> Any:
    """A 48-bit Ethernet address, 6 bytes."""
    return _field(_MAC, default)


def text(size: int) -> Any:
    """A zero-padded string of at most `size` bytes."""
    return _field(Kind(f"{size}s", size, _name_bytes, _name_from))


def pad(size: int) -> Any:
    """Padding of `size` bytes, always zero: BPF hashes compare it as part of a key."""
    return dataclasses.field(
        default=bytes(size), init=False, repr=False, compare=False, metadata={"kind": Kind(f"{size}s", size)}
    )


class Record:
    """Base of every key and value. Subclasses are `@dataclass(frozen=True, slots=True, kw_only=True)`."""

    __slots__ = ()
    C_NAME: ClassVar[str]

    @classmethod
    def layout(cls) -> "Layout":
        """The compiled layout of this class."""
        return _layout(cls)

    @classmethod
    def size(cls) -> int:
        """Size in bytes, equal to `sizeof` in C."""
        return _layout(cls).size

    def pack(self) -> bytes:
        """The bytes of the C struct. Raises struct.error when a number does not fit its field."""
        return _layout(type(self)).pack(self)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The record of `size()` bytes. Raises struct.error when the length differs."""
        record = _layout(cls).unpack(cls, raw)
        assert isinstance(record, cls)
        return record


class Layout:
    """One record class, compiled: a struct format and the conversions per field."""

    def __init__(self, cls: type[Record]) -> None:
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        self.fields: list[tuple[str, int, int]] = []
        codes, offset = ["="], 0
        for field in fields:
            kind: Kind = field.metadata["kind"]
            self.fields.append((field.name, offset, kind.size))
            codes.append(kind.code)
            offset += kind.size
        self.size = offset
        self._struct = struct.Struct("".join(codes))
        self._names = [field.name for field in fields]
        self._to_raw = [field.metadata["kind"].to_raw for field in fields]
        self._arguments = [
            (field.name, index, field.metadata["kind"].from_raw)
            for index, field in enumerate(fields)
            if field.init
        ]

    def pack(self, record: Record) -> bytes:
        values = []
        for field_name, convert in zip(self._names, self._to_raw, strict=True):
            value = getattr(record, field_name)
            values.append(convert(value) if convert else value)
        return self._struct.pack(*values)

    def unpack(self, cls: type[Record], raw: bytes) -> Record:
        values = self._struct.unpack(raw)
        return cls(
            **{key: convert(values[i]) if convert else values[i] for key, i, convert in self._arguments}
        )


_LAYOUTS: dict[type[Record], Layout] = {}


def _layout(cls: type[Record]) -> Layout:
    layout = _LAYOUTS.get(cls)
    if layout is None:
        layout = _LAYOUTS[cls] = Layout(cls)
    return layout
