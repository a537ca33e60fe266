"""Sources of learned embeddings: ``embeddings:``, ``implicit:`` and ``text:``.

They give the tensors ``item_factors``, ``user_factors`` and, when the data has text
vectors, ``item_text``, each with the ids of its rows; the core aligns them by id.
"""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl

import numpy as np
from pydantic import Field, ValidationError

from headstart.data import Findings
from headstart.errors import DataError, Fault, UserError, nearest
from headstart.files import write_text
from headstart.settings import DataSettings, Settings
from headstart.weights.sources import Weights
from headstart_recsys import factors
from headstart_recsys.embeddings import ITEMS, USERS, Table, read_embeddings
from headstart_recsys.kept import digest, kept, kept_rows, kept_vectors
from headstart_recsys.text import match_norms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy import sparse

    from headstart.weights.sources import SourceContext

TEXT = "item_text"
FEW = 5
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Training(Settings):
    """What may follow ``implicit:NAME?``, for every model."""

    factors: Count = 64
    """Width of the vectors."""
    iterations: Count = 15
    """Passes over the events."""
    regularization: Annotated[float, Field(ge=0)] = 0.01
    """Of all vectors."""
    norm: Annotated[float, Field(ge=0)] = 0.0
    """Mean length that the vectors are brought to, for models that want it; 0: as
    they are."""


class AlsTraining(Training):
    """``implicit:als``."""

    alpha: Positive = 1.0
    """What the weight of an event is multiplied with."""
    seed: int = 0
    """Of the vectors at the start."""
    start: str = ""
    """A file of embeddings to go on from, as ``embeddings:`` takes it."""


class BprTraining(Training):
    """``implicit:bpr``."""

    iterations: Count = 100
    learning_rate: Positive = 0.01
    """Of the gradient steps."""
    seed: int = 0
    """Of the start and of what is sampled."""


class LmfTraining(Training):
    """``implicit:lmf``."""

    iterations: Count = 30
    regularization: Annotated[float, Field(ge=0)] = 0.6
    learning_rate: Positive = 1.0
    """Of Adagrad."""
    negatives: Count = 30
    """Items sampled for each event."""
    seed: int = 0
    """Of the start and of what is sampled."""


MODELS: dict[str, tuple[type[Training], Any]] = {
    "als": (AlsTraining, factors.train_als),
    "bpr": (BprTraining, factors.train_bpr),
    "lmf": (LmfTraining, factors.train_lmf),
}


def resolve_embeddings(reference: str, context: SourceContext) -> Weights:
    """Embeddings from a file, see :mod:`headstart_recsys.embeddings`.

    Item ids are translated by ``data.map_ids``. Users are left out, with a warning,
    when none of them is in the data.

    Args:
        reference: Path of the file.
        context: Its data says which ids there are and what to do about bad rows.

    Raises:
        DataError: All faults of the file or of the map together.
    """
    tables = _read(reference, context)
    data: Any = context.data
    if ITEMS in tables and USERS in tables and data is not None:
        ours = set(data.user_ids)
        if not any(identity in ours for identity in tables[USERS].ids):
            data.findings.warnings.append(
                Fault(
                    "none of its users is in the data; only the items' vectors are "
                    "used",
                    f"embeddings:{reference}",
                )
            )
            del tables[USERS]
    key = digest(*(part for t in tables.items() for part in _parts(*t)))
    path = kept("embeddings", key, lambda: tables)
    return _weights(f"embeddings:{reference}", path, context)


def resolve_implicit(reference: str, context: SourceContext) -> Weights:
    """Embeddings that implicit learns from the data's earlier part, kept in the cache.

    Without an earlier part it learns from the training split. Items and users without
    an event there get no row, so they start as new ones do. BPR's and LMF's biases are
    no part of the vectors and are left out. ``als?start=FILE`` goes on from a file's
    item vectors; what the file knows and the events do not stays as it was.

    Args:
        reference: ``als``, ``bpr`` or ``lmf``, then perhaps
            ``?factors=64&iterations=15&…``.
        context: Its data is learned from.

    Raises:
        UserError: No such model or parameter, or it diverged.
        DataError: There is nothing to learn from.
    """
    name = f"implicit:{reference}"
    algorithm, settings = _training(name, reference)
    data: Any = context.data
    if data is None or not hasattr(data, "interactions"):
        raise UserError(
            "learns from interactions, and there are none",
            where=name,
            fix="use it with recsys/interactions or recsys/sequences",
        )
    events = data.interactions("earlier")
    if not len(events):
        events = data.interactions("train")
    matrix = factors.interaction_matrix(
        events,
        len(data.user_ids),
        len(data.item_ids),
        # A rating says how much somebody liked it, not how sure it is that they did.
        weighted=data.settings.values == "weights",
    )
    start = getattr(settings, "start", "")
    given = _read(start, context).get(ITEMS) if start else None
    if start and given is None:
        raise DataError("has no vectors of items to go on from", where=start)
    if given is not None and "factors" in settings.model_fields_set:
        width = given.vectors.shape[1]
        if width != settings.factors:
            raise UserError(
                f"the vectors of {start} have the width {width}, not "
                f"{settings.factors}",
                where=name,
                fix=f"write factors={width} or leave it out",
            )
    key = digest(
        algorithm,
        settings.model_dump_json(),
        data.user_ids,
        data.item_ids,
        matrix.indptr,
        matrix.indices,
        matrix.data,
        *(_parts(ITEMS, given) if given else ()),
        _version(),
    )

    def make() -> dict[str, Table]:
        from headstart.console import Counter

        label = f"learning {algorithm.upper()} embeddings"
        quiet = context.progress is None
        with nullcontext() if quiet else Counter(label) as told:
            return _learned(algorithm, settings, matrix, data, given, told)

    path = kept("implicit", key, make)
    return _weights(name, path, context)


