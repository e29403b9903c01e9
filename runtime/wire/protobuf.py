"""Documents as Protobuf messages of telemetry.proto, and back. Only `codec` imports this, when it is first used.

A payload travels as `Table` and `Value`, not as bytes of another encoding: who has the schema can read all of it.
Fields and values are set one by one; Protobuf's constructor takes nested dicts too, at three times the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError, EncodeError, Message

from . import telemetry_pb2 as pb

_MESSAGES: Final[Mapping[str, type[Any]]] = {"request": pb.SyncRequest, "response": pb.SyncResponse}


def dump(document: Mapping[str, Any], what: str) -> bytes:
    """The bytes of a document; `what` is `request` or `response`.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: it does not fit the schema.
    """
    message = _MESSAGES[what]()
    for name, value in document.items():
        _set(message, name, value)
    try:
        data: bytes = message.SerializeToString()
    except EncodeError as error:
        raise ValueError(str(error)) from error
    return data


def load(body: bytes, what: str) -> dict[str, Any]:
    """The document that the bytes hold. Unknown fields are left out.

    Raises:
        ValueError: they are no such message.
    """
    message = _MESSAGES[what]()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return _document(message)


# Into messages ---------------------------------------------------------------------------------------------


def _set(message: Any, name: str, value: Any) -> None:
    if name == "desired" and isinstance(value, str):
        return  # unchanged
    if value is None:
        return
    if isinstance(value, list | tuple) and name != "acked":
        part = getattr(message, name)
        for item in value:
            _fill(part.add(), item)
    elif isinstance(value, Mapping):
        part = getattr(message, name)
        part.SetInParent()  # an empty table is there nevertheless
        _fill(part, value)
    else:
        setattr(message, name, value)


def _fill(message: Any, value: Any) -> None:
    fill = _FILLERS.get(type(message))
    if fill is not None:
        fill(message, value)
        return
    for name, item in value.items():
        _set(message, name, item)


def _fill_table(table: Any, value: Mapping[str, Any]) -> None:
    add = table.fields.add
    for key, item in value.items():
        _fill_value(add(key=key).value, item)


def _fill_value(message: Any, value: Any) -> None:
    # The most frequent types first, as everywhere.
    if isinstance(value, float):
        message.number = value
    elif isinstance(value, str):
        message.text = value
    elif value is None:
        message.SetInParent()
    elif isinstance(value, bool):
        message.boolean = value
    elif isinstance(value, int):
        message.integer = value
    elif isinstance(value, list | tuple):
        message.list.SetInParent()
        add = message.list.items.add
        for item in value:
            _fill_value(add(), item)
    elif isinstance(value, Mapping):
        message.table.SetInParent()
        _fill_table(message.table, value)
    else:
        raise TypeError(f"a {type(value).__name__} has no form in Protobuf")


def _fill_acked(message: Any, value: Mapping[str, tuple[str, int] | None]) -> None:
    for stream, found in value.items():
        if found is not None:
            part = getattr(message, stream)
            part.epoch, part.seq = found


# Out of messages -------------------------------------------------------------------------------------------


def _document(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is None:
            found[field.name] = value
        elif isinstance(value, Message):
            found[field.name] = _read(value)
        else:
            found[field.name] = [_read(item) for item in value]
    return found


def _read(message: Any) -> Any:
    reader: Callable[[Any], Any] = _READERS.get(type(message), _document)
    return reader(message)


def _read_value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "list":
        return [_read_value(item) for item in message.list.items]
    if kind == "table":
        return _read_table(message.table)
    return getattr(message, kind)


def _read_table(table: Any) -> dict[str, Any]:
    return {entry.key: _read_value(entry.value) for entry in table.fields}


def _read_id(message: Any) -> list[Any]:
    return [message.epoch, message.seq]


_FILLERS: Final[Mapping[type, Callable[[Any, Any], None]]] = {
    pb.Table: _fill_table,
    pb.Value: _fill_value,
    pb.Acked: _fill_acked,
}
_READERS: Final[Mapping[type, Callable[[Any], Any]]] = {
    pb.Table: _read_table,
    pb.Value: _read_value,
    pb.RecordId: _read_id,
}
