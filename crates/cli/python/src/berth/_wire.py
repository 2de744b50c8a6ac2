"""Protocol Buffers for the few messages that this package exchanges with Berth.

Generated code would bind the package to a range of protobuf releases, and each PySpark brings its own. The
messages are dataclasses in ``_messages``; a test compares them with the files in ``proto``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, Type, TypeVar

M = TypeVar("M")

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_KEY = "berth.wire"


@dataclasses.dataclass(frozen=True)
class Wire:
    """How a field is encoded: ``string``, ``bytes``, ``varint``, ``map`` of strings, or ``message``."""

    number: int
    kind: str
    of: type[Any] | None = None
    repeated: bool = False


def string(number: int) -> Any:
    """A string."""
    return dataclasses.field(default="", metadata={_KEY: Wire(number, "string")})


def strings(number: int) -> Any:
    """A repeated string."""
    return dataclasses.field(default_factory=list, metadata={_KEY: Wire(number, "string", repeated=True)})


def raw(number: int) -> Any:
    """Bytes."""
    return dataclasses.field(default=b"", metadata={_KEY: Wire(number, "bytes")})


def integer(number: int) -> Any:
    """An integer, bool or enum."""
    return dataclasses.field(default=0, metadata={_KEY: Wire(number, "varint")})


def integers(number: int) -> Any:
    """A repeated integer or enum."""
    return dataclasses.field(default_factory=list, metadata={_KEY: Wire(number, "varint", repeated=True)})


def mapping(number: int) -> Any:
    """A map from string to string."""
    return dataclasses.field(default_factory=dict, metadata={_KEY: Wire(number, "map")})


def message(number: int, of: type[Any]) -> Any:
    """A message; ``None`` if it is absent."""
    return dataclasses.field(default=None, metadata={_KEY: Wire(number, "message", of)})


def messages(number: int, of: type[Any]) -> Any:
    """A repeated message."""
    return dataclasses.field(default_factory=list, metadata={_KEY: Wire(number, "message", of, repeated=True)})


def wires(of: type[Any]) -> dict[str, Wire]:
    """The fields of a message class."""
    return {one.name: one.metadata[_KEY] for one in dataclasses.fields(of) if _KEY in one.metadata}


def encode(value: Any) -> bytes:
    """The encoding of a message. Fields with their default are omitted."""
    out = bytearray()
    for name, wire in wires(type(value)).items():
        field = getattr(value, name)
        if wire.kind == "map":
            for key, item in field.items():
                _put_bytes(out, wire.number, _entry(key, item))
            continue
        for item in field if wire.repeated else [field]:
            # An absent message is None; an empty one is present.
            if wire.repeated or (item is not None if wire.kind == "message" else item):
                _put(out, wire, item)
    return bytes(out)


def decode(of: Type[M], data: bytes) -> M:
    """A message from its encoding. Unknown fields are ignored."""
    by_number = {wire.number: (name, wire) for name, wire in wires(of).items()}
    value = of()
    for number, found in _fields(data):
        name, wire = by_number.get(number, (None, None))
        if name is None or wire is None:
            continue
        if wire.kind == "map":
            entry = dict(_fields(_expect(found, bytes)))
            key, item = (_expect(entry.get(number, b""), bytes).decode() for number in (1, 2))
            getattr(value, name)[key] = item
        elif wire.repeated and wire.kind == "varint" and isinstance(found, bytes):
            getattr(value, name).extend(_packed(found))
        elif wire.repeated:
            getattr(value, name).append(_take(wire, found))
        else:
            setattr(value, name, _take(wire, found))
    return value


def _take(wire: Wire, found: int | bytes) -> Any:
    if wire.kind == "varint":
        number: int = _expect(found, int)
        return number - (1 << 64) if number >= 1 << 63 else number
    data: bytes = _expect(found, bytes)
    if wire.kind == "message":
        assert wire.of is not None
        return decode(wire.of, data)
    return data.decode() if wire.kind == "string" else data


def _put(out: bytearray, wire: Wire, item: Any) -> None:
    if wire.kind == "varint":
        _put_varint(out, wire.number << 3 | VARINT)
        _put_varint(out, int(item) % (1 << 64))
    elif wire.kind == "message":
        _put_bytes(out, wire.number, encode(item))
    else:
        _put_bytes(out, wire.number, item.encode() if isinstance(item, str) else item)


def _put_bytes(out: bytearray, number: int, data: bytes) -> None:
    _put_varint(out, number << 3 | BYTES)
    _put_varint(out, len(data))
    out += data


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _entry(key: str, item: str) -> bytes:
    out = bytearray()
    _put_bytes(out, 1, key.encode())
    _put_bytes(out, 2, item.encode())
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError("the reply is not a message of Berth")
        if at + length > len(data):
            raise ValueError("the reply is not complete")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the reply is not complete")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("the reply has a number that is too long")


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _expect(found: Any, kind: type[Any]) -> Any:
    if not isinstance(found, kind):
        raise ValueError("the reply has a field of another type: this server is not Berth, or newer than this package")
    return found
