"""The same image, or the same group, in two splits that came as files."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

from headstart.errors import Fault

if TYPE_CHECKING:
    from headstart.data import Findings, Split
    from headstart_vision.items import Item, Parts

ORDER: tuple[Split, ...] = ("test", "validation", "train")
"""A sample in two splits is left out of the later one: what is measured stays."""
EXAMPLES = 3


def check_content(parts: Parts, findings: Findings) -> None:
    """Files of equal content: in two splits a fault, in one split a warning."""
    owner: dict[str, tuple[str, Item]] = {}
    twice: dict[str, list[str]] = defaultdict(list)
    torn: list[str] = []
    for split in ORDER:
        for item in parts.get(split, ()):
            if not item.digest:
                continue
            first_split, first = owner.setdefault(item.digest, (split, item))
            if first is item:
                continue
            both = f"{first.where} and {item.where}"
            if first_split != split:
                what = f"the same image in {split} and {first_split}"
                why = f"{first.where} has the same content; what was learned by heart "
                fix = f"remove it from one of them, best from {split}"
                fault = Fault(what, item.where, why + "looks like skill", fix)
                findings.sample(*item.place, fault)
                continue
            twice[split].append(both)
            if _key(first) != _key(item):
                torn.append(both)
    for name, pairs in twice.items():
        what = f"{len(pairs)} images are in {name} more than once"
        why = _examples(pairs)
        fix = "remove the copies, or leave them: they are kept in one split"
        findings.warnings.append(Fault(what, "data.path", why, fix))
    if torn:
        what = f"the same image with different targets: {len(torn)} times"
        fix = "decide for one target each"
        findings.warnings.append(Fault(what, "data.path", _examples(torn), fix))


def check_groups(parts: Parts, findings: Findings) -> None:
    """A group of ``data.group`` on two sides of splits that came as files."""
    owner: dict[str, tuple[str, Item]] = {}
    shared: dict[str, str] = {}
    for split in ORDER:
        for item in parts.get(split, ()):
            if not item.group:
                continue
            first_split, first = owner.setdefault(item.group, (split, item))
            if first_split != split and item.group not in shared:
                places = f"{first.where} ({first_split}) and {item.where} ({split})"
                shared[item.group] = f"{item.group!r}: {places}"
    if shared:
        findings.fatal.append(
            Fault(
                f"{len(shared)} groups are in two splits",
                where="data.group",
                why=_examples(list(shared.values())),
                fix="move each group to one split, or give no validation_path and "
                "test_path: random splits keep groups whole",
            )
        )


def _key(item: Item) -> str:
    return json.dumps(item.target)


def _examples(texts: list[str]) -> str:
    more = f"; and {len(texts) - EXAMPLES} more" if len(texts) > EXAMPLES else ""
    return "; ".join(texts[:EXAMPLES]) + more
