"""What the values of a table must be: texts that say something, labels that are known.

Faults of one row go to ``findings.samples`` (the recipe's ``data.bad`` decides about
them); what concerns the whole table is fatal, or a warning.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from headstart.data import Findings
    from headstart_nlp.files import Table
    from headstart_nlp.settings import LanguageDataSettings, TableSettings

Target = str | tuple[str, ...] | float
_UNDECODED = re.compile("[\ud800-\udfff]")


@dataclass
class Rows:
    """Samples without fault, column by column."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    """Second texts; empty when there are none."""
    targets: list[Target] = field(default_factory=list)
    places: list[tuple[Table, int]] = field(default_factory=list)
    """Table and line or row."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int]) -> Rows:
        chosen = list(indices)

        def of(column: list[Any]) -> list[Any]:
            return [column[i] for i in chosen] if column else []

        return Rows(
            of(self.ids),
            of(self.texts),
            of(self.pairs),
            of(self.targets),
            of(self.places),
        )

    def keys(self) -> list[str]:
        """What makes two samples the same: their text but for case and spacing."""
        pairs = self.pairs or [""] * len(self)
        return [
            "\0".join(" ".join(part.casefold().split()) for part in both)
            for both in zip(self.texts, pairs, strict=True)
        ]


def check_settings(settings: TableSettings) -> list[Fault]:
    """Faults of the settings that need no data to be seen."""
    faults = []
    if settings.bins and settings.kind != "single-label":
        faults.append(
            Fault(
                f"bins make classes, and data.kind is {settings.kind!r}",
                where="data.bins",
                fix='remove data.bins, or set data.kind="single-label"',
            )
        )
    faults += check_bins(settings.bins)
    faults += _named_twice("labels", settings.labels)
    return faults + check_format(settings)


def check_bins(bins: Mapping[str, tuple[float, float]]) -> list[Fault]:
    """Faults of ``data.bins`` themselves."""
    faults = []
    ranges = sorted((low, high, name) for name, (low, high) in bins.items())
    for low, high, name in ranges:
        if low > high:
            what = f"the range of {name!r} is upside down: {low} to {high}"
            faults.append(Fault(what, where="data.bins", fix="write [low, high]"))
    for (_, high, one), (low, _, two) in pairwise(ranges):
        if low <= high:
            what = f"{one!r} and {two!r} both hold {low}"
            why = "both ends of a range belong to it"
            faults.append(Fault(what, "data.bins", why, "let the ranges not touch"))
    return faults


def check_format(settings: TableSettings | LanguageDataSettings) -> list[Fault]:
    """Faults of ``data.columns`` and of the sizes of splits."""
    faults = _named_twice("columns", settings.columns)
    for name in ("validation_size", "test_size"):
        size = getattr(settings, name)
        if size > 1 and size != int(size):
            what = f"{size} is neither a share below 1 nor a whole number of rows"
            faults.append(Fault(what, where=f"data.{name}", fix=f"e.g. {int(size)}"))
    return faults


def _named_twice(key: str, names: Sequence[str]) -> list[Fault]:
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    what = f"named twice: {', '.join(twice)}"
    return [Fault(what, where=f"data.{key}", fix="name each once")] if twice else []


def check_rows(
    table: Table, settings: TableSettings, findings: Findings
) -> tuple[Rows, int]:
    """The rows of a table that can be used.

    Returns:
        Rows without fault, and how many were left out because their score is in none
        of ``data.bins``.
    """
    rows, outside = Rows(), 0
    seen: dict[str, int] = {}
    parse = _parser(settings)
    columns = table.columns
    for i, number in enumerate(table.numbers):
        faults: list[Fault] = []
        where = table.where(number)
        for role in ("text", "pair"):
            if role in columns:
                faults += text_faults(role, columns[role][i], where)
        target: Target | None = None
        try:
            target = parse(columns["label"][i])
        except ValueError as error:
            what, fix = error.args
            faults.append(Fault(what, where=where, fix=fix))
        name, found = identity(table, seen, i)
        faults += found
        for fault in faults:
            findings.sample(table.file, number, fault)
        if faults:
            continue
        if target is None:
            outside += 1
            continue
        rows.ids.append(name)
        rows.texts.append(columns["text"][i])
        if "pair" in columns:
            rows.pairs.append(columns["pair"][i])
        rows.targets.append(target)
        rows.places.append((table, number))
    return rows, outside


def identity(table: Table, seen: dict[str, int], i: int) -> tuple[str, list[Fault]]:
    """What a row is called, and its fault when an earlier one is called so too.

    Args:
        table: With or without the role ``id``.
        seen: Lines or rows by id, of the rows before; this one is added.
        i: Which of the table's rows.
    """
    number = table.numbers[i]
    if "id" not in table.columns:
        return f"{Path(table.file).name}:{number}", []
    name = str(table.columns["id"][i])
    if name not in seen:
        seen[name] = number
        return name, []
    what = f"duplicate id: {name!r}"
    why = f"{table.unit} {seen[name]} has it already"
    fix = 'give every row its own, or data.id="" to count rows'
    return name, [Fault(what, table.where(number), why, fix)]


