"""Splits: seeded, no sentence (or speaker, or file) in two, given ones kept."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import DataError, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings, Split
    from headstart_speech.clips import Clip
    from headstart_speech.settings import UnlabelledSettings, UtteranceSettings

    SplitSettings = UtteranceSettings | UnlabelledSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Parts = dict["Split", "list[Clip]"]


def split_clips(
    clips: Sequence[Clip], settings: SplitSettings, seed: int, findings: Findings
) -> Parts:
    """Clips by split: where the data set puts them, else by chance.

    The test split is taken first and depends on the data, the seed and
    ``data.test_size`` alone; ``data.train_size`` limits only what is trained on, and a
    smaller one takes a part of what a larger one takes.

    Args:
        clips: Checked, with their normalised transcripts.
        settings: Sizes, and what stays together (``split_by``).
        seed: The only source of chance.
        findings: Takes warnings about sentences, sounds and speakers in two splits.

    Clips that are all of the test split stay so, and there is nothing to train on.

    Raises:
        DataError: A split would be empty, or speakers are not known.
    """
    parts: Parts = {s: [c for c in clips if c.split == s] for s in SPLITS}
    pool = [clip for clip in clips if clip.split is None]
    if parts["test"] and not (pool or parts["train"] or parts["validation"]):
        return parts
    pool = [*parts["train"], *pool]
    for stream, split in enumerate(("test", "validation")):
        if not parts[split]:  # type: ignore[index]
            rng = np.random.default_rng([seed, stream])
            parts[split], pool = _take(pool, split, settings, rng)  # type: ignore[index]
    if not pool:
        what, fix = "no clip is left to train on", "give more clips"
        raise DataError(what, where="data.path", fix=fix)
    if settings.train_size is not None and settings.train_size < len(pool):
        order = np.random.default_rng([seed, 2]).permutation(len(pool))
        pool = [pool[i] for i in sorted(order[: settings.train_size].tolist())]
    parts["train"] = pool
    _warn(parts, settings, findings)
    return parts


def _take(
    pool: Sequence[Clip],
    split: str,
    settings: SplitSettings,
    generator: np.random.Generator,
) -> tuple[list[Clip], list[Clip]]:
    """Clips for a split, and those that stay."""
    size, total = getattr(settings, f"{split}_size"), len(pool)
    count = round(size * total) if size < 1 else int(size)
    if not 0 < count < total:
        full = f"{size:g} of {total} clips leaves nothing to train on"
        none = f"{size:g} of {total} clips leaves the {split} split empty"
        fix = f"give a share such as 0.1, or files: data.{split}_path"
        raise DataError(full if count else none, where=f"data.{split}_size", fix=fix)
    groups = _groups(pool, settings)
    taken: set[int] = set()
    smallest = min(groups, key=len)
    for i in generator.permutation(len(groups)).tolist():
        if len(groups[i]) <= count - len(taken):
            taken.update(groups[i])
    if not taken and len(groups) > 1:
        # One speaker may have more clips than were asked for.
        taken.update(smallest)
    if not taken:
        each = {"text": "sentence", "speaker": "speaker", "file": "file"}
        one = each[settings.split_by]
        what = f"no clip can be taken for {split}: all are of one {one}"
        fix = f"give more of them, or files: data.{split}_path"
        if settings.split_by == "speaker":
            fix = f"{fix}; data.split_by splits by something else"
        raise DataError(what, where="data.split_by", fix=fix)
    return (
        [clip for i, clip in enumerate(pool) if i in taken],
        [clip for i, clip in enumerate(pool) if i not in taken],
    )


def _groups(clips: Sequence[Clip], settings: SplitSettings) -> list[list[int]]:
    """Positions of the clips that stay together."""
    by = settings.split_by
    if by == "speaker" and (unknown := [c for c in clips if not c.speaker]):
        what = f"no speaker is known of {len(unknown)} of {len(clips)} clips"
        fix = "name the column (data.speaker), or data.split_by"
        raise DataError(Fault(what, unknown[0].place, 'data.split_by="speaker"', fix))
    groups: dict[str, list[int]] = defaultdict(list)
    for i, clip in enumerate(clips):
        key = {"text": clip.normal, "speaker": clip.speaker, "file": str(clip.path)}[by]
        groups[key or ""].append(i)
    return list(groups.values())


def _warn(parts: Parts, settings: SplitSettings, findings: Findings) -> None:
    train = parts["train"]
    for split in SPLITS[1:]:
        others = parts[split]
        texts = {clip.normal for clip in train if clip.normal}
        if same := [clip for clip in others if clip.normal in texts]:
            first, n = same[0], len(same)
            what = f"{n} of {len(others)} clips of {split} say what one of train says"
            fix = "leave them out of train to measure new sentences"
            why = f"e.g. {first.place}: {(first.normal or '')[:60]!r}"
            findings.warnings.append(Fault(what, f"data.{split}_path", why, fix))
        sounds = {clip.sound.digest: clip for clip in train if clip.sound}
        heard = [c for c in others if c.sound and c.sound.digest in sounds]
        if heard:
            first = heard[0]
            twin = sounds[first.sound.digest if first.sound else ""]
            what = f"{len(heard)} of {len(others)} clips of {split} are in train too"
            why = f"e.g. {first.place} is the same recording as {twin.place}"
            fix = "remove the copies"
            findings.warnings.append(Fault(what, "data.path", why, fix))
    speakers = {clip.speaker for clip in train if clip.speaker}
    tested = {clip.speaker for clip in parts["test"] if clip.speaker}
    if both := sorted(speakers & tested):
        all_of = f"all {len(tested)}" if len(both) == len(tested) else str(len(both))
        names = f"{', '.join(both[:3])}{' …' * (len(both) > 3)}"
        what = f"{all_of} speakers of test are in train too: {names}"
        if len(both) == 1:
            one = "the speaker" if len(tested) == 1 else "one speaker"
            what = f"{one} of test is in train too: {both[0]}"
        why = "how well new voices are understood is not measured"
        fix = ""
        if settings.split_by == "speaker":
            fix = "the test split is given: take other speakers for it"
        elif len(speakers | tested) > 2:
            fix = 'data.split_by="speaker" keeps them apart'
        findings.warnings.append(Fault(what, "data.split_by", why, fix))
