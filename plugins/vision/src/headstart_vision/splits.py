"""Random splits: seeded, stratified, and with groups on one side.

Samples of one group (``data.group``), files whose names differ in a number or copy mark
alone, and files of equal content are united; what is united is never torn apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings
    from headstart_vision.items import Item
    from headstart_vision.settings import ImageSettings

LARGEST_SHARE = 0.2
"""Names that would unite a larger share of all samples are plain numbering …"""
LARGEST_CLASS_SHARE = 0.5
"""… as are those that would unite a larger share of one class or folder."""
FEW = 5
"""So few files are copies or frames, whatever their share."""

_COPY = re.compile(
    r"[ _.-]*\(\d{1,4}\)$|[ _.-]+(copy|copie|kopie|kopia|copia)([ _.-]*\d{1,3})?$",
    re.IGNORECASE,
)
_COPY_OF = re.compile(r"^copy of +", re.IGNORECASE)
_NUMBER = re.compile(r"[ _.-]*\d+$")


def stem(identity: str) -> str:
    """A file's path without its ending, copy marks and trailing number.

    ``a/frame_001.png`` and ``a/frame_002.png`` give ``a/frame``; ``cat (1).jpg``,
    ``cat copy.jpg`` and ``cat.jpg`` give ``cat``. A name that is a number alone says
    nothing and stays.
    """
    path = PurePosixPath(identity)
    name = _COPY_OF.sub("", path.stem)
    while (shorter := _COPY.sub("", name)) != name and shorter:
        name = shorter
    bare = _NUMBER.sub("", name)
    return str(path.with_name(bare if re.search(r"[^\W\d_]", bare) else name))


def unite(
    items: Sequence[Item],
    strata: Sequence[str],
    settings: ImageSettings,
    findings: Findings,
) -> np.ndarray:
    """Which samples belong together.

    Args:
        items: Their ``group``, ``digest`` and ``id`` are read.
        strata: The class of each.
        settings: ``near_duplicates`` decides about names.
        findings: Takes a warning about names that look like plain numbering.

    Returns:
        Number of the group of each sample, int64, from 0 in order of appearance.
    """
    union = _Union(len(items))
    keys: dict[tuple[str, str], int] = {}

    def join(kind: str, key: str, index: int) -> None:
        if key:
            union.join(keys.setdefault((kind, key), index), index)

    plain: set[str] = set()
    names = [""] * len(items)
    if settings.near_duplicates:
        names = [stem(item.id) if item.path else "" for item in items]
        plain = _plain(names, strata)
        _warn(plain, names, findings)
    for i, item in enumerate(items):
        join("group", item.group, i)
        join("content", item.digest, i)
        if names[i] not in plain:
            join("name", names[i], i)
    return union.numbers()


def take_out(
    strata: Sequence[str],
    groups: np.ndarray,
    count: int,
    generator: np.random.Generator,
    keep: int = 2,
) -> np.ndarray:
    """Choose samples at random, in whole groups, in proportion to the strata.

    Shares are exact by largest remainder where groups are single samples. A larger
    group is taken when that brings the strata nearer to their shares; so a share can
    be missed by about half a group. When every group is too large for that, the one
    that comes nearest is taken.

    Args:
        strata: Stratum of each sample.
        groups: Number of the group of each sample.
        count: Samples to choose.
        generator: The only source of chance.
        keep: Samples that stay behind in each stratum, where it has so many.

    Returns:
        Boolean mask, true for the samples that were chosen.
    """
    _, codes = np.unique(np.asarray(strata, dtype=str), return_inverse=True)
    sizes = np.bincount(codes)
    limits = np.maximum(sizes - keep, 0)
    left = shares(sizes, limits, count)
    room = limits.copy()
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = np.split(order, starts[1:])
    chosen = np.zeros(len(codes), dtype=bool)
    shuffled = generator.permutation(len(members))
    for i in shuffled:
        rows = members[i]
        if len(rows) == 1:
            stratum = codes[rows[0]]
            fits = left[stratum] >= 1
        else:
            needs = np.bincount(codes[rows], minlength=len(sizes))
            fits = (needs <= room).all() and 2 * np.minimum(
                needs, np.maximum(left, 0)
            ).sum() > len(rows)
        if fits:
            chosen[rows] = True
            np.subtract.at(left, codes[rows], 1)
            np.subtract.at(room, codes[rows], 1)
    if not chosen.any() and count and len(members) > 1:
        whole = [members[i] for i in shuffled if _fits(codes[members[i]], room)]
        if whole:
            chosen[min(whole, key=lambda rows: abs(len(rows) - count))] = True
    return chosen


def shares(sizes: np.ndarray, limits: np.ndarray, count: int) -> np.ndarray:
    """Cut ``count`` into parts in proportion to ``sizes``, none above its limit."""
    parts = np.zeros_like(sizes)
    while (left := min(count, int(limits.sum())) - int(parts.sum())) > 0:
        open_ = np.where(parts < limits, sizes, 0)
        exact = left * open_ / open_.sum()
        whole = np.floor(exact).astype(parts.dtype)
        rest = np.argsort(-(exact - whole), kind="stable")[: left - int(whole.sum())]
        whole[rest] += 1
        parts = np.minimum(parts + whole, limits)
    return parts


def _fits(codes: np.ndarray, room: np.ndarray) -> bool:
    return bool((np.bincount(codes, minlength=len(room)) <= room).all())


def _plain(names: Sequence[str], strata: Sequence[str]) -> set[str]:
    """Names that number a whole data set or class rather than frames of a scene."""
    counts = Counter(names)
    folders = Counter(str(PurePosixPath(name).parent) for name in names)
    classes = Counter(strata)
    largest: dict[str, int] = defaultdict(int)
    for (name, stratum), count in Counter(zip(names, strata, strict=True)).items():
        if count > LARGEST_CLASS_SHARE * classes[stratum]:
            largest[name] = count
    return {
        name
        for name, count in counts.items()
        if name
        and count > FEW
        and (
            count > LARGEST_SHARE * len(names)
            or count > LARGEST_CLASS_SHARE * folders[str(PurePosixPath(name).parent)]
            or largest[name] > FEW
        )
    }


def _warn(plain: set[str], names: Sequence[str], findings: Findings) -> None:
    if not plain:
        return
    counts = Counter(name for name in names if name in plain)
    shown = ", ".join(f"{name}… ({n})" for name, n in counts.most_common(3))
    more = f" and {len(plain) - 3} more" if len(plain) > 3 else ""
    fault = Fault(
        f"{counts.total()} files are numbered throughout and were split singly",
        where="data.near_duplicates",
        why=f"{shown}{more}: as groups they would be too large to split",
        fix="if they are frames of a video, say which belong together with data.group; "
        "else data.near_duplicates=false",
    )
    if fault not in findings.warnings:
        findings.warnings.append(fault)


class _Union:
    """Disjoint sets of sample numbers, united pair by pair."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, index: int) -> int:
        root = index
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[index] != root:
            self._parent[index], index = root, self._parent[index]
        return root

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        # The earlier sample stands for the set, so numbers follow appearance.
        self._parent[max(one, other)] = min(one, other)

    def numbers(self) -> np.ndarray:
        roots = [self.find(i) for i in range(len(self._parent))]
        place = {root: i for i, root in enumerate(dict.fromkeys(roots))}
        return np.array([place[root] for root in roots], dtype=np.int64)
