"""What was learned or converted once, kept in the cache as safetensors with row ids."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from headstart.assets import cache_folder
from headstart.errors import UserError
from headstart.weights.tensors import broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from headstart_recsys.embeddings import Table

FILE = "model.safetensors"
ROWS = "rows"
"""Key of the file's metadata: a JSON object of the ids of each table's rows."""


def kept(kind: str, key: str, make: Callable[[], Mapping[str, Table]]) -> Path:
    """A file of tables in the cache, made on first use, whole or not at all.

    Of several processes that want the same one, the first makes it.

    Args:
        kind: Folder in the cache.
        key: From everything that the tables depend on; see :func:`digest`.
        make: Makes the tables.

    Raises:
        UserError: The cache cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = cache_folder() / "recsys" / kind / key
    target = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if target.is_file() and broken(target) is None:
                return target
            tables = make()
            draft = folder / f"{FILE}.part"
            # One entry alone: the order of several would differ between processes, and
            # with it the file's hash.
            ids = {name: list(table.ids) for name, table in tables.items()}
            save_file(
                {n: np.ascontiguousarray(t.vectors) for n, t in tables.items()},
                draft,
                metadata={ROWS: json.dumps(ids, ensure_ascii=False)},
            )
            os.replace(draft, target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache folder cannot be written: {error}",
            where=str(folder),
            why="embeddings are kept there",
            fix="make room, or set HEADSTART_CACHE to a folder that can be written",
        ) from error
    return target


def kept_rows(path: Path) -> dict[str, tuple[str, ...]]:
    """The ids of the rows of a kept file's tables, by name."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        found = json.loads(file.metadata()[ROWS])
    return {name: tuple(ids) for name, ids in found.items()}


def kept_vectors(path: Path, name: str) -> np.ndarray:
    """One table of a kept file, float32 ``(rows, width)``."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        vectors: np.ndarray = file.get_tensor(name)
    return vectors


def digest(*parts: str | bytes | np.ndarray | Sequence[str]) -> str:
    """Hash of arrays, texts and lists of texts, hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            content = np.ascontiguousarray(part)
            head = f"{content.dtype.str}{content.shape}"
            body: bytes | memoryview = content.data if content.size else b""
        elif isinstance(part, bytes):
            head, body = "bytes", part
        elif isinstance(part, str):
            head, body = "text", part.encode()
        else:
            head, body = "texts", json.dumps(list(part)).encode()
        length = body.nbytes if isinstance(body, memoryview) else len(body)
        total.update(f"{head}:{length};".encode())
        total.update(body)
    return total.hexdigest()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
