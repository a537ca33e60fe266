"""Volumes on the network's grid, kept after their first use.

As MONAI's CacheDataset and PersistentDataset, in one, within a budget of memory: what
does not fit goes to the cache folder. PersistentDataset pickles; here the files are
safetensors, which no one can hide code in, and mapped into memory, so that a patch
reads its own pages alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Mode = Literal["auto", "memory", "disk", "off"]
Arrays = dict[str, np.ndarray]


class Store:
    """Keeps arrays by name.

    Args:
        mode: ``auto`` keeps in memory while there is room, then on disk; ``memory`` no
            more than there is room for; ``disk`` all; ``off`` nothing.
        limit: Bytes of memory.
        folder: Where files go; made when the first one does.

    Attributes:
        held: Bytes in memory.
        made: How many times something was made anew.
    """

    def __init__(self, mode: Mode, limit: int, folder: Path) -> None:
        self.mode, self.limit, self.folder = mode, limit, folder
        self.held = self.made = 0
        self._memory: dict[str, Arrays] = {}
        self._mapped: dict[str, Arrays] = {}

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What is kept under a name, else what ``make`` gives; not to be changed."""
        for kept in (self._memory, self._mapped):
            if name in kept:
                return kept[name]
        path = self._path(name)
        if self.mode in ("auto", "disk") and (found := _mapped(path)):
            self._mapped[name] = found
            return found
        arrays = make()
        self.made += 1
        size = sum(array.nbytes for array in arrays.values())
        if self.mode in ("auto", "memory") and self.held + size <= self.limit:
            self._memory[name] = arrays
            self.held += size
        elif self.mode in ("auto", "disk"):
            _write(path, arrays)
            self._mapped[name] = _mapped(path) or arrays
        return arrays

    def _path(self, name: str) -> Path:
        import hashlib

        # Ids of cases are people's; as file names they could be anything.
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors"

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that gets a copy fills its own memory.
        return {**self.__dict__, "_memory": {}, "_mapped": {}, "held": 0}


def _mapped(path: Path) -> Arrays:
    """The arrays of a file, read as they are looked at; none if it is not there or
    damaged, as after a loss of power: then it is made again."""
    from safetensors import SafetensorError, safe_open

    # Of torch's tensors, unlike NumPy's arrays, safetensors maps the file's pages.
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).numpy() for name in file.keys()}
    except (FileNotFoundError, SafetensorError):
        return {}


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A file that is there whole or not at all, whoever else writes it."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise HeadstartError(
            "a volume cannot be kept in the cache folder",
            where=str(path.parent),
            why=str(error),
            fix="make room, set HEADSTART_CACHE to another disk, or data.cache=memory",
        ) from None
    finally:
        partial.unlink(missing_ok=True)
