"""The data module ``nlp/corpus``: documents that are continued."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import Fault
from headstart_nlp import checks
from headstart_nlp.documents import read_documents
from headstart_nlp.language_data import LanguageData, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Sample
    from headstart_nlp import packing
    from headstart_nlp.documents import Document
    from headstart_nlp.settings import CorpusSettings

WORDS = 8
"""Most words that a prompt of the report takes of a document."""
REFERENCE = 400
"""Characters of a document that the report shows beside its continuations."""


class Corpus(LanguageData):
    """Texts of which every token is learned, and where they end."""

    settings: CorpusSettings

    def read(self, path: str, key: str) -> dict[str, list[Document]]:
        return read_documents(path, key, self.settings, self.findings)

    def check_tokenizer(self) -> list[Fault]:
        if not self.settings.end_of_text or self.end_of_text is not None:
            return []
        what = "neither the model nor its tokenizer has an end-of-text token"
        why = "it is learned where a document ends, so that generation stops there"
        fix = "data.end_of_text=false, and generation ends by its length alone"
        return [Fault(what, "data.end_of_text", why, fix)]

    def encode(self, documents: Sequence[Document]) -> list[packing.Document]:
        """Every token counts, with end-of-text behind the last one if that is asked."""
        found = self.encode_texts([document.content for document in documents])
        if self.settings.end_of_text:
            end = np.array([self.end_of_text], dtype=np.int32)
            found = [np.concatenate([ids, end]) for ids in found]
        return [(ids, np.ones(len(ids), dtype=bool)) for ids in found]

    def prompt(self, document: Document) -> dict[str, Any] | None:
        """The first words of a text, at most half of them."""
        at = _beginning(document.content)
        text = document.content[:at].rstrip()
        ids = self.encode_texts([text])[0] if text else np.array([])
        # As many again must have their place behind it.
        if not 0 < len(ids) <= self.settings.max_length // 2:
            return None
        reference = document.content[at:].strip()
        return {
            "text": text,
            "ids": ids.tolist(),
            "reference": shortened(reference, REFERENCE),
        }

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Prompts to continue: texts, or dictionaries with ``text`` (and ``id``).

        Raises:
            DataError: Inputs without text, or longer than the model reads, by
                :meth:`leave_out`.
        """
        faults: list[Fault] = []
        found: list[tuple[int, str, str]] = []
        for i, given in enumerate(inputs, start=1):
            values = given if isinstance(given, dict) else {"text": given}
            text = values.get("text", values.get(self.settings.text))
            wrong = checks.text_faults("text", text, f"input {i}")
            faults += wrong
            if not wrong:
                found.append((i, str(values.get("id", i)), str(text)))
        samples: list[Sample] = []
        encoded = self.encode_texts([text for _, _, text in found])
        for (i, name, text), ids in zip(found, encoded, strict=True):
            wrong = self.prompt_faults(ids, f"input {i}")
            faults += wrong
            if wrong:
                continue
            nothing = np.zeros(len(ids), dtype=bool)
            samples.append({"id": name, "text": text, "documents": [(ids, nothing)]})
        self.leave_out(faults, len(samples))
        return samples

    def input_name(self, sample: Sample) -> str:
        return str(sample["text"])


def _beginning(text: str) -> int:
    """Where a prompt ends: behind a word, or behind a character without words."""
    words = [found.end() for found in re.finditer(r"\S+", text)]
    if len(words) >= 4:
        return words[min(WORDS, len(words) // 2) - 1]
    return min(len(text) // 2, 2 * WORDS)
