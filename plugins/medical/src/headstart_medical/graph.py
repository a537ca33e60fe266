"""The constants of a frozen TensorFlow graph, read with NumPy alone.

A graph is a protocol-buffers message (tensorflow/core/framework: graph.proto,
node_def.proto, attr_value.proto, tensor.proto). Only nodes of the kind ``Const`` are
read: nothing of the graph is executed, and no size that the file states is believed
before the bytes for it are there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LIMIT = 256 * 1024**2
"""Largest graph that is read, and most bytes of all its constants together."""

# Field numbers of the messages above.
GRAPH_NODE = 1
NODE_NAME, NODE_OP, NODE_ATTRIBUTE = 1, 2, 5
KEY, VALUE = 1, 2
ATTRIBUTE_TENSOR = 8
TENSOR_TYPE, TENSOR_SHAPE, TENSOR_CONTENT, TENSOR_FLOATS = 1, 2, 4, 5
SHAPE_AXIS, AXIS_SIZE = 2, 1
# tensorflow.DataType: DT_FLOAT; other constants of a frozen network are shapes and
# switches, not parameters.
FLOAT = 1

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class _DamagedError(ValueError):
    """What is wrong with the bytes."""


def read_constants(data: bytes, where: str) -> dict[str, NDArray[np.float32]]:
    """The float32 constants of a serialised ``GraphDef``, by the names of their nodes.

    Args:
        data: The file's content.
        where: The file, for the error.

    Raises:
        UserError: The bytes are no graph, or end too soon, or contradict themselves.
    """
    constants: dict[str, NDArray[np.float32]] = {}
    try:
        if len(data) > LIMIT:
            raise _DamagedError(f"it has {len(data):,} bytes, {LIMIT:,} are the limit")
        nodes = filled = 0
        for number, value in _fields(memoryview(data)):
            if number != GRAPH_NODE:
                continue
            nodes += 1
            name, array = _constant(_message(value))
            if name in constants:
                raise _DamagedError(f"two nodes are called {name!r}")
            if array is not None:
                constants[name] = array
                filled += array.nbytes
            if filled > LIMIT:
                raise _DamagedError(f"its constants are larger than {LIMIT:,} bytes")
        if not nodes:
            raise _DamagedError("it has no nodes")
    except _DamagedError as error:
        raise UserError(
            "this is no frozen TensorFlow graph, or it is damaged",
            where=where,
            why=str(error),
            fix="fetch the file again",
        ) from None
    return constants


def _constant(node: memoryview) -> tuple[str, NDArray[np.float32] | None]:
    name = kind = ""
    array = None
    for number, value in _fields(node):
        if number == NODE_NAME:
            name = _text(value)
        elif number == NODE_OP:
            kind = _text(value)
        elif number == NODE_ATTRIBUTE:
            key, content = "", None
            for part, inner in _fields(_message(value)):
                if part == KEY:
                    key = _text(inner)
                elif part == VALUE:
                    content = _message(inner)
            if key == "value" and content is not None:
                for part, inner in _fields(content):
                    if part == ATTRIBUTE_TENSOR:
                        array = _tensor(_message(inner))
    return name, array if kind == "Const" else None


def _tensor(message: memoryview) -> NDArray[np.float32] | None:
    """A ``TensorProto``; ``None`` when it holds no float32."""
    kind = 0
    shape: list[int] = []
    content = listed = memoryview(b"")
    for number, value in _fields(message):
        if number == TENSOR_TYPE:
            kind = _integer(value)
        elif number == TENSOR_SHAPE:
            shape = _shape(_message(value))
        elif number == TENSOR_CONTENT:
            content = _message(value)
        elif number == TENSOR_FLOATS:
            # One value alone may be stored unpacked; its bytes are the same.
            listed = value if isinstance(value, memoryview) else listed
    if kind != FLOAT:
        return None
    size = np.dtype("<f4").itemsize
    count = math.prod(shape)
    if count * size > LIMIT:
        raise _DamagedError(f"a constant of shape {shape} is larger than {LIMIT:,}")
    stored = content or listed
    # A list may end early: TensorFlow repeats its last value.
    fits = len(stored) == count * size
    if content and not fits:
        raise _DamagedError(f"{len(content)} bytes cannot be a float32 of {shape}")
    if len(stored) % size or len(stored) > count * size:
        raise _DamagedError(f"{len(stored)} bytes cannot be a float32 of {shape}")
    values = np.frombuffer(stored, "<f4")
    array = np.zeros(count, np.float32)
    array[: len(values)] = values
    if len(values):
        array[len(values) :] = values[-1]
    return array.reshape(shape)


def _shape(message: memoryview) -> list[int]:
    sizes = []
    for number, value in _fields(message):
        if number != SHAPE_AXIS:
            continue
        axis = [_integer(v) for n, v in _fields(_message(value)) if n == AXIS_SIZE]
        sizes.append(axis[-1] if axis else 0)
    # -1, an axis of unknown size, is stored as the largest integers.
    if len(sizes) > 8 or any(size > LIMIT for size in sizes):
        raise _DamagedError(f"a constant has the shape {sizes}")
    return sizes


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of what a message holds, in order."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise _DamagedError(f"a field is of the unknown wire type {kind}")
        if length > end - at:
            raise _DamagedError(f"it ends {length - (end - at)} bytes too soon")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where the next thing starts."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _DamagedError("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _DamagedError("a number has more than ten bytes")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError("a number stands where a message should")
    return value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _DamagedError("bytes stand where a number should")
    return value


def _text(value: int | memoryview) -> str:
    try:
        return bytes(_message(value)).decode()
    except UnicodeDecodeError:
        raise _DamagedError("a name is no UTF-8") from None
