"""What the frozen-prefix cache holds: states row by row, in files and in batches."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from headstart.prefix_files import INDEX, folder_bytes, read_index, write_index

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from headstart.stages import State

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROWS = "row_of.npy"


class Uncacheable(Exception):
    """The state at the freeze point cannot be split into rows; says why."""


class Column:
    """One tensor of the state for all samples, rows one after another.

    Args:
        flat: The values of all rows, one dimension.
        shapes: Each row's shape, (rows, dimensions) int64.
        dtype: What a batch is given as, where it was stored with less precision.
        padding: What fills up shorter rows.
    """

    def __init__(
        self,
        flat: torch.Tensor,
        shapes: np.ndarray,
        dtype: torch.dtype,
        padding: float,
    ) -> None:
        self.flat = flat
        self.dtype = dtype
        self.padding = padding
        self._shapes = shapes
        sizes = shapes.prod(axis=1)
        self._starts = np.cumsum(sizes) - sizes
        first = shapes[0].tolist()
        self._table = self._pieces = None
        if bool((shapes == shapes[0]).all()):
            self._table = flat.view(len(shapes), *first)
        elif bool((shapes[:, 1:] == shapes[0, 1:]).all()):
            self._pieces = flat.view(int(shapes[:, 0].sum()), *first[1:])
            self._starts = np.cumsum(shapes[:, 0]) - shapes[:, 0]

    def batch(self, rows: np.ndarray, index: torch.Tensor) -> torch.Tensor:
        """Rows as one tensor, shorter ones filled up at their ends.

        Args:
            rows: Which.
            index: The same, on the device of the values.
        """
        if self._table is not None:
            return self._table.index_select(0, index).to(self.dtype)
        if self._pieces is not None:
            return self._padded(self._pieces, rows).to(self.dtype)
        return self._nested(rows).to(self.dtype)

    def _padded(self, pieces: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Rows that differ in their first dimension alone."""
        starts = self._starts[rows].tolist()
        lengths = self._shapes[rows, 0].tolist()
        return pad_sequence(
            [pieces.narrow(0, *span) for span in zip(starts, lengths, strict=True)],
            batch_first=True,
            padding_value=self.padding,
        )

    def _nested(self, rows: np.ndarray) -> torch.Tensor:
        """Rows that differ in several dimensions."""
        shapes = self._shapes[rows]
        batch = self.flat.new_full(
            (len(rows), *shapes.max(axis=0).tolist()), self.padding
        )
        starts = self._starts[rows].tolist()
        for place, (start, shape) in enumerate(
            zip(starts, shapes.tolist(), strict=True)
        ):
            corner = (place, *(slice(0, length) for length in shape))
            values = self.flat[start : start + math.prod(shape)].view(shape)
            batch[corner] = values  # type: ignore[index]
        return batch


