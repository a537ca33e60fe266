"""Files of learned vectors and the ids of their rows: read, checked, never unpickled.

NumPy's ``.npz`` as implicit's ``save()`` writes it, ``.npy``, ``.safetensors`` and
Parquet. Ids come from inside the file (arrays ``item_ids`` and ``user_ids``, metadata
of the same names, a column) or from text files beside it, one id a line:
``vectors.items.txt`` and ``vectors.users.txt`` for ``vectors.npz``.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError, Fault, nearest
from headstart_recsys.ids import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headstart.data import Findings
    from headstart.settings import DataSettings

ITEMS, USERS = "item_factors", "user_factors"
NAMES = {
    ITEMS: (ITEMS, "item_embeddings", "item_text", "vectors", "embeddings"),
    USERS: (USERS, "user_embeddings"),
}
"""What tables are called in files; the first name is implicit's and ours."""
IDS = {ITEMS: "item_ids", USERS: "user_ids"}
ENDINGS = {ITEMS: ".items.txt", USERS: ".users.txt"}
SUFFIXES = (".npz", ".npy", ".safetensors", ".parquet")
COLUMNS = {ITEMS: ("item_id", "item", "id"), USERS: ("user_id", "user")}
"""Names of a Parquet file's column of ids."""


@dataclass(frozen=True)
class Table:
    """Vectors of named things.

    Attributes:
        vectors: float32 ``(rows, width)``.
        ids: What each row belongs to.
    """

    vectors: np.ndarray
    ids: tuple[str, ...]


@dataclass
class _Raw:
    """A table as a file has it, before checks.

    Attributes:
        label: File and array, as faults name it.
        vectors: ``(rows, width)`` of any type.
        ids: As they are stored, if they are.
        told: Rows of which a fault has been told already.
    """

    label: str
    vectors: np.ndarray
    ids: Sequence[Any] | np.ndarray | None = None
    told: set[int] = field(default_factory=set)


def read_embeddings(
    path: Path, settings: DataSettings, findings: Findings
) -> dict[str, Table]:
    """The tables of a file: ``item_factors``, ``user_factors`` or both.

    The extra columns in which implicit's BPR and LMF models keep biases are left out:
    they are recognised by the model's own settings, which its ``save()`` stores, and
    are no part of a vector.

    Args:
        path: The file.
        settings: ``bad`` and ``bad_cap`` say what happens to bad rows.
        findings: Filled with everything that is found; rows of a file are counted
            from 0, as in ``item_factors[0]``.

    Raises:
        DataError: All faults together: no such file, no ids, another number of ids
            than of rows, ids that are there twice or are no ids, rows of another
            width, with NaN or with zeros alone.
    """
    raw = _read(path, findings)
    _check_widths(raw, findings)
    names = {name: _ids(path, name, table, findings) for name, table in raw.items()}
    for name in [name for name, ids in names.items() if ids is None]:
        fault = _no_ids(path, name, raw[name])
        if name == USERS and names.get(ITEMS) is not None:
            what = f"{fault.what}, so these vectors are not used"
            findings.warnings.append(Fault(what, fault.where, fix=fault.fix))
            del raw[name]
        else:
            findings.fatal.append(fault)
    vectors = {
        name: _vectors(table, names[name] or [], findings)
        for name, table in raw.items()
    }
    total = sum(len(table.vectors) for table in raw.values())
    out = findings.settle(settings, total)
    tables = {}
    for name, table in raw.items():
        ids = names[name] or []
        stay = [row for row in range(len(ids)) if (table.label, row) not in out]
        tables[name] = Table(vectors[name][stay], tuple(ids[row] for row in stay))
    return tables


