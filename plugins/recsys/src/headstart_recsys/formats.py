"""Which files belong together, and what is known of their columns beforehand."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from headstart.errors import Fault, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.assets import Asset
    from headstart.data import Findings
    from headstart_recsys.settings import InteractionSettings

_S = TypeVar("_S", bound="InteractionSettings")

ASSET = "asset:"
PARQUET = (".parquet", ".pq")
ATOMIC = (".inter", ".item", ".user")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".data": "\t", ".dat": "::"}
KNOWN = ".csv, .tsv, .parquet, .inter, .dat, u.data, text also as .gz"
GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama"
    " Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
"""The flags at the end of a line of ``u.item``, in the order of its README."""
_RATINGS = ("user", "item", "rating", "timestamp")
_FILMS = ("item", "title", "genres")


@dataclass(frozen=True)
class Layout:
    """How a text file or a Parquet file is to be read.

    Attributes:
        delimiter: Between fields; empty: a Parquet file.
        header: Names of the columns.
        skip: Lines before the first row.
        encoding: Of a text file.
        separator: Between the categories of an item.
    """

    delimiter: str
    header: tuple[str, ...]
    skip: int = 1
    encoding: str = "utf-8"
    separator: str = "|"

    @property
    def unit(self) -> str:
        """What the numbers of rows count."""
        return "line" if self.delimiter else "row"


MOVIELENS = {
    "u.data": Layout("\t", _RATINGS, 0),
    "ratings.dat": Layout("::", _RATINGS, 0),
    "u.item": Layout(
        "|",
        ("item", "title", "released", "video released", "url", *GENRES),
        0,
        "latin-1",
    ),
    "movies.dat": Layout("::", _FILMS, 0, "latin-1"),
}
ITEMS_BESIDE = {
    "u.data": "u.item",
    "ratings.dat": "movies.dat",
    "ratings.csv": "movies.csv",
}


def completed(settings: _S) -> _S:
    """The settings with what the format or an asset's ``[NAME.read]`` says.

    What the recipe says itself goes before. Relative paths become absolute, so that a
    run folder's recipe works from everywhere.
    """
    given = settings.model_dump(include=settings.model_fields_set)
    if settings.path.startswith(ASSET):
        known = {k: v for k, v in _asset(settings.path).read.items() if k != "file"}
        known.setdefault("items_path", settings.path)
    else:
        known = _known(settings.path)
        for key in ("path", "items_path", "map_ids"):
            text = given.get(key)
            if text and not text.startswith(ASSET):
                given[key] = str(Path(text).expanduser().absolute())
    return type(settings).model_validate({**known, **given})


def interactions_file(settings: InteractionSettings, findings: Findings) -> Path | None:
    """The file with the events that ``data.path`` names; an asset is fetched."""
    if settings.path.startswith(ASSET):
        return _asset_file(settings.path, "")
    return _file(settings.path, "data.path", findings)


def items_file(settings: InteractionSettings, findings: Findings) -> Path | None:
    """The file about the items; ``None`` where there is none or it cannot be had."""
    if not settings.items_path:
        return None
    if settings.items_path.startswith(ASSET):
        return _asset_file(settings.items_path, ".item")
    file = Path(settings.items_path)
    if file.is_file():
        return file
    findings.fatal.append(missing_file(file, "data.items_path"))
    return None


def shown(path: str | Path) -> str:
    """A path as people in the present folder write it."""
    here = Path.cwd()
    inside = bool(str(path)) and Path(path).is_relative_to(here)
    return str(Path(path).relative_to(here)) if inside else str(path)


def missing_file(file: Path, key: str) -> Fault:
    """There is no such file: where it would be, and what has nearly its name."""
    if not file.parent.is_dir():
        why = f"{key} names it; there is no folder {shown(file.parent)}"
        return Fault("there is no such file", shown(file), why)
    beside = [p.name for p in file.parent.iterdir() if not p.name.startswith(".")]
    fix = nearest(file.name, beside) or "give the path of an existing file"
    return Fault("there is no such file", shown(file), f"{key} names it", fix)


def layout(file: Path, wanted: Mapping[str, str], findings: Findings) -> Layout | None:
    """How a file is to be read.

    Args:
        file: An existing one.
        wanted: Names of columns by role; they tell the separator of a text file.
        findings: Takes the faults.
    """
    if file.name in MOVIELENS:
        return MOVIELENS[file.name]
    where = shown(file)
    try:
        if ending(file) in PARQUET:
            import pyarrow.parquet as pq

            return Layout("", tuple(pq.read_schema(file).names), 0)
        head = opened(file).read(1 << 16)
    except (OSError, pa.ArrowInvalid) as error:
        why = str(error).splitlines()[0]
        findings.fatal.append(Fault("cannot be read", where, why))
        return None
    if not head.strip():
        findings.fatal.append(
            Fault("no rows", where, "the file is empty", "give a file with rows")
        )
        return None
    if head.count(0) > len(head) // 5:
        why = "it is full of NUL bytes, as UTF-16 and binary files are"
        fix = f"save it as UTF-8 text; known endings: {KNOWN}"
        findings.fatal.append(Fault("this is not UTF-8 text", where, why, fix))
        return None
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].rstrip(b"\r")
    header = line.decode("utf-8", errors="replace")
    if ending(file) in ATOMIC:
        names = tuple(name.rpartition(":")[0] or name for name in header.split("\t"))
        return Layout("\t", names, separator=" ")
    usual = DELIMITERS.get(ending(file), ",")
    candidates = {mark: _fields(header, mark) for mark in (usual, ",", ";", "\t", "|")}
    asked = set(wanted.values())
    mark = max(candidates, key=lambda m: len(asked.intersection(candidates[m])))
    return Layout(mark, candidates[mark])


def _fields(line: str, mark: str) -> tuple[str, ...]:
    if len(mark) > 1:
        return tuple(line.split(mark))
    # A header ends with its line, so a quote that stays open is part of a name.
    return tuple(next(csv.reader(io.StringIO(line), delimiter=mark)))


def opened(file: Path) -> pa.NativeFile:
    """The bytes of a file; ``.gz`` and its like are unpacked on the way."""
    return pa.input_stream(str(file), compression="detect")


def ending(file: Path) -> str:
    """The ending that tells the format, in lower case; that before ``.gz``."""
    found = [s.lower() for s in file.suffixes[-2:]] or [""]
    return found[-2] if found[-1] == ".gz" and found[1:] else found[-1]


def missing_columns(
    where: str, header: Sequence[str], wanted: Mapping[str, str]
) -> list[Fault]:
    """A fault for each wanted column that the header does not have exactly once."""
    faults = []
    for role, name in wanted.items():
        count = list(header).count(name)
        key = f"data.{role}"
        if count > 1:
            fix = f"rename one, and say which with {key}"
            faults.append(
                Fault(f"column {name!r} is there {count} times", where, "", fix)
            )
        elif not count:
            what = f"there is no column {name!r} ({key})"
            why = f"its columns are {', '.join(map(repr, header))[:300]}"
            near = nearest(name, header)
            tell = f"say which column it is with {key}"
            fix = f"{near} then set {key}" if near.startswith("did") else tell
            faults.append(Fault(what, where, why, fix))
    return faults


def _known(path: str) -> dict[str, Any]:
    """Settings that a MovieLens folder or RecBole's atomic files bring along."""
    if not path:
        return {}
    file = _inside(Path(path).expanduser().absolute())
    known: dict[str, Any] = {}
    if file is None:
        return known
    if file.name in ("u.data", "ratings.dat"):
        known = dict(zip(("user", "item", "value", "time"), _RATINGS, strict=True))
        known |= {"rating_range": (1.0, 5.0), "category": "genres"}
    elif file.name == "ratings.csv" and (file.parent / "movies.csv").is_file():
        known = {"user": "userId", "item": "movieId", "value": "rating"}
        known |= {"time": "timestamp", "rating_range": (0.5, 5.0), "category": "genres"}
    elif ending(file) == ".inter":
        known = _atomic(file)
    name = ITEMS_BESIDE.get(file.name, "")
    items = (
        file.with_suffix(".item") if ending(file) == ".inter" else file.parent / name
    )
    if known and items.is_file():
        known["items_path"] = str(items)
    else:
        known.pop("category", None)
    return known