def resolve_text(reference: str, context: SourceContext) -> Weights:
    """The data's text vectors alone; all tables of ids start at random.

    Args:
        reference: Nothing.
        context: Its data has read or computed the vectors, see ``data.text``.

    Raises:
        UserError: The data has none.
    """
    if reference:
        raise UserError(
            f"nothing may follow 'text:', not {reference!r}",
            where="backbone.weights",
            fix=f"write weights = 'text:' and data.text = {reference!r}",
        )
    path = _text(context, None)
    if path is None:
        raise UserError(
            "the data has no text vectors",
            where="text:",
            fix="set data.text to a file of vectors or to an encoder",
        )
    return Weights("text:", None, (path,), rows=kept_rows(path))


def _training(name: str, reference: str) -> tuple[str, Training]:
    algorithm, _, query = reference.partition("?")
    if algorithm not in MODELS:
        raise UserError(
            f"implicit has no model {algorithm!r} here",
            where=name,
            fix=nearest(algorithm, MODELS),
        )
    kind, _ = MODELS[algorithm]
    try:
        return algorithm, kind.model_validate(
            dict(parse_qsl(query, keep_blank_values=True))
        )
    except ValidationError as error:
        faults = []
        for found in error.errors():
            key = str(found["loc"][0])
            if found["type"] == "extra_forbidden":
                what = f"implicit:{algorithm} has no parameter {key!r}"
                faults.append(Fault(what, name, fix=nearest(key, kind.model_fields)))
            else:
                what = f"{key}: {found['msg']}, not {found['input']!r}"
                faults.append(Fault(what, name))
        raise UserError(*faults) from None


def _learned(
    algorithm: str,
    settings: Training,
    matrix: sparse.csr_matrix,
    data: Any,
    given: Table | None,
    told: Any,
) -> dict[str, Table]:
    arguments = settings.model_dump(exclude={"start", "norm"})
    items = np.bincount(matrix.indices, minlength=matrix.shape[1]) > 0
    users = np.diff(matrix.indptr) > 0
    if given is None:
        _, train = MODELS[algorithm]
        found = train(matrix, told=told, **arguments)
    else:
        del arguments["factors"], arguments["seed"]
        places = {identity: row for row, identity in enumerate(given.ids)}
        rows = np.array([places.get(i, -1) for i in data.item_ids], dtype=np.int64)
        first = np.zeros((len(rows), given.vectors.shape[1]), dtype=np.float32)
        first[rows >= 0] = given.vectors[rows[rows >= 0]]
        if not first.any():
            raise DataError(
                "none of its items is in the data",
                where=str(getattr(settings, "start", "")),
                why=f"it knows {_few(given.ids)}, the data {_few(data.item_ids)}",
                fix="take embeddings of the same catalogue, or set data.map_ids",
            )
        found = factors.continue_als(matrix, first, told=told, **arguments)
        # Nobody's item is solved to zeros; what was known of it is better.
        found.items[~items] = first[~items]
        items |= rows >= 0
    # Those that never occur keep what they started with by chance.
    return {
        ITEMS: _of(found.items, data.item_ids, items, settings.norm),
        USERS: _of(found.users, data.user_ids, users, settings.norm),
    }


def _of(
    vectors: np.ndarray, ids: Sequence[str], which: np.ndarray, norm: float
) -> Table:
    chosen = vectors[which]
    if norm:
        chosen = chosen * (norm / np.linalg.norm(chosen, axis=1).mean())
    return Table(chosen, tuple(ids[i] for i in np.flatnonzero(which).tolist()))


