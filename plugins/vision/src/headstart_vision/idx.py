"""IDX files, the format of MNIST and Fashion-MNIST, read without trust."""

from __future__ import annotations

import gzip
import math
import zlib
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from headstart.errors import DataError, Fault

if TYPE_CHECKING:
    from pathlib import Path

# Bytes after decompression; the largest MNIST relative (EMNIST) has 0.55 GB.
LIMIT = 2**30

_TYPES = {
    0x08: ">u1",
    0x09: ">i1",
    0x0B: ">i2",
    0x0C: ">i4",
    0x0D: ">f4",
    0x0E: ">f8",
}


def read_idx(path: Path, *, limit: int = LIMIT) -> np.ndarray:
    """Read an IDX file, packed with gzip or not.

    The header says how long the file must be; it is checked before anything of that
    size is decompressed or allocated.

    Args:
        path: The file; whether it is packed goes by its first bytes.
        limit: Most bytes of values that are read.

    Returns:
        An array of the file's shape and type, in native byte order.

    Raises:
        DataError: It cannot be read, is no IDX file, is cut short, has bytes left
            over, or is larger than ``limit``.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            return _parse(cast("IO[bytes]", file), path, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise _fault(path, f"cannot be read: {error}", type(error).__name__) from None


def _parse(file: IO[bytes], path: Path, limit: int) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not head[3]:
        raise _fault(
            path,
            "is no IDX file",
            f"it starts with {head.hex(' ') or 'nothing'}; IDX starts with "
            "00 00, a type and the number of dimensions",
        )
    count = head[3]
    sizes = file.read(4 * count)
    if len(sizes) < 4 * count:
        raise _fault(path, "is cut short", "it ends inside the header")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    kind = np.dtype(_TYPES[head[2]])
    wanted = math.prod(shape) * kind.itemsize
    if wanted > limit:
        raise _fault(
            path,
            f"declares {wanted:,} bytes",
            f"its shape is {'x'.join(map(str, shape))}; more than {limit:,} bytes "
            "are not read",
        )
    # One byte more than wanted, so that a longer file is found and not unpacked whole.
    values = file.read(wanted + 1)
    if len(values) != wanted:
        found = "more" if len(values) > wanted else f"{len(values):,}"
        raise _fault(
            path,
            "is cut short" if len(values) < wanted else "has bytes left over",
            f"its header declares {wanted:,} bytes of values, it has {found}",
        )
    array = np.frombuffer(values, kind).reshape(shape)
    return array.astype(kind.newbyteorder("="))


def _fault(path: Path, what: str, why: str) -> DataError:
    fix = "fetch the file again, or point the recipe at the right one"
    return DataError(Fault(f"the file {what}", where=str(path), why=why, fix=fix))