def _atomic(file: Path) -> dict[str, Any]:
    names = _header(file)
    usual = {"value": "rating", "time": "timestamp", "session": "session_id"}
    known: dict[str, Any] = {"user": "user_id", "item": "item_id"}
    known |= {role: name for role, name in usual.items() if name in names}
    if not (items := file.with_suffix(".item")).is_file():
        return known
    for role, parts in {
        "title": ("title", "name"),
        "category": ("class", "genre", "categor"),
    }.items():
        found = [name for name in _header(items) if any(p in name for p in parts)]
        if found:
            known[role] = found[0]
    return known


def _header(file: Path) -> tuple[str, ...]:
    from headstart.data import Findings

    found = layout(file, {}, Findings()) if file.is_file() else None
    return found.header if found else ()


def _inside(path: Path) -> Path | None:
    """A file itself, or the one of a folder that holds the events."""
    if not path.is_dir():
        return path
    for name in ITEMS_BESIDE:
        if (path / name).is_file():
            return path / name
    atomic = sorted(path.glob("*.inter"))
    return atomic[0] if len(atomic) == 1 else None


def _file(path: str, key: str, findings: Findings) -> Path | None:
    given = Path(path)
    file = _inside(given)
    if file is not None and file.is_file():
        return file
    if not given.is_dir():
        findings.fatal.append(missing_file(given, key))
        return None
    names = sorted(p.name for p in given.iterdir() if p.is_file())
    findings.fatal.append(
        Fault(
            "this folder is no MovieLens folder and has not one .inter file",
            where=shown(given),
            why=f"it has {', '.join(names[:8]) or 'nothing'}",
            fix=f"name the file with the events: {key}={given.name}/FILE",
        )
    )
    return None


def _asset(path: str) -> Asset:
    from headstart.assets import find_asset

    return find_asset(path.removeprefix(ASSET), ("headstart_recsys",))


def _asset_file(path: str, suffix: str) -> Path:
    from headstart.assets import fetch

    asset = _asset(path)
    file = fetch(asset) / asset.read.get("file", asset.files[0].path)
    return file.with_suffix(suffix) if suffix else file
