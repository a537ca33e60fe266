"""What the data of a causal language model shares: splits, tokens, packing, probes."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headstart.data import DataModule
from headstart.errors import DataError, Fault
from headstart_nlp import checks, locations, packing, splits, tokens
from headstart_nlp.documents import read_general

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headstart.data import Sample, Split
    from headstart.stages import State
    from headstart_nlp.documents import Document
    from headstart_nlp.settings import LanguageDataSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GENERAL = 200
"""Most documents of general text: enough to see what was forgotten, quick to read."""


@dataclass
class Counts:
    """What became of the documents of a split."""

    documents: int = 0
    tokens: int = 0
    divided: int = 0
    """Documents longer than a row, read in parts."""
    bare: int = 0
    """Documents in which nothing is predicted; left out."""


class LanguageData(DataModule):
    """Documents whose tokens are predicted one after the other.

    A subclass reads them (:meth:`read`), makes tokens of them (:meth:`encode`), begins
    one for the report (:meth:`prompt`) and takes inputs of predictions. The test split
    is taken first and depends on the data, the seed and ``data.test_size`` alone;
    documents that are the same but for case and spacing stay in one split.
    """

    settings: LanguageDataSettings
    size_unit = "tokens"
    padding: ClassVar[Mapping[str, float]] = {"labels": packing.IGNORED}
    identity = ("kind",)

    def __init__(self, settings: LanguageDataSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.tokenizer: Any = None
        self.counts = {split: Counts() for split in SPLITS}
        self._documents: dict[Split, list[Document]] = {}
        self._general: list[str] = []
        self._samples: dict[Split, list[Sample]] = {}
        self._random: list[str] = []

    @abstractmethod
    def read(self, path: str, key: str) -> dict[str, list[Document]]:
        """Read and check a file or a folder; faults go to ``findings``.

        Args:
            path: Of something on disk; an asset is there already.
            key: The setting that named it, e.g. ``data.path``.

        Returns:
            Documents by split; ``{"train": …}`` for what has no splits of its own.
        """

    @abstractmethod
    def encode(self, documents: Sequence[Document]) -> list[packing.Document]:
        """Ids (int32) of each whole document, and which of them are predicted."""

    @abstractmethod
    def prompt(self, document: Document) -> dict[str, Any] | None:
        """The beginning of a held-out document, which the report continues.

        Returns:
            ``text`` as people read it, its ``ids``, and the ``reference``: how it goes
            on; ``None`` where the document has no such beginning.
        """

    def check_settings(self) -> list[Fault]:
        """Faults of the settings that need no data to be seen."""
        return checks.check_format(self.settings)

    def check_tokenizer(self) -> list[Fault]:
        """What the tokenizer lacks for this data; it is ``self.tokenizer``."""
        return []

    def fit_length(self, document: packing.Document) -> list[packing.Document]:
        """What is read of a document: its windows, where it is too long for a row."""
        return packing.windows(document, self.settings.max_length)

    def load(self) -> None:
        """Read, check and split."""
        findings = self.findings
        self.settings = locations.completed(self.settings)
        settings = self.settings
        findings.fatal += self.check_settings()
        found = self._read(SPLITS)
        if settings.general:
            texts = read_general(settings, findings)
            order = np.random.default_rng([self.seed, 4]).permutation(len(texts))
            self._general = [texts[i] for i in sorted(order[:GENERAL].tolist())]
        self._settle(found)
        self._documents = self._split(found)
        self._warn_leaks()
        self.task = {"kind": settings.kind}
        if settings.tokenizer:
            # What the head generates has to become text again.
            self.task["tokenizer"] = settings.tokenizer

    def load_split(self, split: Split) -> bool:
        """Where ``data.validation_path`` or ``data.test_path`` names the split."""
        self.settings = locations.completed(self.settings)
        if split == "train" or not getattr(self.settings, f"{split}_path"):
            return False
        self.findings.fatal += self.check_settings()
        found = self._read((split,))
        self._settle(found)
        self._documents = {split: found[split]}
        return True

    def _settle(self, found: Mapping[str, Sequence[Document]]) -> None:
        """Apply ``data.bad``; something must be left of each split."""
        total = sum(map(len, found.values())) + len(self.findings.samples)
        self.findings.settle(self.settings, total)
        if bare := [split for split, documents in found.items() if not documents]:
            what = f"no document is left for {' and '.join(bare)}"
            raise DataError(what, where=self.settings.path, fix="give more documents")

    def prepare(self, preprocessing: Mapping[str, Any]) -> None:
        """Make tokens of the documents, and rows of those of train."""
        super().prepare(preprocessing)
        findings = self.findings
        self.tokenizer = tokens.load_tokenizer(self.settings, preprocessing, findings)
        if self.tokenizer is not None:
            findings.fatal += self.check_tokenizer()
        if findings.fatal:
            raise DataError(*findings.fatal)
        for split, documents in self._documents.items():
            self._samples[split] = self._tokenized(split, documents)
        if "train" not in self._documents:
            return
        self._warn_counts()
        self.task["probe"] = {"prompts": self._prompts(), "general": self._forgetting()}

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts, int32, as a document begins: without an end of text."""
        return tokens.encode_whole(self.tokenizer, texts, self.end_of_text)

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a document; ``None``: the model has none."""
        found: int | None = self.tokenizer.eos_token_id
        return self.preprocessing.get("eos_token_id") if found is None else found

    def samples(self, split: Split) -> Sequence[Sample]:
        """Rows of packed documents for train, documents for the others."""
        return self._samples[split]

    def sizes(self, split: Split) -> np.ndarray:
        """Tokens of each sample, int64."""
        return np.array([_size(sample) for sample in self._samples[split]], np.int64)

    def collate(self, samples: Sequence[Sample]) -> State:
        """As :func:`headstart_nlp.packing.collate`."""
        filler = self.tokenizer.pad_token_id
        if filler is None:
            filler = self.preprocessing.get("pad_token_id")
        return packing.collate(samples, filler or 0)

    def show(self, sample: Sample) -> dict[str, Any]:
        """``id``, ``text`` (the first 200 characters) and, in a pack, ``documents``."""
        documents = sample["documents"]
        shown = {"id": sample["id"], "text": shortened(self.text(documents[0][0]))}
        return {**shown, "documents": len(documents)} if len(documents) > 1 else shown

    def text(self, ids: np.ndarray) -> str:
        """Token ids as people read them."""
        decoded: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return decoded

    def export(self, folder: Path) -> list[Path]:
        """The tokenizer, as transformers reads it."""
        return list(map(Path, self.tokenizer.save_pretrained(folder)))

    def fingerprint(self) -> str:
        """sha256 over every token of every sample, and which are predicted."""
        digest = hashlib.sha256()
        for split, samples in self._samples.items():
            for sample in samples:
                lengths = [len(ids) for ids, _ in sample["documents"]]
                digest.update(json.dumps([split, sample["id"], lengths]).encode())
                for ids, counted in sample["documents"]:
                    digest.update(ids.tobytes())
                    digest.update(counted.tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Documents and tokens by split, rows of train and what they waste."""
        rows, capacity = self.sizes("train"), self.settings.max_length
        lengths = np.array(
            [
                len(ids)
                for samples in self._samples.values()
                for sample in samples
                for ids, _ in sample["documents"]
            ]
        )
        described: dict[str, Any] = {
            **{split: count.documents for split, count in self._each()},
            "tokens": {split: count.tokens for split, count in self._each()},
            "tokens of a document": {
                "median": float(np.median(lengths)),
                "95 %": float(np.percentile(lengths, 95)),
                "longest": int(lengths.max()),
            },
        }
        if self.settings.packing:
            described["packs"] = len(rows)
            described["packing waste"] = 1 - int(rows.sum()) / (len(rows) * capacity)
        described["divided documents"] = sum(c.divided for _, c in self._each())
        how = f"seed {self.seed}, identical documents in one split"
        for split in SPLITS[1:]:
            if split in self._random:
                described[f"{split} split"] = how
        return described

    def prompt_faults(self, ids: Sequence[int] | np.ndarray, where: str) -> list[Fault]:
        """The fault of a prompt that is nothing, or leaves no place for an answer."""
        if not len(ids):
            return [Fault("the tokenizer makes nothing of it", where)]
        limit = self.preprocessing.get("max_positions")
        if not limit or len(ids) < limit:
            return []
        over = len(ids) - limit + 1
        what = f"the prompt has {len(ids)} tokens, {over} too many"
        why = f"the model reads {limit} tokens at once, one of them its answer"
        return [Fault(what, where, why, "shorten the prompt")]

    def _read(self, splits: Sequence[Split]) -> dict[str, list[Document]]:
        settings = self.settings
        if not settings.path:
            fix = "give your file or folder, e.g. data.path=texts.jsonl"
            self.findings.fatal.append(
                Fault("data.path is empty", "data.path", fix=fix)
            )
            return {}
        found: dict[str, list[Document]] = {}
        for split in splits:
            name = "path" if split == "train" else f"{split}_path"
            if path := getattr(settings, name):
                read = self.read(locations.file_of(path), f"data.{name}")
                if split == "train":
                    found = read
                elif read:
                    found[split] = read.get(split, read["train"])
        return found

    def _split(self, found: dict[str, list[Document]]) -> dict[Split, list[Document]]:
        """Take the splits that came without a file from train, test first."""
        parts, settings = dict(found), self.settings
        if "test" not in parts:
            parts["test"], parts["train"] = self._take(parts["train"], "test")
        extra = len(parts["train"]) - (settings.rows or len(parts["train"]))
        if extra > 0:
            _, parts["train"] = self._take(parts["train"], "rows", extra)
        if "validation" not in parts:
            taken = self._take(parts["train"], "validation")
            parts["validation"], parts["train"] = taken
        return {split: parts[split] for split in SPLITS}

    def _take(
        self, documents: list[Document], what: str, count: int | None = None
    ) -> tuple[list[Document], list[Document]]:
        """Documents that are taken out, and those that stay."""
        total = len(documents)
        where = f"data.{what}_size"
        if count is None:
            self._random.append(what)
            size = getattr(self.settings, where.removeprefix("data."))
            count = round(size * total) if size < 1 else int(size)
            if not 0 < count < total:
                outcome = "leaves nothing to train on" if count else "takes none"
                raise DataError(
                    f"{size:g} of {total} documents {outcome}",
                    where=where,
                    why="a document is never in two splits, and every split needs one",
                    fix=f"give a share such as 0.1, or a file: data.{what}_path",
                )
        # A stream of chance for each split: none depends on another's size.
        stream = ("test", "rows", "validation").index(what)
        chosen = splits.take_out(
            [""] * total,
            [document.key for document in documents],
            count,
            np.random.default_rng([self.seed, stream]),
            keep=1,
        )
        if not chosen.any():
            raise DataError(
                f"no document can be taken for {what} from {total}",
                where=self.settings.path,
                why="identical documents stay together",
                fix="give more documents",
            )
        pairs = list(zip(documents, chosen, strict=True))
        return [d for d, out in pairs if out], [d for d, out in pairs if not out]

    def _warn_leaks(self) -> None:
        """The same document in train and in what is measured on."""
        train = {document.key for document in self._documents["train"]}
        for split in SPLITS[1:]:
            shared = [d for d in self._documents[split] if d.key in train]
            if shared:
                what = f"{len(shared)} documents of {split} are also in train"
                why = f"the first: {shortened(shared[0].text, 60)!r}"
                why += "; what was learned by heart looks like skill"
                fix = "remove them from one of the two files"
                fault = Fault(what, shared[0].where, why, fix)
                self.findings.warnings.append(fault)

    def _tokenized(self, split: Split, documents: Sequence[Document]) -> list[Sample]:
        """Samples of a split, and its counts."""
        count = self.counts[split] = Counts()
        single: list[Sample] = []
        encoded = self.encode(documents)
        for document, whole in zip(documents, encoded, strict=True):
            parts = [p for p in self.fit_length(whole) if p[1][1:].any()]
            count.bare += not parts
            count.documents += bool(parts)
            count.divided += len(parts) > 1
            for number, part in enumerate(parts, start=1):
                name = document.id
                if len(parts) > 1:
                    name += f" ({number} of {len(parts)})"
                count.tokens += len(part[0])
                single.append({"id": name, "documents": [part]})
        if not single:
            raise DataError(
                f"nothing can be learned from the documents of {split}",
                where=self.settings.path,
                why="none of them has a token after its first one that is predicted "
                f"and is within data.max_length={self.settings.max_length}",
                fix="give longer documents, or raise data.max_length",
            )
        if split != "train" or not self.settings.packing:
            return single
        lengths = np.array([_size(sample) for sample in single])
        rows = packing.pack(lengths, self.settings.max_length, self.seed)
        return [
            {
                "id": f"pack {number}",
                "documents": [single[i]["documents"][0] for i in row],
            }
            for number, row in enumerate(rows, start=1)
        ]

    def _warn_counts(self) -> None:
        total = sum(map(len, self._documents.values()))
        limit = self.preprocessing.get("max_positions")
        length = self.settings.max_length
        warn = self.findings.warnings.append
        if divided := sum(count.divided for _, count in self._each()):
            most = f" (at most {limit} with this backbone)" if limit else ""
            warn(
                Fault(
                    f"{divided} of {total} documents ({divided / total:.0%}) are "
                    "read in parts",
                    where="data.max_length",
                    why=f"they have more than {length} tokens; no part sees another",
                    fix=f"raise data.max_length{most}",
                )
            )
        if bare := sum(count.bare for _, count in self._each()):
            why = "no token after their first one that would be predicted is read"
            what = f"{bare} of {total} documents are left out"
            warn(Fault(what, self.settings.path, why))

    def _each(self) -> Iterable[tuple[str, Counts]]:
        return self.counts.items()

    def _prompts(self) -> list[dict[str, Any]]:
        """Beginnings of ``data.prompts`` documents of test, a seeded choice."""
        documents = self._documents["test"]
        found: list[dict[str, Any]] = []
        order = np.random.default_rng([self.seed, 3]).permutation(len(documents))
        for index in order.tolist():
            if len(found) == self.settings.prompts:
                break
            if prompt := self.prompt(documents[index]):
                found.append(prompt)
        return found

    def _forgetting(self) -> dict[str, Any]:
        """General text as ids, each at most a row long."""
        encoded = self.encode_texts(self._general)
        cut = (ids[: self.settings.max_length].tolist() for ids in encoded)
        documents = [ids for ids in cut if len(ids) > 1]
        return {
            "name": locations.name_of(self.settings.general),
            "documents": documents,
        }


def shortened(text: str, limit: int = 200) -> str:
    """A text on one line, cut where it is longer than people like to read."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _size(sample: Sample) -> int:
    return sum(len(ids) for ids, _ in sample["documents"])