def _read(reference: str, context: SourceContext) -> dict[str, Table]:
    """A file's tables, item ids translated."""
    data: Any = context.data
    settings = data.settings if data is not None else DataSettings(name="embeddings")
    path = Path(reference).expanduser()
    findings = Findings()
    tables = read_embeddings(path, settings, findings)
    if data is not None:
        data.findings.left_out += findings.left_out
        data.findings.warnings += findings.warnings
    translation = str(getattr(settings, "map_ids", ""))
    if translation and ITEMS in tables:
        ids = _translated(tables[ITEMS].ids, Path(translation).expanduser(), data)
        tables[ITEMS] = replace(tables[ITEMS], ids=ids)
    return tables


def read_id_map(path: Path) -> dict[str, str]:
    """Their ids to ours, from a CSV with the columns ``theirs`` and ``ours``.

    Raises:
        DataError: All faults together: columns that lack, empty or repeated ids.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            lines = [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("cannot be read", where=str(path), why=str(error)) from error
    if lacking := [c for c in ("theirs", "ours") if c not in columns]:
        raise DataError(
            f"has no column {lacking[0]!r}",
            where=str(path),
            why=f"its columns are {', '.join(columns) or 'none'}",
            fix="the first line of data.map_ids is: theirs,ours",
        )
    found: dict[str, str] = {}
    faults = []
    known: dict[tuple[str, str], int] = {}
    for line, row in lines:
        pair = {c: (row[c] or "").strip() for c in ("theirs", "ours")}
        for column, identity in pair.items():
            where = f"{path.name}, line {line}"
            if not identity:
                faults.append(Fault(f"{column!r} is empty", where))
            elif first := known.get((column, identity)):
                what = f"{column} {identity!r} is there twice, first in line {first}"
                faults.append(Fault(what, where))
            else:
                known[column, identity] = line
        found[pair["theirs"]] = pair["ours"]
    if faults:
        raise DataError(*faults)
    return found


def _translated(ids: Sequence[str], path: Path, data: Any) -> tuple[str, ...]:
    """Our names of their items; those that are not in the map match nothing."""
    names = read_id_map(path)
    theirs, ours = set(ids), set(data.item_ids)
    unknown = {
        "the embeddings know": [name for name in names if name not in theirs],
        "the data knows": [name for name in names.values() if name not in ours],
    }
    faults = [
        Fault(
            f"none of the {len(names)} items of the map is one that {whose}",
            str(path),
            f"the map has {_few(wrong)}, they are called "
            f"{_few(sorted(theirs if 'embeddings' in whose else ours))}",
            "the column 'theirs' holds ids of the embeddings, 'ours' those of the data",
        )
        for whose, wrong in unknown.items()
        if len(wrong) == len(names)
    ]
    if faults:
        raise DataError(*faults)
    data.findings.warnings += [
        Fault(
            f"{len(wrong)} items of the map are none that {whose}: {_few(wrong)}",
            str(path),
        )
        for whose, wrong in unknown.items()
        if wrong
    ]
    # An item that is not in the map could have the name of another one of ours.
    return tuple(names.get(name, f"{name} (not in {path.name})") for name in ids)


def _weights(name: str, path: Path, context: SourceContext) -> Weights:
    """Tables from the cache, with the data's text vectors beside them.

    The folder's ``config.json`` tells a backbone how wide the vectors are.
    """
    rows = kept_rows(path)
    files = [path]
    width = kept_vectors(path, next(iter(rows))).shape[1]
    write_text(path.with_name("config.json"), json.dumps({"factors": width}))
    if ITEMS in rows and (text := _text(context, path)):
        files.append(text)
        rows |= kept_rows(text)
    return Weights(name, path.parent, tuple(files), rows=rows)


def _text(context: SourceContext, factors_of: Path | None) -> Path | None:
    """The data's text vectors as a kept file, if it has some."""
    data: Any = context.data
    vectors = getattr(data, "text_vectors", None)
    if vectors is None:
        return None
    if factors_of is not None and getattr(data.settings, "match_norms", False):
        vectors = match_norms(vectors, kept_vectors(factors_of, ITEMS))
    table = Table(vectors, tuple(data.item_ids))
    return kept("text", digest(*_parts(TEXT, table)), lambda: {TEXT: table})


def _parts(name: str, table: Table) -> tuple[Any, ...]:
    return name, table.vectors, table.ids


def _few(ids: Sequence[str]) -> str:
    more = " …" if len(ids) > FEW else ""
    return ", ".join(map(repr, ids[:FEW])) + more


def _version() -> str:
    from importlib.metadata import version

    return version("implicit")
