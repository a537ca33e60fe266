"""What is known about items: titles and categories, by their ids."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headstart.errors import Fault
from headstart_recsys.checks import RowFaults
from headstart_recsys.formats import (
    GENRES,
    Layout,
    items_file,
    layout,
    missing_columns,
    opened,
    shown,
)
from headstart_recsys.ids import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.data import Findings
    from headstart_recsys.settings import InteractionSettings

NO_CATEGORY = ("", "(no genres listed)")
_FLOAT = re.compile(r"[+-]?\d+\.0*")


@dataclass(frozen=True)
class Catalogue:
    """What is known about the items, in the order of their codes.

    Attributes:
        titles: One for each item, empty where there is none.
        categories: Names of all categories, sorted.
        rows: Places in ``categories`` of each item's own.
        new: Ids of the items that have no event, in the order of the file. They are
            at the end of the other columns, so of ``item_ids`` they go to the end too.
        file: Where this comes from; empty: nowhere.
    """

    titles: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    file: str = ""

    def take(self, index: Sequence[int]) -> Catalogue:
        """The catalogue of these items, in this order; none of them counts as new."""
        return Catalogue(
            [self.titles[i] for i in index],
            self.categories,
            [self.rows[i] for i in index],
            [],
            self.file,
        )


def read_catalogue(
    settings: InteractionSettings, item_ids: Sequence[str], findings: Findings
) -> Catalogue:
    """Read ``data.items_path``.

    Args:
        settings: As :func:`headstart_recsys.formats.completed` makes them.
        item_ids: Ids of the items that have events, by item code.
        findings: Takes the faults.

    Returns:
        Titles and categories of ``item_ids`` and, with ``data.catalogue_items``, of
        ``new`` behind them; all empty where there is no file.
    """
    bare = Catalogue([""] * len(item_ids), [], [[] for _ in item_ids])
    file = items_file(settings, findings)
    if file is None:
        return bare
    wanted = {"item": settings.item, "title": settings.title}
    found = layout(file, wanted, findings)
    if found is None:
        return bare
    wanted["item"] = _id_column(settings.item, found)
    genres = set(GENRES) <= set(found.header) and settings.category == "genres"
    if settings.category and not genres:
        wanted["category"] = settings.category
    needs_titles = bool(settings.text) or "title" in settings.model_fields_set
    if not needs_titles and settings.title not in found.header:
        del wanted["title"]
    where = f"{shown(file)}, header" if found.delimiter else f"{shown(file)}, columns"
    if missing := missing_columns(where, found.header, wanted):
        findings.fatal += missing
        return bare
    names = [*wanted.values(), *(GENRES if genres else ())]
    try:
        columns, numbers = _columns(file, found, names, findings)
    except (OSError, UnicodeError, csv.Error, pa.ArrowInvalid) as error:
        why = str(error).splitlines()[0]
        fix = "save the file as UTF-8" if isinstance(error, UnicodeError) else ""
        fault = Fault("cannot be read", shown(file), why, fix)
        findings.fatal.append(fault)
        return bare
    ids = _ids(columns[wanted["item"]])
    faults = RowFaults(shown(file), found.unit, findings)
    places = _places(ids, numbers, faults)
    _check_match(places, item_ids, file, settings, findings)
    new = []
    if settings.catalogue_items:
        known = set(item_ids)
        new = [name for name in places if name not in known]
    all_ids = [*item_ids, *new]
    titles = _titles(columns.get(wanted.get("title", ""), []), places, all_ids)
    if "title" in wanted:
        _check_titles(titles, all_ids, places, numbers, faults, settings)
    if genres:
        flags = [[g for g in GENRES if columns[g][i] == "1"] for i in range(len(ids))]
    else:
        texts = columns.get(settings.category, [""] * len(ids))
        flags = _split(texts, found.separator)
    names = sorted({name for some in flags for name in some})
    place_of = {name: i for i, name in enumerate(names)}
    rows = [
        [place_of[name] for name in flags[places[i]]] if i in places else []
        for i in all_ids
    ]
    return Catalogue(titles, names, rows, new, shown(file))


def _id_column(name: str, found: Layout) -> str:
    """The column of ids; MovieLens files without a header have it by our name."""
    return "item" if name not in found.header and "item" in found.header else name


def _columns(
    file: Path, found: Layout, names: Sequence[str], findings: Findings
) -> tuple[dict[str, list[Any]], list[int]]:
    """Columns as text, and the line or row of each of their values."""
    if not found.delimiter:
        import pyarrow.parquet as pq

        table = pq.read_table(file, columns=sorted(set(names)))
        columns = {name: table.column(name).to_pylist() for name in names}
        return columns, list(range(1, len(table) + 1))
    encoding = "utf-8-sig" if found.encoding == "utf-8" else found.encoding
    with opened(file) as stream:
        text = stream.read().decode(encoding)
    if len(found.delimiter) > 1 or found.skip == 0 or found.separator == " ":
        # No quotes in these formats: a title may begin with one.
        lines = enumerate(text.split("\n"), start=1)
        rows = [
            (n, line.rstrip("\r").split(found.delimiter)) for n, line in lines if line
        ]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=found.delimiter)
        rows = []
        begin = 1
        for fields in reader:
            if any(fields):
                rows.append((begin, fields))
            begin = reader.line_num + 1
    rows = rows[1:] if found.skip else rows
    width = len(found.header)
    good = [(number, fields) for number, fields in rows if len(fields) == width]
    faults = RowFaults(shown(file), "line", findings)
    for number, fields in rows:
        if len(fields) != width:
            few = "few" if len(fields) < width else "many"
            what = f"too {few} fields, {len(fields)} of {width}"
            fix = "complete the line, or put text with the separator in quotes"
            faults.add(what, np.array([number]), fix=fix)
    places = {name: found.header.index(name) for name in names}
    columns = {
        name: [fields[place].strip() for _, fields in good]
        for name, place in places.items()
    }
    return columns, [number for number, _ in good]


def _ids(values: Sequence[Any]) -> list[str]:
    """Ids as those of the events are read: whole numbers without decimal point."""
    texts = [
        str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip()
        for v in values
    ]
    if texts and all(_FLOAT.fullmatch(text) for text in texts if text not in NOTHING):
        return [text.partition(".")[0] for text in texts]
    return texts


def _places(
    ids: Sequence[str], numbers: Sequence[int], faults: RowFaults
) -> dict[str, int]:
    """Where each id stands; an id that comes again, and none at all, are faults."""
    places: dict[str, int] = {}
    again, nothing = [], []
    for i, name in enumerate(ids):
        if name in NOTHING:
            nothing.append(i)
        elif places.setdefault(name, i) != i:
            again.append(i)
    lines = np.array(numbers, dtype=np.int64)
    faults.add("no item id", lines[nothing], fix="complete or remove the row")
    faults.add(
        "an item that was there before",
        lines[again],
        lambda i: f"{ids[again[i]]!r}, as in {lines[places[ids[again[i]]]]}",
        "one id stands for one item",
        "remove one of the rows, or give it an id of its own",
    )
    return places


def _check_match(
    places: dict[str, int],
    item_ids: Sequence[str],
    file: Path,
    settings: InteractionSettings,
    findings: Findings,
) -> None:
    """Items of the events that the file does not know."""
    unknown = [name for name in item_ids if name not in places]
    if not unknown:
        return
    some = ", ".join(map(repr, unknown[:5]))
    what = f"{len(unknown)} of {len(item_ids)} items with events are not there"
    if len(unknown) == len(item_ids):
        theirs = ", ".join(map(repr, list(places)[:5])) or "none"
        findings.fatal.append(
            Fault(
                "no item with events is there",
                where=shown(file),
                why=f"its ids are {theirs} …, those of {settings.path} are {some} …",
                fix="give the same ids to both files; data.item names the column",
            )
        )
        return
    why = f"they get no title and no category: {some}"
    fix = "add rows for them, or leave it so"
    findings.warnings.append(Fault(what, shown(file), why, fix))


def _titles(
    texts: Sequence[Any], places: dict[str, int], item_ids: Sequence[str]
) -> list[str]:
    if not texts:
        return [""] * len(item_ids)
    found = (texts[places[name]] if name in places else "" for name in item_ids)
    return ["" if text is None else str(text).strip() for text in found]


def _check_titles(
    titles: Sequence[str],
    item_ids: Sequence[str],
    places: dict[str, int],
    numbers: Sequence[int],
    faults: RowFaults,
    settings: InteractionSettings,
) -> None:
    """Missing titles: a fault where vectors are computed from them, else a warning."""
    empty = [
        name
        for name, title in zip(item_ids, titles, strict=True)
        if not title and name in places
    ]
    if not empty:
        return
    empty.sort(key=lambda name: numbers[places[name]])
    where = np.array([numbers[places[name]] for name in empty])
    if settings.text:
        why = "data.text makes the item's vector from its title"
        fix = "write one, or remove the item"
        faults.add("no title", where, lambda i: f"item {empty[i]!r}", why, fix)
        return
    some = ", ".join(map(repr, empty[:5]))
    what = f"items without a title: {len(empty)}"
    place = f"{faults.file}, {faults.unit} {where[0]}"
    faults.findings.warnings.append(Fault(what, place, f"the first are {some}"))


def _split(texts: Sequence[Any], separator: str) -> list[list[str]]:
    """Categories of each row; lists as they are, text cut at the mark that it uses."""
    plain = [text for text in texts if isinstance(text, str)]
    mark = next((m for m in ("|", ", ") if any(m in t for t in plain)), separator)
    cut = (
        [str(name) for name in text or ()]
        if not isinstance(text, str)
        else text.split(mark)
        for text in texts
    )
    return [
        list(dict.fromkeys(n.strip() for n in names if n.strip() not in NO_CATEGORY))
        for names in cut
    ]
