"""CTranslate2's ``model.bin``, binary version 6, read with numpy alone.

Little endian throughout: version, name and revision of the specification, variables
(name, shape, type, size in bytes, values in C order), aliases (name, name). A string
is its length with the closing zero, then its bytes. Source:
https://github.com/OpenNMT/CTranslate2, ``python/ctranslate2/specs/model_spec.py`` and
``src/models/model.cc``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from headstart.errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

VERSION = 6
BFLOAT16 = 5
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", BFLOAT16: "<u2"}
"""numpy's types by the file's numbers; numpy has no bfloat16."""
MOST_DIMENSIONS = 8
SCALE = "_scale"
_AGAIN = "delete it and fetch it again"


@dataclass(frozen=True)
class ModelBin:
    """The content of a file.

    Attributes:
        where: The file, for errors.
        spec: Name of the specification, ``WhisperSpec``.
        revision: Of the specification.
        variables: By name, as stored; bfloat16 as float32. Scalars are settings.
        aliases: Other names of variables, and those variables' names.
    """

    where: str
    spec: str
    revision: int
    variables: Mapping[str, NDArray[np.generic]]
    aliases: Mapping[str, str]

    def values(self, name: str) -> NDArray[np.float32]:
        """A variable's values in float32, quantised ones divided by their scale.

        There is one scale a row of an int8 matrix, one for all of an int16 one.

        Raises:
            UserError: There is no such variable, or its scale is missing or does not
                fit.
        """
        name = self.aliases.get(name, name)
        if name not in self.variables:
            raise UserError(
                f"has no {name!r}", where=self.where, fix=nearest(name, self.variables)
            )
        stored = self.variables[name]
        if stored.dtype.kind == "f":
            return np.ascontiguousarray(stored, dtype=np.float32)
        scale = self.variables.get(name + SCALE)
        if scale is None or scale.shape not in ((), stored.shape[:1]):
            found = "no scale" if scale is None else f"scales of shape {scale.shape}"
            raise UserError(
                f"{name!r} is {stored.dtype} of shape {stored.shape} and has {found}",
                where=self.where,
                fix="convert the model again, without quantisation",
            )
        shape = scale.shape + (1,) * (stored.ndim - 1 if scale.ndim else 0)
        divisor = scale.astype(np.float32).reshape(shape)
        if not (np.isfinite(divisor) & (divisor != 0)).all():
            raise UserError(f"{name + SCALE!r} is not finite or zero", where=self.where)
        return stored.astype(np.float32) / divisor


def read_model_bin(path: Path) -> ModelBin:
    """Read a file whole, each length held against what is left of the file.

    Args:
        path: Variables become views of it, mapped into memory.

    Raises:
        UserError: It is no such file, of another version, truncated, or contradicts
            itself.
    """
    reader = _Reader(path)
    version = reader.number("<I", "the version")
    if version != VERSION:
        raise UserError(
            "this is no model.bin of CTranslate2 that can be read",
            where=str(path),
            why=f"it starts with the version {version}, {VERSION} is read",
            fix="convert the model again with a current ct2-transformers-converter",
        )
    spec = reader.text("the name of the specification")
    revision = reader.number("<I", "the revision")
    variables: dict[str, NDArray[np.generic]] = {}
    for _ in range(reader.number("<I", "the number of variables")):
        name = reader.text("a variable's name")
        if name in variables:
            reader.refuse(f"the variable {name!r} is there twice")
        variables[name] = reader.variable(name)
    aliases: dict[str, str] = {}
    for _ in range(reader.number("<I", "the number of aliases")):
        alias, name = reader.text("an alias"), reader.text("an alias's variable")
        if name not in variables or alias in variables or alias in aliases:
            reader.refuse(f"the alias {alias!r} of {name!r} contradicts other names")
        aliases[alias] = name
    reader.end()
    return ModelBin(str(path), spec, revision, variables, aliases)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._where = str(path)
        self._at = 0
        # An empty file cannot be mapped.
        self._bytes: NDArray[np.uint8] = (
            np.memmap(path, dtype=np.uint8, mode="r")
            if path.stat().st_size
            else np.empty(0, np.uint8)
        )

    def refuse(self, why: str) -> NoReturn:
        raise UserError(
            "this model.bin is truncated or damaged",
            where=self._where,
            why=f"{why} (before byte {self._at:,})",
            fix=_AGAIN,
        )

    def _take(self, count: int, what: str) -> NDArray[np.uint8]:
        left = len(self._bytes) - self._at
        if count > left:
            self.refuse(f"{what} needs {count:,} bytes, {left:,} are left")
        taken = self._bytes[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, kind: str, what: str) -> int:
        (value,) = struct.unpack(
            kind, self._take(struct.calcsize(kind), what).tobytes()
        )
        return int(value)

    def text(self, what: str) -> str:
        raw = self._take(self.number("<H", what), what).tobytes()
        try:
            text = raw.decode("ascii")
        except UnicodeDecodeError:
            text = ""
        if not text.endswith("\0") or not text[:-1].isprintable():
            self.refuse(f"{what} is no text: {raw[:40]!r}")
        return text[:-1]

    def variable(self, name: str) -> NDArray[np.generic]:
        rank = self.number("<B", f"the rank of {name!r}")
        if rank > MOST_DIMENSIONS:
            self.refuse(f"{name!r} has {rank} dimensions")
        shape = tuple(self.number("<I", f"the shape of {name!r}") for _ in range(rank))
        kind = self.number("<B", f"the type of {name!r}")
        if kind not in TYPES:
            self.refuse(f"{name!r} is of the unknown type {kind}")
        dtype = np.dtype(TYPES[kind])
        size = self.number("<I", f"the size of {name!r}")
        needed = dtype.itemsize
        for length in shape:
            # Not numpy's product, which overflows.
            needed *= length
        if not needed:
            self.refuse(f"{name!r} is empty, of the shape {shape}")
        if size != needed:
            self.refuse(
                f"{name!r} has {size:,} bytes, {needed:,} expected of {dtype}{shape}"
            )
        # A copy where it is not aligned, as numpy would make in each use.
        values = np.require(
            self._take(size, f"{name!r}").view(dtype).reshape(shape),
            requirements="A",
        )
        if kind != BFLOAT16:
            return values
        # The upper half of a float32.
        return (values.astype("<u4") << 16).view("<f4")

    def end(self) -> None:
        if left := len(self._bytes) - self._at:
            self.refuse(f"{left:,} bytes follow the last alias")