def _read(path: Path, findings: Findings) -> dict[str, _Raw]:
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        around = [p.name for p in beside if p.suffix.lower() in SUFFIXES]
        raise DataError(
            "there is no such file",
            where=str(path),
            why=f"looked for {path.absolute()}",
            fix=nearest(path.name, around),
        )
    readers = {
        ".npz": _npz,
        ".npy": _npy,
        ".safetensors": _safetensors,
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise DataError(
            f"is no file of vectors: {path.suffix or 'no suffix'}",
            where=str(path),
            fix=f"give one that ends in {', '.join(SUFFIXES)}",
        )
    try:
        return readers[path.suffix](path, findings)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        # NumPy refuses an array of objects, which would have to be unpickled.
        raise DataError(
            "cannot be read",
            where=str(path),
            why=str(error).strip() or type(error).__name__,
            fix="write the vectors as floats and the ids as strings or integers, "
            "without objects, or fetch the file again",
        ) from error


def _npz(path: Path, findings: Findings) -> dict[str, _Raw]:
    with np.load(path, allow_pickle=False) as file:
        known = {name for names in NAMES.values() for name in names}
        wanted = known | set(IDS.values()) | {"factors", "neg_prop"}
        wanted.add("verify_negative_samples")
        arrays = {name: file[name] for name in file.files if name in wanted}
        found = _named(path, arrays, file.files, arrays.get)
    return {name: _without_biases(name, raw, arrays) for name, raw in found.items()}


def _without_biases(name: str, raw: _Raw, arrays: Mapping[str, np.ndarray]) -> _Raw:
    """A table of implicit's BPR or LMF model without its columns of biases."""
    from headstart_recsys.factors import BIASES

    kind = next((k for k in BIASES if k in arrays), "")
    if kind and "factors" in arrays and raw.vectors.ndim == 2:
        factors = int(arrays["factors"])
        if raw.vectors.shape[1] == factors + BIASES[kind]:
            raw.vectors = raw.vectors[:, :factors]
    return raw


def _npy(path: Path, findings: Findings) -> dict[str, _Raw]:
    vectors = np.load(path, allow_pickle=False)
    return {ITEMS: _Raw(path.name, vectors)}


def _safetensors(path: Path, findings: Findings) -> dict[str, _Raw]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            present = list(file.keys())
            known = {name for names in NAMES.values() for name in names}
            arrays = {
                n: file.get_tensor(n).float().numpy() for n in present if n in known
            }
    except SafetensorError as error:
        raise ValueError(str(error)) from error

    def ids(name: str) -> list[Any] | None:
        return json.loads(metadata[name]) if name in metadata else None

    return _named(path, arrays, present, ids)


def _named(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    present: Sequence[str],
    ids: Any,
) -> dict[str, _Raw]:
    found = {}
    for table, names in NAMES.items():
        name = next((name for name in names if name in arrays), "")
        if name:
            label = f"{path.name}: {name}"
            found[table] = _Raw(label, arrays[name], ids(IDS[table]))
    if not found:
        raise DataError(
            "has no vectors of items or users",
            where=str(path),
            why=f"it holds {', '.join(sorted(present)[:8]) or 'nothing'}",
            fix=f"name the vectors of items {ITEMS!r}, those of users {USERS!r}",
        )
    return found


def _parquet(path: Path, findings: Findings) -> dict[str, _Raw]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    lists = [f.name for f in table.schema if any(kind(f.type) for kind in kinds)]
    if len(lists) != 1:
        raise DataError(
            f"has {len(lists)} columns of lists, one is needed",
            where=str(path),
            why=f"its columns are {', '.join(table.column_names)}",
            fix="keep a column of ids and one of vectors",
        )
    others = [name for name in table.column_names if name not in lists]
    which, column = next(
        ((t, name) for t, names in COLUMNS.items() for name in names if name in others),
        (ITEMS, others[0] if len(others) == 1 else ""),
    )
    raw = _list_column(f"{path.name}: {lists[0]}", table[lists[0]], findings)
    if column:
        raw.ids = table[column].to_pylist()
    elif others:
        raise DataError(
            "has several columns that may hold the ids",
            where=str(path),
            why=", ".join(others),
            fix=f"call the one of items {COLUMNS[ITEMS][0]!r}",
        )
    return {which: raw}


def _list_column(label: str, column: Any, findings: Findings) -> _Raw:
    """Lists of numbers as rows; those of another length are told and become NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(column.type.value_type):
        raise ValueError(f"{label} holds lists of {column.type.value_type}, not floats")
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    known = lengths[lengths >= 0]
    width = int(np.bincount(known).argmax()) if len(known) else 0
    good = lengths == width
    vectors = np.full((len(lengths), width), np.nan, dtype=np.float32)
    flat = pc.list_flatten(column.filter(pa.array(good)))
    vectors[good] = flat.to_numpy().astype(np.float32).reshape(-1, width)
    told = set(np.flatnonzero(~good).tolist())
    for row in sorted(told):
        what = f"has {lengths[row]} numbers, most have {width}"
        what = what if lengths[row] >= 0 else "has no vector"
        findings.sample(label, row, Fault(what, f"{label}[{row}]"))
    return _Raw(label, vectors, told=told)


def _check_widths(raw: Mapping[str, _Raw], findings: Findings) -> None:
    for table in raw.values():
        if table.vectors.ndim != 2 or not table.vectors.shape[1]:
            shape = f"the shape {table.vectors.shape}"
            what = f"has {shape}, not (rows, width)"
            findings.fatal.append(Fault(what, table.label))
        elif table.vectors.dtype.kind != "f":
            what = f"holds {table.vectors.dtype}, not floating-point numbers"
            findings.fatal.append(Fault(what, table.label))
        elif not len(table.vectors):
            findings.fatal.append(Fault("has no rows", table.label))
    widths = {t.label: t.vectors.shape[-1] for t in raw.values() if t.vectors.ndim == 2}
    if len(set(widths.values())) > 1:
        (one, first), (other, second) = widths.items()
        findings.fatal.append(
            Fault(
                f"has vectors of width {second}, {one} of {first}",
                other,
                "scores are dot products of a user's and an item's vector",
                "give vectors of one model, without columns of biases",
            )
        )


def _ids(path: Path, name: str, raw: _Raw, findings: Findings) -> list[str] | None:
    """The ids of a table's rows as text; ``None``: there are none."""
    stored, where = raw.ids, f"{raw.label.partition(':')[0]}: {IDS[name]}"
    if stored is None:
        beside = path.with_suffix(ENDINGS[name])
        if not beside.is_file():
            return None
        where = beside.name
        stored = [
            line.rstrip("\r") for line in beside.read_text("utf-8-sig").split("\n")
        ]
        if stored and not stored[-1]:
            stored.pop()
    ids = []
    for row, value in enumerate(stored):
        text = _id(value)
        if not text:
            shown = str(value)[:40]
            what = f"has no id: {shown!r}" if shown else "has no id"
            fix = "ids are text or whole numbers"
            findings.sample(raw.label, row, Fault(what, f"{where}[{row}]", fix=fix))
        ids.append(text)
    first: dict[str, int] = {}
    for row, text in enumerate(ids):
        if text and first.setdefault(text, row) != row:
            what = f"the id {text!r} is there twice, first at [{first[text]}]"
            findings.sample(raw.label, row, Fault(what, f"{where}[{row}]"))
    if len(ids) != len(raw.vectors):
        findings.fatal.append(
            Fault(
                f"there are {len(ids)} ids of {len(raw.vectors)} rows",
                where,
                "a row whose id is not known could be anything",
                f"give one id for each row of {raw.label}, in their order",
            )
        )
    return ids


def _id(value: Any) -> str:
    """An id as text; empty for what is none. 42.0 is 42, as a float column has it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if float(value).is_integer() else ""
    if value is None or isinstance(value, (bool, np.bool_)):
        return ""
    text = str(value).strip()
    return "" if text in NOTHING else text


def _no_ids(path: Path, name: str, raw: _Raw) -> Fault:
    inside = f"an array {IDS[name]!r} in the file or " if path.suffix != ".npy" else ""
    beside = path.with_suffix(ENDINGS[name]).name
    return Fault(
        f"nobody knows what its {len(raw.vectors)} rows belong to",
        raw.label,
        "rows are matched by id, never by place",
        f"give {inside}a file {beside} beside it, one id a line",
    )


def _vectors(raw: _Raw, ids: Sequence[str], findings: Findings) -> np.ndarray:
    """Rows as float32; faults for rows that hold no vector."""
    if raw.vectors.ndim != 2 or raw.vectors.dtype.kind != "f":
        return raw.vectors
    with np.errstate(over="ignore"):
        vectors = raw.vectors.astype(np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    zero = (vectors == 0).all(axis=1)
    for row in np.flatnonzero(~finite | zero).tolist():
        if row in raw.told:
            continue
        whose = f" (id {ids[row]!r})" if row < len(ids) and ids[row] else ""
        what = "holds zeros alone" if zero[row] else "holds NaN or infinite numbers"
        fix = "leave the row out: what has no vector starts as a new one does"
        where = f"{raw.label}[{row}]"
        findings.sample(raw.label, row, Fault(f"{what}{whose}", where, fix=fix))
    return vectors