class PrefixCache:
    """The prefix's output for every sample of a split.

    Args:
        columns: Its tensors.
        template: The state around them, as :func:`take_apart` gives it.
        row_of: The row that holds a sample's view, (views, samples) int64.
        bytes: What it takes on disk.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        template: Any,
        row_of: np.ndarray,
        bytes: int,
    ) -> None:
        self.columns = columns
        self.bytes = bytes
        self._template = template
        self._row_of = row_of
        self._device = columns[0].flat.device

    def batch(self, samples: np.ndarray, epoch: int) -> State:
        """The state at the freeze point for some samples, as the prefix gives it."""
        rows = self._row_of[epoch % len(self._row_of)][samples]
        index = torch.from_numpy(rows).to(self._device, non_blocking=True)
        tensors = [column.batch(rows, index) for column in self.columns]
        state: State = put_together(self._template, tensors)
        return state


def take_apart(
    state: State, count: int
) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """A state as a JSON-ready template, its tensors, and its constants.

    Tensors and constants are named by their path, e.g. ``skips.0``. In the template a
    tensor is ``{"rows": its place among them}``.

    Raises:
        Uncacheable: A tensor has no row per sample, a value is no plain constant, or
            there is no tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, Any] = {}

    def template(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            if value.ndim == 0 or len(value) != count:
                raise Uncacheable(f"{path!r} in the state has no row per sample")
            tensors[path] = value
            return {"rows": len(tensors) - 1}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {k: template(v, _join(path, k)) for k, v in value.items()}}
        if type(value) in (list, tuple, torch.Size):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [template(v, _join(path, i)) for i, v in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            constants[path] = value
            return {"constant": value}
        raise Uncacheable(f"{path!r} in the state is a {type(value).__name__}")

    whole = template(state, "")
    if not tensors:
        raise Uncacheable("the state at the freeze point holds no tensor")
    return whole, tensors, constants


def put_together(template: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """What :func:`take_apart` took apart, with other tensors."""
    ((kind, value),) = template.items()
    if kind == "rows":
        return tensors[value]
    if kind == "dict":
        return {key: put_together(entry, tensors) for key, entry in value.items()}
    if kind == "constant":
        return value
    entries = [put_together(entry, tensors) for entry in value]
    return entries if kind == "list" else tuple(entries)


def corner(row: torch.Tensor, extent: Sequence[int]) -> torch.Tensor:
    """The first so many entries of each dimension."""
    for dimension, length in enumerate(extent):
        row = row.narrow(dimension, 0, length)
    return row


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def as_stored(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """A tensor as ``cache.precision`` has it stored.

    Raises:
        Uncacheable: A value is too large for it.
    """
    if not tensor.is_floating_point() or precision == "same":
        return tensor
    stored = tensor.to(PRECISIONS[precision])
    if not torch.equal(stored.isinf(), tensor.isinf()):
        raise Uncacheable(f"values are too large for cache.precision = {precision!r}")
    return stored


class RowWriter(contextlib.AbstractContextManager["RowWriter"]):
    """Writes states, one after another, to the files of a new cache.

    Args:
        folder: New and empty.
        precision: ``cache.precision``.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        self.folder = folder
        self.precision = precision
        self.rows = 0
        self._template: Any = None
        self._constants: dict[str, Any] = {}
        self._columns: dict[str, dict[str, Any]] = {}
        self._shapes: list[list[tuple[int, ...]]] = []
        self._files: list[BinaryIO] = []

    def write(
        self, state: State, count: int, own: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Append a state's rows; returns their numbers.

        Args:
            state: With a row per sample.
            count: Of the samples.
            own: By path, how much of each row is not padding, (samples, dimensions);
                other tensors are stored whole.

        Raises:
            Uncacheable: It differs from the first in more than its values.
        """
        template, tensors, constants = take_apart(state, count)
        stored = {
            path: as_stored(tensor, self.precision) for path, tensor in tensors.items()
        }
        columns = {
            path: {
                "stored": _name(stored[path]),
                "given": _name(tensor),
                "dimensions": tensor.ndim,
            }
            for path, tensor in tensors.items()
        }
        if self._template is None:
            self._template, self._constants = template, constants
            self._columns = columns
            self._shapes = [[] for _ in columns]
            for number in range(len(columns)):
                self._files.append((self.folder / f"{number}.bin").open("wb"))
        for before, now in ((self._constants, constants), (self._columns, columns)):
            for path in [*before, *now]:
                if before.get(path) != now.get(path):
                    raise Uncacheable(f"{path!r} in the state varies between batches")
        if template != self._template:
            raise Uncacheable("the state is not built alike for every batch")
        for file, shapes, (path, tensor) in zip(
            self._files, self._shapes, stored.items(), strict=True
        ):
            whole = tensor.detach().cpu()
            pieces, kept = [whole], [tuple(tensor.shape[1:])] * count
            if own and path in own:
                kept = [tuple(extent) for extent in own[path].tolist()]
                pieces = [corner(row, kept[i]) for i, row in enumerate(whole)]
            for piece in pieces:
                values = piece.contiguous().view(-1)
                file.write(values.view(torch.uint8).numpy().data)
            shapes.extend(kept)
        self.rows += count
        return np.arange(self.rows - count, self.rows)

    def finish(self, row_of: np.ndarray, about: Mapping[str, Any]) -> None:
        """Write what else there is to know; the index comes last."""
        for number, (file, shapes) in enumerate(
            zip(self._files, self._shapes, strict=True)
        ):
            file.close()
            table = np.array(shapes, dtype=np.int64)
            table = table.reshape(self.rows, len(shapes[0]))
            np.save(self.folder / f"{number}.shapes.npy", table, allow_pickle=False)
        np.save(self.folder / ROWS, row_of, allow_pickle=False)
        columns = [{"path": path, **column} for path, column in self._columns.items()]
        index = {**about, "columns": columns, "template": self._template}
        write_index(self.folder, index)

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()


def read_cache(
    folder: Path,
    *,
    memory_bytes: float,
    device: torch.device,
    padding: Mapping[str, float],
) -> PrefixCache:
    """Open a cache: in memory when it fits the budget, else memory-mapped.

    Args:
        folder: Undamaged.
        memory_bytes: The budget.
        device: Where it is kept, if it takes no more than a quarter of what is free
            there; else the host keeps it.
        padding: What fills up shorter rows, by path, where that is not 0.
    """
    index = read_index(folder)
    os.utime(folder / INDEX)
    total = folder_bytes(folder)
    in_memory = total <= memory_bytes
    home = torch.device("cpu")
    if device.type == "cuda" and in_memory:
        free, _ = torch.cuda.mem_get_info(device)
        home = device if total <= free // 4 else home
    columns = []
    for number, column in enumerate(index["columns"]):
        stored, given = (getattr(torch, column[key]) for key in ("stored", "given"))
        file = folder / f"{number}.bin"
        if not file.stat().st_size:
            flat = torch.empty(0, dtype=stored)
        elif in_memory:
            flat = torch.from_numpy(np.fromfile(file, np.uint8)).view(stored)
        else:
            # Copy on write, for torch has no tensors that cannot be written.
            flat = torch.from_numpy(np.memmap(file, np.uint8, "c")).view(stored)
        flat = flat.to(home)
        shapes = np.load(folder / f"{number}.shapes.npy", allow_pickle=False)
        filler = padding.get(column["path"], 0)
        columns.append(Column(flat, shapes, given, filler))
    row_of = np.load(folder / ROWS, allow_pickle=False)
    return PrefixCache(columns, index["template"], row_of, total)


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
