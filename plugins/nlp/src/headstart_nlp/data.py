"""The data module ``nlp/table``: texts of a table to batches of token ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.data import DataModule
from headstart.errors import DataError, Fault
from headstart_nlp import augment, checks, classes, locations, splits, tables, tokens
from headstart_nlp.baselines import baselines, joined
from headstart_nlp.checks import Rows, names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headstart.data import Baseline, Sample, Split
    from headstart.stages import State
    from headstart_nlp.files import Table
    from headstart_nlp.settings import TableSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CUT_WARNING = 0.05
"""Share of cut texts above which the user is told."""


class TextTable(DataModule):
    """Texts in tables, with classes, several labels or numbers as targets.

    The test split is taken first and depends on the data, the seed and
    ``data.test_size`` alone: ``data.rows`` limits what is left for train and
    validation, so results with fewer rows are measured on the same texts. Splits are
    stratified, and samples of the same text (case and spacing aside) stay together.
    """

    settings: TableSettings
    size_unit = "tokens"

    def __init__(self, settings: TableSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._tokenizer: Any = None
        self._hash = ""
        self._rows: dict[str, Rows] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._outside = 0
        self._cut = 0
        self._random: list[str] = []

    def load(self) -> None:
        """Read, check and split."""
        self.settings = locations.completed(self.settings)
        parts, labels = self._checked(self._read(SPLITS))
        self._rows = self._split(parts)
        checks.warn_leaks(self._rows, self.findings)
        self.task = classes.task_of(self._rows["train"], self.settings.kind, labels)

    def load_split(self, split: Split) -> bool:
        """Where ``data.validation_path`` or ``data.test_path`` names the split."""
        settings = locations.completed(self.settings)
        if split == "train" or not getattr(settings, f"{split}_path"):
            return False
        known = {"labels": tuple(self.task.get("labels", ()))}
        self.settings = settings.model_copy(update=known)
        self._rows, _ = self._checked(self._read((split,)))
        return True

    def _checked(
        self, found: dict[str, Table]
    ) -> tuple[dict[str, Rows], tuple[str, ...]]:
        """The good rows by split, and the classes."""
        settings, findings = self.settings, self.findings
        if wrong := checks.check_settings(settings):
            # What such settings would make of the rows is noise.
            findings.fatal += wrong
            findings.settle(settings, total=0)
        parts: dict[str, Rows] = {}
        for split, table in found.items():
            parts[split], outside = checks.check_rows(table, settings, findings)
            self._outside += outside
            table.columns.clear()
        labels: tuple[str, ...] = ()
        if "train" in parts and settings.kind == "regression":
            classes.check_regression(parts["train"], findings)
        elif "train" in parts or settings.labels:
            parts, labels = classes.check_classes(parts, settings, findings)
        findings.settle(settings, sum(table.total for table in found.values()))
        if bare := [split for split, rows in parts.items() if not len(rows)]:
            what = f"no sample is left for {' and '.join(bare)}"
            why = f"{self._outside} rows have a score in none of data.bins"
            raise DataError(what, where=settings.path, why=why, fix="check data.bins")
        return parts, labels

    def prepare(self, preprocessing: Mapping[str, Any]) -> None:
        """Tokenize, each text once."""
        super().prepare(preprocessing)
        loaded = tokens.load_tokenizer(self.settings, preprocessing, self.findings)
        if self.settings.token_dropout and loaded and loaded.mask_token_id is None:
            why, fix = "dropped tokens become that one", "data.token_dropout=0"
            what = "the tokenizer has no mask token"
            self.findings.fatal.append(Fault(what, "data.token_dropout", why, fix))
        if self.findings.fatal:
            raise DataError(*self.findings.fatal)
        self._tokenizer, self._hash = loaded, tokens.tokenizer_hash(loaded)
        for split, rows in self._rows.items():
            self._samples[split] = self._tokenize(rows, split)
        self._warn_cut()

    def _read(self, splits: Sequence[Split]) -> dict[str, Table]:
        settings = self.settings
        if not settings.path:
            fix = "give your file, e.g. data.path=reviews.csv"
            self.findings.fatal.append(
                Fault("data.path is empty", "data.path", fix=fix)
            )
            return {}
        roles = {key: getattr(settings, key) for key in ("text", "pair", "label", "id")}
        wanted = {role: column for role, column in roles.items() if column}
        found: dict[str, Table] = {}
        for split in splits:
            name = "path" if split == "train" else f"{split}_path"
            if path := getattr(settings, name):
                file, key = locations.file_of(path), f"data.{name}"
                read = tables.read(file, key, wanted, settings, self.findings)
                # One file may have all splits; one of its own goes before that.
                if split == "train":
                    found = read
                elif read:
                    found[split] = read.get(split, read["train"])
        return found

    def _split(self, parts: dict[str, Rows]) -> dict[str, Rows]:
        """Take the splits that came without a file from train, test first."""
        parts = dict(parts)
        settings = self.settings
        if "test" not in parts:
            parts["test"], parts["train"] = self._take(parts["train"], "test")
        pool = parts["train"]
        if settings.rows is not None and settings.rows < len(pool):
            _, parts["train"] = self._take(pool, "rows", len(pool) - settings.rows)
        if "validation" not in parts:
            parts["validation"], parts["train"] = self._take(
                parts["train"], "validation"
            )
        return {split: parts[split] for split in SPLITS}

    def _take(
        self, rows: Rows, what: str, count: int | None = None
    ) -> tuple[Rows, Rows]:
        """Rows that are taken out, and those that stay."""
        total = len(rows)
        if count is None:
            self._random.append(what)
            size = getattr(self.settings, f"{what}_size")
            count = round(size * total) if size < 1 else int(size)
            if not 0 < count < total:
                where = f"data.{what}_size"
                full = f"{size:g} of {total} rows leaves nothing to train on"
                none = f"{size:g} of {total} rows leaves the {what} split empty"
                fix = f"give a share such as 0.1, or a file: data.{what}_path"
                fault = Fault(full if count else none, where, fix=fix)
                raise DataError(fault)
        # A stream of chance for each split: none depends on another's size.
        stream = ("test", "rows", "validation").index(what)
        taken = splits.take_out(
            splits.strata(rows, self.settings.kind),
            rows.keys(),
            count,
            np.random.default_rng([self.seed, stream]),
        )
        if not taken.any():
            why = "each class keeps 2 rows in train, and identical texts stay together"
            what = f"no row can be taken for {what} from {total}"
            raise DataError(
                what, where=self.settings.path, why=why, fix="give more rows"
            )
        return rows.take(np.flatnonzero(taken)), rows.take(np.flatnonzero(~taken))

    def _tokenize(self, rows: Rows, split: str) -> list[Sample]:
        settings = self.settings
        encoded, cut = tokens.encode(
            self._tokenizer,
            rows.texts,
            rows.pairs,
            settings.max_length,
            words=split == "train" and settings.word_swap > 0,
        )
        self._cut += cut
        samples: list[Sample] = [
            {"id": identity, "text": text, **arrays}
            for identity, text, arrays in zip(
                rows.ids, rows.texts, encoded, strict=True
            )
        ]
        for sample, pair in zip(samples, rows.pairs, strict=False):
            sample["pair"] = pair
        if rows.targets:
            for sample, target in zip(samples, self._targets(rows), strict=True):
                sample["label"] = target
        return samples

    def _targets(self, rows: Rows) -> np.ndarray:
        """Class indices, 0/1 (rows, labels) float32, or numbers."""
        if self.task["kind"] == "regression":
            return np.array(rows.targets, dtype=np.float32)
        index = {label: i for i, label in enumerate(self.task["labels"])}
        if self.task["kind"] == "single-label":
            return np.array([index[str(target)] for target in rows.targets])
        table = np.zeros((len(rows), len(index)), dtype=np.float32)
        for row, target in enumerate(rows.targets):
            table[row, [index[name] for name in names(target)]] = 1
        return table

    def _warn_cut(self) -> None:
        total = sum(map(len, self._rows.values()))
        if self._cut <= CUT_WARNING * total:
            return
        limit = self.preprocessing.get("max_positions")
        most = f" (at most {limit} with this backbone)" if limit else ""
        self.findings.warnings.append(
            Fault(
                f"{self._cut} of {total} texts ({self._cut / total:.0%}) are cut",
                where="data.max_length",
                why=f"they have more than {self.settings.max_length} tokens; "
                "what comes after is not read",
                fix=f"raise data.max_length{most}",
            )
        )

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._samples[split]

    def sizes(self, split: Split) -> np.ndarray:
        """Tokens of each sample, int64."""
        return np.array(
            [len(sample["input_ids"]) for sample in self._samples[split]],
            dtype=np.int64,
        )

    def collate(self, samples: Sequence[Sample]) -> State:
        """Pad to the longest text of the batch, on the right.

        Returns:
            ``input_ids``, ``attention_mask`` and, with pairs, ``token_type_ids``, all
            (batch, tokens) int64; ``labels``: class indices (batch) int64, 0/1 (batch,
            labels) float32, or numbers (batch) float32; ``word_ids`` (batch, tokens)
            where the augmentation needs them.
        """
        filler = self._tokenizer.pad_token_id
        if filler is None:
            filler = self.preprocessing.get("pad_token_id")
        ids, mask = tokens.pad([sample["input_ids"] for sample in samples], filler or 0)
        state = {"input_ids": ids, "attention_mask": mask}
        for key, value in (("token_type_ids", 0), ("word_ids", -1)):
            if key in samples[0]:
                state[key], _ = tokens.pad([sample[key] for sample in samples], value)
        if "label" in samples[0]:
            state["labels"] = np.array([sample["label"] for sample in samples])
        return {key: torch.from_numpy(value) for key, value in state.items()}

    @property
    def augments(self) -> bool:
        return self.settings.token_dropout > 0 or self.settings.word_swap > 0

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Word swap, then token dropout, as far as the recipe asks for them."""
        batch = dict(batch)
        words = batch.pop("word_ids", None)
        if words is not None:
            batch["input_ids"] = augment.swap_words(
                batch["input_ids"],
                words,
                share=self.settings.word_swap,
                generator=generator,
            )
        if self.settings.token_dropout:
            tokenizer = self._tokenizer
            special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
            batch["input_ids"] = augment.drop_tokens(
                batch["input_ids"],
                batch["attention_mask"],
                share=self.settings.token_dropout,
                mask_id=tokenizer.mask_token_id,
                special_ids=sorted(special),
                generator=generator,
            )
        return batch

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Samples from texts, or from dictionaries with ``text`` and ``pair``.

        The names of the recipe's columns serve as well as ``text`` and ``pair``.

        Raises:
            DataError: Inputs without text, by :meth:`leave_out`.
        """
        rows = Rows()
        faults: list[Fault] = []
        keys = {"text": self.settings.text}
        if self.settings.pair:
            keys["pair"] = self.settings.pair
        for i, given in enumerate(inputs, start=1):
            values = given if isinstance(given, dict) else {"text": given}
            found: dict[str, Any] = {
                role: values.get(role, values.get(key)) for role, key in keys.items()
            }
            wrong = [
                fault
                for role, value in found.items()
                for fault in checks.text_faults(role, value, f"input {i}")
            ]
            faults += wrong
            if wrong:
                continue
            rows.ids.append(str(values.get("id", i)))
            rows.texts.append(found["text"])
            if "pair" in found:
                rows.pairs.append(found["pair"])
        self.leave_out(faults, len(rows))
        return self._tokenize(rows, "inputs")

    def input_name(self, sample: Sample) -> str:
        return str(sample["text"])

    def show(self, sample: Sample) -> dict[str, Any]:
        """``id``, ``text`` and ``pair`` (the first 200 characters), ``label``."""
        shown = {"id": sample["id"]}
        for role in ("text", "pair"):
            if role in sample:
                text = " ".join(sample[role].split())
                shown[role] = text if len(text) <= 200 else f"{text[:199]}…"
        if "label" not in sample:
            return shown
        label, labels = sample["label"], self.task.get("labels", ())
        if self.task["kind"] == "regression":
            shown["label"] = float(label)
        elif self.task["kind"] == "single-label":
            shown["label"] = labels[int(label)]
        else:
            shown["label"] = ", ".join(labels[i] for i in np.flatnonzero(label))
        return shown

    def export(self, folder: Path) -> list[Path]:
        """The tokenizer, as transformers reads it."""
        return list(map(Path, self._tokenizer.save_pretrained(folder)))

    def fingerprint(self) -> str:
        """sha256 over the splits' texts and labels, tokenizer, length, augmentation."""
        settings = self.settings
        augmentation = [settings.token_dropout, settings.word_swap]
        head = [self._hash, settings.max_length, self.task, augmentation]
        digest = hashlib.sha256(json.dumps(head).encode())
        for split, rows in self._rows.items():
            pairs = rows.pairs or [""] * len(rows)
            for row in zip(rows.texts, pairs, rows.targets, strict=True):
                digest.update(json.dumps([split, *row]).encode())
        return digest.hexdigest()

    def baselines(self) -> Iterator[Baseline]:
        """The most frequent answer, and a linear model on tf-idf, fitted on train."""
        train, test = (
            (joined(self._rows[split]), self._targets(self._rows[split]))
            for split in ("train", "test")
        )
        yield from baselines(
            self.task["kind"], train, test, len(self.task.get("labels", ()))
        )

    def describe(self) -> dict[str, Any]:
        """Rows by split and class, lengths in tokens, and what was cut or left out."""
        rows = self._rows
        lengths = np.concatenate([self.sizes(split) for split in SPLITS])
        described: dict[str, Any] = {split: len(rows[split]) for split in SPLITS}
        if self.task["kind"] != "regression":
            described["classes"] = {
                split: classes.count(rows[split], self.task["labels"])
                for split in SPLITS
            }
        described["tokens"] = {
            "median": float(np.median(lengths)),
            "95 %": float(np.percentile(lengths, 95)),
            "longest": int(lengths.max()),
        }
        described["cut"] = self._cut / len(lengths)
        if self.settings.bins:
            described["outside bins"] = self._outside
        how = f"stratified, seed {self.seed}, identical texts in one split"
        for split in SPLITS[1:]:
            if split in self._random:
                described[f"{split} split"] = how
        return described
