"""The data modules ``recsys/interactions`` and ``recsys/sequences``."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from headstart.data import DataModule
from headstart.errors import DataError, Fault
from headstart_recsys import arrays, splits
from headstart_recsys.catalogue import Catalogue, read_catalogue
from headstart_recsys.events import Events
from headstart_recsys.filters import filtered, without_repeats
from headstart_recsys.formats import completed
from headstart_recsys.inputs import (
    nothing_known,
    user_rows,
    write_recommendations,
)
from headstart_recsys.reading import read_interactions
from headstart_recsys.samples import (
    PADDING,
    TrainingEvents,
    UserRows,
    collate_events,
    collate_users,
    grouped,
)
from headstart_recsys.sampling import EventSampler
from headstart_recsys.sequences import Windows, collate_windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from scipy import sparse

    from headstart.data import Baseline, Sample, Split
    from headstart.stages import State
    from headstart_recsys.columns import Interactions
    from headstart_recsys.events import Part
    from headstart_recsys.inputs import Histories
    from headstart_recsys.reading import Log
    from headstart_recsys.settings import InteractionSettings, SequenceSettings

BEFORE: dict[str, tuple[Part, ...]] = {
    "validation": ("earlier", "train", "known"),
    "test": ("earlier", "train", "known", "validation"),
}
"""What is known about users before the events of a split."""
TRAINING = ("earlier", "train")
OTHER_PARTS = {
    "earlier": "events of the earlier period",
    "known": "events known of held-out users",
}
SHOWN = 5
"""Items of a history in a table."""
UNSEEN = {"name", "bad", "bad_cap", "workers", "path", "items_path", "text", "map_ids"}
"""Settings that say where data is, and not what it is."""


class InteractionData(DataModule):
    """Events of users with items.

    Training samples are events, one each; validation and test samples are users with
    events that are to be found, and what the user is known to have before them.

    Attributes:
        user_ids: Ids by user code. Users with a training event (earlier period
            included) come first, and they alone are in the task.
        item_ids: Ids by item code, all of them in the task.
        catalogue: Titles and categories by item code.
        text_vectors: float32 ``(items, width)`` of the items' texts; ``None``: no text
            is asked for.
    """

    settings: InteractionSettings
    size_unit = "items"
    identity = ("items", "users")
    padding: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("sequence", "positives", "negatives", "history", "held_out"), PADDING
    )

    def __init__(self, settings: InteractionSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.user_ids: list[str] = []
        self.item_ids: list[str] = []
        self.catalogue = Catalogue()
        self.text_vectors: np.ndarray | None = None
        self._events: Events | None = None
        self._samples: dict[Split, Sequence[Sample]] = {}
        self._notes: dict[str, Any] = {}
        self._sampler: EventSampler | None = None

    # The contract of DataModule

    def load(self) -> None:
        """Read, check, filter and split."""
        self.settings = completed(self.settings)
        log = self._read()
        division = splits.divide(
            log.interactions, self.settings, self.seed, self.findings
        )
        self._notes |= division.notes
        self.item_ids = [*log.item_ids, *self.catalogue.new]
        user_ids, columns = log.user_ids, log.interactions.columns()
        # The columns are put into order one by one, and held by nobody else.
        del log
        self._events = events = Events(columns, division.parts, len(user_ids))
        self.user_ids = [user_ids[user] for user in events.old_users]
        self.text_vectors = self._text()
        self.task = self._make_task()
        self._samples = {
            "train": self._training_samples(),
            "validation": self._users_of("validation"),
            "test": self._users_of("test"),
        }

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._samples[split]

    def sizes(self, split: Split) -> np.ndarray | None:
        """Items of each user in validation and test; training samples are equal."""
        samples = self._samples[split]
        return samples.lengths if isinstance(samples, UserRows) else None

    def collate(self, samples: Sequence[Sample]) -> State:
        """Samples to a batch, as the ``take`` of their collection gives it.

        Returns:
            Of events ``user``, ``item`` int64 ``(B,)`` and ``weight`` float32 ``(B,)``;
            of sequences ``sequence``, ``positives`` int64 ``(B, L)`` and ``user``; of
            users as :func:`headstart_recsys.samples.collate_users`. Padding is -1.
        """
        if "history" in samples[0]:
            return collate_users(samples)
        if "sequence" in samples[0]:
            return collate_windows(samples)
        return collate_events(samples)

    @property
    def augments(self) -> bool:
        return self.settings.negatives > 0 or self.settings.history > 0

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Add ``negatives``, int64 ``(B, n)`` or, to sequences, ``(B, L, n)``.

        And, where ``data.history`` asks for it, a ``history`` without the item that is
        to be found, int64 ``(B, data.history)``.
        """
        count, length = self.settings.negatives, self.settings.history
        if length and "item" in batch:
            history = self._sampler_of_events().some(
                batch["user"], batch["item"], length, generator
            )
            batch = {**batch, "history": history}
        if not count:
            return batch
        shape = batch["positives" if "positives" in batch else "item"].shape
        sampler = self._sampler_of_events()
        negatives = sampler.draw(batch["user"], (*shape, count), generator)
        return {**batch, "negatives": negatives}

    def from_inputs(self, inputs: Sequence[Any]) -> UserRows:
        """Users to recommend to, see :func:`headstart_recsys.inputs.user_rows`.

        What users have is read from the data again, where a user is asked for.
        """
        return user_rows(
            inputs, self.task, self._histories, self.settings.user, self.length
        )

    def input_name(self, sample: Sample) -> str:
        return str(sample["name"])

    def write_predictions(
        self,
        folder: Path,
        samples: Sequence[Sample],
        predictions: Iterable[dict[str, Any]],
    ) -> list[Path]:
        """``recommendations.parquet``: a row for each user and item."""
        return write_recommendations(folder, samples, predictions)

    def show(self, sample: Sample) -> dict[str, Any]:
        """``user``, and the ``item``, or the last of the ``history`` and ``held out``.

        Items are called by their titles where there are any.
        """
        if "item" in sample:
            user = self.user_ids[sample["user"]]
            return {"user": user, "item": self._named([sample["item"]])}
        if "history" not in sample:
            items = sample["sequence"][sample["sequence"] >= 0]
            user = self.user_ids[sample["user"]]
            return {"user": user, "history": self._named(items[-SHOWN:])}
        shown = {"user": sample["name"]}
        shown["history"] = self._named(sample["history"][-SHOWN:])
        if "held_out" in sample:
            shown["held out"] = self._named(sample["held_out"][:SHOWN])
        return shown

    def fingerprint(self) -> str:
        """sha256 over events, parts, task, texts' vectors and settings."""
        settings = self.settings.model_dump(mode="json", exclude=UNSEEN)
        slices = {name: [s.start, s.stop] for name, s in self.events.slices.items()}
        head = [settings, self.task, slices, self.user_ids, dict(self.preprocessing)]
        digest = hashlib.sha256(json.dumps(head, default=str).encode())
        for name, column in self.events.all.columns().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(column).data)
        if self.text_vectors is not None:
            digest.update(np.ascontiguousarray(self.text_vectors).data)
        return digest.hexdigest()

    def baselines(self) -> Iterator[Baseline]:
        """Most popular, item-kNN and tuned ALS."""
        from headstart_recsys.baselines import baselines

        yield from baselines(self)

    def describe(self) -> dict[str, Any]:
        """Events by part, users, items, what is new in the test, what was removed."""
        counts = {name: s.stop - s.start for name, s in self.events.slices.items()}
        described: dict[str, Any] = {
            name: counts[name] for name in ("train", "validation", "test")
        }
        for name, about in OTHER_PARTS.items():
            if counts[name]:
                described[about] = counts[name]
        described["items"] = len(self.item_ids)
        described["items without training events"] = len(self.task["cold"])
        described["users"] = self.events.trained
        for split in ("validation", "test"):
            users = self._samples[split]
            assert isinstance(users, UserRows)
            described[f"{split} users"] = len(users)
            new = int((users.users < 0).sum())
            described[f"{split} users without training events"] = new
        return {**described, **self._notes}

    # What sources of weights and baselines read

    def interactions(self, part: Part) -> Interactions:
        """The events of a part, by user and then by time; views, not copies."""
        return self.events.part(part)

    def train_matrix(self, upto: Literal["validation", "test"]) -> sparse.csr_matrix:
        """All that is known before a split's events, as weights.

        The histories of users who are held out are not in it: they come with the
        samples.

        Args:
            upto: ``validation``: the earlier period and the training events; ``test``:
                the validation's as well.

        Returns:
            float32 (users, items), rows by ``user_ids``, with sorted indices; of its
            own, so that it may be changed.
        """
        names = [name for name in BEFORE[upto] if name != "known"]
        return self.events.matrix(names, len(self.item_ids), self._weighted)

    @property
    def length(self) -> int:
        """Items of a sequence; 0: samples have none."""
        return 0

    # How it is done

    def _read(self) -> Log:
        """Interactions without faults and filtered; fills the catalogue."""
        settings, findings = self.settings, self.findings
        log = read_interactions(settings, findings)
        catalogue = read_catalogue(settings, log.item_ids, findings)
        findings.settle(settings, log.total)
        before = log.item_ids
        log, removed = filtered(log, settings, findings)
        findings.settle(settings, log.total)
        if settings.repeats == "stop":
            # Only `data.bad = "skip"` comes here with any.
            _, index = without_repeats(log.interactions, "first", len(log.item_ids))
            if len(index) < len(log.interactions):
                log = log.take(index)
        place = {name: code for code, name in enumerate(before)}
        rows = [place[name] for name in log.item_ids]
        rows += range(len(before), len(before) + len(catalogue.new))
        self.catalogue = Catalogue(
            [catalogue.titles[row] for row in rows],
            catalogue.categories,
            [catalogue.rows[row] for row in rows],
            catalogue.new,
            catalogue.file,
        )
        self._notes = {"rows read": log.total}
        if log.unit:
            self._notes["times"] = log.unit
        for step in removed:
            self._notes[f"left out: {step.why}"] = step.describe()
        if findings.left_out:
            self._notes["bad rows left out"] = len(findings.left_out)
        return log

    @property
    def events(self) -> Events:
        """All events; only after :meth:`load`."""
        assert self._events is not None, "load() comes first"
        return self._events

    @property
    def _weighted(self) -> bool:
        """Whether values say how much an event counts: sums do, ratings do not."""
        return self.settings.values == "weights" or self.settings.repeats == "sum"

    def _text(self) -> np.ndarray | None:
        if not self.settings.text:
            return None
        from headstart_recsys.text import item_vectors

        return item_vectors(
            self.settings, self.catalogue, self.item_ids, findings=self.findings
        )

    def _make_task(self) -> dict[str, Any]:
        items, settings = len(self.item_ids), self.settings
        counts = self.events.counts(["train"], items)
        known = self.events.counts(TRAINING, items)
        catalogue, vectors = self.catalogue, self.text_vectors
        cold = np.flatnonzero(known == 0).tolist()
        if settings.candidates == "cold" and not cold:
            raise DataError(
                "every item has a training event, so there are no cold ones to rank",
                where="data.candidates",
                fix='data.candidates = "all", data.cold_items = 0.1, or '
                "data.catalogue_items = true",
            )
        task = {
            "kind": settings.kind,
            "items": self.item_ids,
            "users": self.user_ids[: self.events.trained],
            "counts": counts.tolist(),
            "titles": catalogue.titles if any(catalogue.titles) else [],
            "cold": cold,
            "categories": {"names": catalogue.categories, "rows": catalogue.rows}
            if catalogue.categories
            else {},
            "text": {} if vectors is None else {"width": vectors.shape[1]},
            "mask_seen": settings.mask_seen,
            "candidates": settings.candidates,
            "negative_sampling": settings.negative_sampling,
        }
        return {**task, "sequence_length": self.length} if self.length else task

    def _training_samples(self) -> Sequence[Sample]:
        events = self.interactions("train")
        return TrainingEvents(
            events.users,
            events.items,
            events.values if self._weighted else None,
            self.user_ids,
            self.item_ids,
        )

    def _users_of(self, split: Literal["validation", "test"]) -> UserRows:
        """The users of a split with at least one event to be found."""
        rows, trained = self.events.rows, self.events.trained
        held_out = rows[split]
        if self.settings.candidates == "cold":
            cold = np.zeros(len(self.item_ids), dtype=bool)
            cold[self.task["cold"]] = True
            held_out = held_out.only(cold)
        users = np.flatnonzero(held_out.lengths)
        if not len(users):
            raise DataError(
                Fault(
                    f"no event with a cold item is left for {split}",
                    where="data.candidates",
                    why="only cold items are ranked",
                    fix="raise data.cold_items, or let the split be larger",
                )
            )
        return UserRows(
            [self.user_ids[user] for user in users],
            np.where(users < trained, users, PADDING),
            [rows[name].take(users) for name in BEFORE[split]],
            held_out.take(users),
            self.length,
            prefix=f"{split}: user ",
        )

    def _sampler_of_events(self) -> EventSampler:
        """Made at the first batch; draws items that exist in training alone."""
        if self._sampler is None:
            items = len(self.item_ids)
            wanted = self.settings.verify_negatives or self.settings.history
            users, ours = (
                self.events.joined(column, TRAINING)
                if wanted
                else np.zeros(0, dtype=np.int32)
                for column in ("users", "items")
            )
            popular = self.settings.negative_sampling == "popularity"
            weights = self.events.counts(["train"] if popular else TRAINING, items)
            if not popular:
                weights = (weights > 0).astype(np.int64)
            self._sampler = EventSampler(users, ours, items, weights)
        return self._sampler

    def _histories(self) -> Histories:
        """All that users are known to have, in the codes of the task."""
        if self._events is not None:
            events = self._events.all
            user_ids, item_ids = self.user_ids, self.item_ids
        else:
            try:
                log = self._read()
            except DataError as error:
                if not (self.settings.mask_seen or self.length):
                    return nothing_known()
                what = "the interactions that say what users have cannot be read"
                fix = "put the data back, or give a list of items instead of a user"
                fault = Fault(what, self.settings.path, fix=fix)
                raise DataError(fault, *error.faults) from error
            events, user_ids, item_ids = log.interactions, log.user_ids, log.item_ids
        code = {name: i for i, name in enumerate(self.task["items"])}
        table = np.array([code.get(name, PADDING) for name in item_ids], dtype=np.int64)
        items = table[events.items]
        times = [] if events.times is None else [events.times]
        order = arrays.order(events.users, *times)
        order = order[items[order] >= 0]
        rows = grouped(events.users[order], items[order], len(user_ids))
        return {name: row for row, name in enumerate(user_ids)}, rows

    def _named(self, items: Sequence[int] | np.ndarray) -> str:
        titles, ids = self.task["titles"], self.task["items"]
        return "; ".join((titles and titles[i]) or ids[i] for i in items)


class SequenceData(InteractionData):
    """The same events as sequences: what is next, given what was before."""

    settings: SequenceSettings

    @property
    def length(self) -> int:
        return self.settings.length

    def _training_samples(self) -> Sequence[Sample]:
        earlier, train = (
            self.events.rows[name].take(np.arange(self.events.trained))
            for name in ("earlier", "train")
        )
        windows = Windows(earlier, train, self.length, self.user_ids)
        if not len(windows):
            raise DataError(
                "no user has two events in training: there is nothing that comes next",
                where=self.settings.path,
                fix="leave short histories out with data.min_user_events, or use "
                "recsys/interactions",
            )
        return windows
