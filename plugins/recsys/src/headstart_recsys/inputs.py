"""What users of ``predict`` pass to it: user ids, lists of items, files of ids."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError, Fault, nearest
from headstart_recsys.samples import Ragged, UserRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headstart.data import Sample

FORMS = 'a user id, {"user": ID}, {"like": [ITEM, …]}, {"all": True} or a file of ids'
SUFFIXES = (".txt", ".csv", ".tsv")
NAMED = 3
"""Titles that are offered where one was given for an id."""
CHUNK = 1000
"""Users whose recommendations are written at once."""

Histories = tuple[Mapping[str, int], Ragged]
"""Row by user id, and each row's item codes, oldest first."""


def nothing_known() -> Histories:
    """Histories of nobody."""
    empty = np.zeros(1, dtype=np.int64)
    return {}, Ragged(empty, empty, empty)


def user_rows(
    inputs: Sequence[Any],
    task: Mapping[str, Any],
    histories: Callable[[], Histories],
    column: str,
    length: int,
) -> UserRows:
    """Samples of users to recommend to.

    Args:
        inputs: See :data:`FORMS`; a plain string is a user id, or an existing
            ``.txt``, ``.csv`` or ``.tsv`` file of them.
        task: Of the data module.
        histories: Reads what users are known to have; asked only where users are.
        column: Of user ids in files that have a header.
        length: Of sequences; 0: none.

    Returns:
        One sample per user or list. Users who were not trained on have the code -1,
        and those of whom nothing is known an empty history.

    Raises:
        DataError: Inputs of another form and unknown items; names them all.
    """
    faults: list[Fault] = []
    codes = {name: code for code, name in enumerate(task["items"])}
    names: list[str] = []
    likes: list[list[int] | None] = []
    for number, given in enumerate(inputs, start=1):
        where = f"input {number}"
        if isinstance(given, Mapping) and "like" in given:
            liked = _liked(given["like"], codes, task["titles"], where, faults)
            names.append(", ".join(str(one) for one in _listed(given["like"])))
            likes.append(liked)
            continue
        found = _users(given, task, where, column, faults)
        names += found
        likes += [None] * len(found)
    if not names and not faults:
        faults.append(
            Fault(
                "nobody to recommend to",
                fix="--user 42, --like ITEM or --all (headstart predict); in "
                f"Python, {FORMS}",
            )
        )
    if faults:
        raise DataError(*faults)
    known = {name: code for code, name in enumerate(task["users"])}
    users = np.array(
        [
            known.get(name, -1) if liked is None else -1
            for name, liked in zip(names, likes, strict=True)
        ],
        dtype=np.int64,
    )
    rows, past = nothing_known()
    if any(liked is None for liked in likes):
        rows, past = histories()
    # A user without a history and a list have an empty row in the other part.
    row = np.array(
        [
            rows.get(name, -1) if liked is None else -1
            for name, liked in zip(names, likes, strict=True)
        ],
        dtype=np.int64,
    )
    has = row >= 0
    stored = Ragged(
        past.flat,
        np.where(has, past.starts[row * has], 0),
        np.where(has, past.stops[row * has], 0),
    )
    lists = [liked or [] for liked in likes]
    stops = np.cumsum([len(one) for one in lists], dtype=np.int64)
    starts = stops - [len(one) for one in lists]
    flat = np.array([code for one in lists for code in one], dtype=np.int64)
    given_rows = Ragged(flat, starts, stops)
    return UserRows(names, users, (stored, given_rows), length=length)


def write_recommendations(
    folder: Path, samples: Sequence[Sample], predictions: Iterable[dict[str, Any]]
) -> list[Path]:
    """One row per user and recommended item, best first, as Parquet.

    Columns: ``user``, ``rank`` (from 1), ``item``, ``title``, ``score``, ``reason``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("user", pa.string()),
            ("rank", pa.int32()),
            ("item", pa.string()),
            ("title", pa.string()),
            ("score", pa.float32()),
            ("reason", pa.string()),
        ]
    )
    path = folder / "recommendations.parquet"
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as writer:
        for number, (sample, found) in enumerate(
            zip(samples, predictions, strict=True), start=1
        ):
            rows += [
                {
                    "user": sample["name"],
                    "rank": rank,
                    "item": one["id"],
                    "title": one.get("title"),
                    "score": one.get("score"),
                    "reason": found.get("reason"),
                }
                for rank, one in enumerate(found["items"], start=1)
            ]
            if number % CHUNK == 0:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return [path]


def _users(
    given: Any,
    task: Mapping[str, Any],
    where: str,
    column: str,
    faults: list[Fault],
) -> list[str]:
    """Ids of the users that one input stands for."""
    if isinstance(given, Mapping):
        if given.get("all") is True:
            return list(task["users"])
        if "user" in given:
            return [str(given["user"])]
        what = f"{dict(given)!r} names no user"
    elif isinstance(given, (str, Path)):
        path = Path(given)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            return _from_file(path, column, faults)
        return [str(given)]
    elif isinstance(given, int) and not isinstance(given, bool):
        return [str(given)]
    else:
        what = f"a {type(given).__name__} is no user"
    faults.append(Fault(what, where, fix=f"give {FORMS}"))
    return []


def _from_file(path: Path, column: str, faults: list[Fault]) -> list[str]:
    """One id a line; in a table, the column of users or else the first one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault("cannot be read", str(path), str(error)))
        return []
    lines = text.splitlines()
    if path.suffix.lower() == ".txt":
        ids = [line.strip() for line in lines]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        table = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        place = 0
        if table and column in table[0]:
            place = table.pop(0).index(column)
        ids = [row[place].strip() if place < len(row) else "" for row in table]
    ids = [name for name in ids if name]
    if not ids:
        fix = "write one user id a line"
        faults.append(Fault("no user ids", str(path), fix=fix))
    return ids


def _liked(
    given: Any,
    codes: Mapping[str, int],
    titles: Sequence[str],
    where: str,
    faults: list[Fault],
) -> list[int]:
    listed = [str(one) for one in _listed(given)]
    if not listed:
        faults.append(Fault("no items", where, fix='e.g. {"like": ["50", "181"]}'))
    for name in listed:
        if name not in codes:
            faults.append(
                Fault(f"unknown item {name!r}", where, fix=_hint(name, codes, titles))
            )
    return [codes[name] for name in dict.fromkeys(listed) if name in codes]


def _hint(name: str, codes: Mapping[str, int], titles: Sequence[str]) -> str:
    wanted = name.casefold()
    named = [
        f"{title!r} is item {item!r}"
        for item, title in zip(codes, titles, strict=False)
        if len(wanted) > 2 and wanted in title.casefold()
    ]
    if named:
        return "give an id: " + ", ".join(named[:NAMED])
    # Comparing with a million ids takes minutes.
    if len(codes) > 100_000:
        return "an item of the run's task.json"
    return nearest(name, codes)


def _listed(given: Any) -> list[Any]:
    if isinstance(given, (list, tuple)):
        return list(given)
    return [given]