def text_faults(role: str, value: Any, where: str) -> list[Fault]:
    if value is None or (isinstance(value, str) and not value.strip()):
        what, fix = f"empty {role}", "fill it in, or remove the row"
        return [Fault(what, where=where, fix=fix)]
    if not isinstance(value, str):
        what = f"the {role} is not a string: {value!r}"[:80]
        return [Fault(what, where, fix=f"check data.{role}")]
    fault = undecoded(value)
    if fault:
        return [Fault(f"{fault[0]} (in the {role})", where=where, fix=fault[1])]
    if "\0" in value:
        before = value.partition("\0")[0][-20:]
        what = f"NUL byte in the {role}: after {before!r}"
        return [Fault(what, where, fix="remove it: no tokenizer expects one")]
    return []


def undecoded_at(value: str) -> int | None:
    """Where the first byte is that was not decoded; ``None``: nowhere."""
    found = _UNDECODED.search(value)
    return found.start() if found else None


def undecoded(value: str) -> tuple[str, str] | None:
    """What is wrong, and the fix, when a string holds bytes that were not decoded."""
    found = _UNDECODED.search(value)
    if not found:
        return None
    before = value[max(found.start() - 20, 0) : found.start()]
    byte = ord(found.group()) - 0xDC00
    if not 0x80 <= byte <= 0xFF:
        return f"half a character: {found.group()!r} after {before!r}", "remove it"
    raw = value.encode("utf-8", "surrogateescape")
    encoding = "latin-1"
    if any(0x80 <= b < 0xA0 for b in raw):
        encoding = "cp1252"
    try:
        shown = raw.decode(encoding)
    except UnicodeDecodeError:
        encoding, shown = "latin-1", raw.decode("latin-1")
    at = len(before.encode("utf-8", "surrogateescape"))
    start = len(value[: found.start()].encode("utf-8", "surrogateescape"))
    shown = raw[start - at : start + 12].decode(encoding, "replace")
    return (
        f"bad utf-8: byte 0x{byte:02x} at byte {start + 1}, after {before!r}",
        f'data.encoding="{encoding}" if it should read {shown!r}',
    )


def _parser(settings: TableSettings) -> Callable[[Any], Target | None]:
    """A function from a value to a target.

    It returns ``None`` for a score in no bin, and raises ``ValueError(what, fix)``.
    """
    fill = "fill it in, or remove the row"

    def name(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        label = str(value)
        fault = undecoded(label)
        if fault:
            raise ValueError(f"{fault[0]} (in the label)", fault[1])
        return label

    def present(value: Any) -> Any:
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or (isinstance(value, str) and not value.strip()):
            raise ValueError("label missing", fill)
        return value

    def classes(value: Any) -> Target:
        if isinstance(value, (list, dict)):
            fix = 'several classes for a row need data.kind="multi-label"'
            raise ValueError(f"the label is no single value: {value!r}"[:80], fix)
        return name(present(value))

    def several(value: Any) -> Target:
        if value is None:
            raise ValueError("label missing", fill)
        parts = (
            value if isinstance(value, list) else str(value).split(settings.separator)
        )
        names = (name(part).strip() for part in parts)
        return tuple(dict.fromkeys(n for n in names if n))

    def number(value: Any) -> float:
        try:
            found = float(present(value))
        except (ValueError, TypeError) as error:
            if error.args == ("label missing", fill):
                raise
            fix = "give a number with a decimal point"
            if settings.kind == "regression":
                fix += ', or data.kind="single-label" for classes'
            raise ValueError(
                f"the label is not a number: {value!r}"[:80], fix
            ) from None
        if not math.isfinite(found):
            raise ValueError(f"the label is not a finite number: {value!r}", fill)
        return found

    def binned(value: Any) -> Target | None:
        score = number(value)
        for label, (low, high) in settings.bins.items():
            if low <= score <= high:
                return label
        return None

    if settings.bins:
        return binned
    kinds: dict[str, Callable[[Any], Target | None]] = {
        "single-label": classes,
        "multi-label": several,
        "regression": number,
    }
    return kinds[settings.kind]


def names(target: Target) -> tuple[str, ...]:
    """The classes of a target."""
    return (target,) if isinstance(target, str) else target  # type: ignore[return-value]


def warn_leaks(parts: dict[str, Rows], findings: Findings) -> None:
    """The same text in train and in what is measured on, or with several labels."""
    keys = {split: rows.keys() for split, rows in parts.items()}
    train = set(keys["train"])
    for split in ("validation", "test"):
        shared = [i for i, key in enumerate(keys.get(split, ())) if key in train]
        if shared:
            table, number = parts[split].places[shared[0]]
            what = f"{len(shared)} texts of {split} are also in train"
            why = f"the first: {parts[split].texts[shared[0]][:60]!r}"
            why += "; what was learned by heart looks like skill"
            fix = "remove them from one of the two files"
            findings.warnings.append(Fault(what, table.where(number), why, fix))
    first: dict[str, Target] = {}
    torn = set()
    for split, rows in parts.items():
        for key, target in zip(keys[split], rows.targets, strict=True):
            if first.setdefault(key, target) != target:
                torn.add(key)
    if torn:
        what = f"the same text with different labels: {len(torn)} times"
        first_text = min(torn).partition("\0")[0]
        why, fix = f"for example {first_text[:60]!r}", "decide for one label each"
        findings.warnings.append(Fault(what, "data.label", why, fix))
