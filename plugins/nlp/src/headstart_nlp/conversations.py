"""The data module ``nlp/conversations``: prompts and responses, and longer talks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError, Fault, nearest
from headstart_nlp import chat, checks, messages, tables
from headstart_nlp.chat import ASSISTANT
from headstart_nlp.files import missing_file
from headstart_nlp.language_data import LanguageData, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.data import Sample
    from headstart_nlp import packing
    from headstart_nlp.documents import Document
    from headstart_nlp.messages import Messages
    from headstart_nlp.settings import ConversationSettings

REFERENCE = 400
"""Characters of a response that the report shows beside the model's own."""


class Conversations(LanguageData):
    """Conversations of which the assistant's turns are learned.

    They are lists of messages, or made of a table's columns. What follows the last
    response of a conversation is not read.
    """

    settings: ConversationSettings

    def __init__(self, settings: ConversationSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._outside = 0
        self._long = 0
        self._forged = 0

    def load(self) -> None:
        """Read, check and split."""
        if self.settings.chat_template:
            # A run folder's recipe is read from everywhere.
            file = Path(self.settings.chat_template).expanduser().absolute()
            self.settings = self.settings.model_copy(
                update={"chat_template": str(file)}
            )
        super().load()

    def read(self, path: str, key: str) -> dict[str, list[Document]]:
        found: dict[str, list[Document]] = {}
        if messages.check_settings(self.settings):
            # What such settings would make of the rows is noise.
            return found
        wanted = messages.wanted(self.settings)
        read = tables.read(path, key, wanted, self.settings, self.findings)
        for split, table in read.items():
            found[split], outside = messages.read_table(
                table, self.settings, self.findings
            )
            self._outside += outside
        return found

    def check_settings(self) -> list[Fault]:
        faults = super().check_settings() + messages.check_settings(self.settings)
        file = Path(self.settings.chat_template)
        if self.settings.chat_template and not file.is_file():
            faults.append(missing_file(file, "data.chat_template"))
        return faults

    def prepare(self, preprocessing: Mapping[str, Any]) -> None:
        """Write the conversations as the model reads them."""
        self._long = self._forged = 0
        super().prepare(preprocessing)

    def check_tokenizer(self) -> list[Fault]:
        tokenizer, faults = self.tokenizer, []
        if self.end_of_text is None:
            what = "neither the model nor its tokenizer has an end-of-text token"
            why = "a response ends with it, so that generation stops there"
            fix = "give a tokenizer with `eos_token`: data.tokenizer=FOLDER"
            faults.append(Fault(what, "data.tokenizer", why, fix))
        elif tokenizer.eos_token_id is None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(self.end_of_text)
        if self.settings.template == "chat":
            faults += self._check_template()
        return faults

    def _check_template(self) -> list[Fault]:
        from jinja2 import TemplateError, TemplateSyntaxError

        name, tokenizer = self.settings.chat_template, self.tokenizer
        if name:
            try:
                tokenizer.chat_template = Path(name).read_text(encoding="utf-8")
            except FileNotFoundError:
                return [missing_file(Path(name), "data.chat_template")]
            except (OSError, UnicodeDecodeError) as error:
                return [Fault("the chat template cannot be read", name, str(error))]
        elif not tokenizer.chat_template:
            what = "the model has no chat template"
            why = (
                "it was not trained on conversations, so how turns are written is open"
            )
            fix = 'data.template="plain", or give one: data.chat_template=FILE'
            return [Fault(what, "data.template", why, fix)]
        try:
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "?"}], tokenize=False
            )
        except TemplateSyntaxError as error:
            where = f"{name or 'the chat template of the weights'}, line {error.lineno}"
            what = f"this is not a Jinja template: {error.message}"
            return [Fault(what, where, fix="mend it: data.chat_template=FILE")]
        except TemplateError:
            pass  # It wants other turns than these; conversations may have them.
        except ValueError as error:
            fix = "choose one by putting it into a file: data.chat_template=FILE"
            what = "it cannot be told which chat template to use"
            return [Fault(what, "data.chat_template", str(error), fix)]
        return []

    def encode(self, documents: Sequence[Document]) -> list[packing.Document]:
        """Every token, and which of them the assistant says."""
        specials = [token for token in self.tokenizer.all_special_tokens if token]
        found: list[packing.Document] = []
        for document in documents:
            self._forged += any(
                special in (turn.get("content") or "")
                for turn in document.content
                for special in specials
            )
            try:
                found.append(self._render(document.content))
            except DataError as error:
                found.append((np.zeros(0, np.int32), np.zeros(0, bool)))
                for fault in error.faults:
                    self.findings.sample(
                        document.where, 0, replace(fault, where=document.where)
                    )
        total = sum(map(len, self._documents.values())) + len(self.findings.samples)
        self.findings.settle(self.settings, total)
        return found

    def _render(self, turns: Messages) -> packing.Document:
        return chat.render(self.tokenizer, turns, self.settings.template)

    def fit_length(self, document: packing.Document) -> list[packing.Document]:
        """A conversation whole, or none of it, or its beginning: ``data.long``."""
        ids, counted = document
        length = self.settings.max_length
        if len(ids) <= length:
            return [document]
        self._long += 1
        if self.settings.long == "drop":
            return []
        return [(ids[:length], counted[:length])]

    def _warn_counts(self) -> None:
        total = sum(map(len, self._documents.values()))
        bare = sum(count.bare for _, count in self._each())
        warn = self.findings.warnings.append
        length, limit = (
            self.settings.max_length,
            self.preprocessing.get("max_positions"),
        )
        if self._long:
            cut = self.settings.long == "cut"
            bare -= 0 if cut else self._long
            most = f" (at most {limit} with this backbone)" if limit else ""
            done = "cut at their end" if cut else "left out"
            what = f"{self._long} of {total} conversations are {done}"
            why = f"they have more than {length} tokens"
            if cut:
                why += "; of these it is not learned where a response ends"
            fix = f"raise data.max_length{most}"
            warn(Fault(what, "data.max_length", why, fix))
        if bare > 0:
            why = "no token of a response is read; the reasons are listed"
            what = f"{bare} of {total} conversations are left out"
            warn(Fault(what, self.settings.path, why))
        if self._forged:
            what = f"{self._forged} of {total} conversations hold a special token"
            why = "in a turn's content it is read as the token: it may end the turn"
            fix = "remove what a chat template has written into the contents"
            warn(Fault(what, self.settings.path, why, fix))

    def prompt(self, document: Document) -> dict[str, Any] | None:
        """A conversation up to its last response."""
        turns: Messages = document.content
        asked = (m["content"] for m in reversed(turns[:-1]) if m["role"] == "user")
        reference = turns[-1].get("content")
        text = next(asked, None)
        if not text or not reference:
            return None
        try:
            ids = chat.prompt(self.tokenizer, turns[:-1], self.settings.template)
        except DataError:
            return None
        if not 0 < len(ids) < self.settings.max_length:
            return None
        return {
            "text": shortened(text, REFERENCE),
            "ids": ids.tolist(),
            "reference": shortened(reference, REFERENCE),
        }

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Conversations that the assistant is to continue.

        Each input is what the user says (where ``data.prompt`` is made of one column:
        that column's text), or a dictionary with ``messages``, with the columns that
        ``data.prompt`` is made of, or with ``prompt``.

        Raises:
            DataError: Inputs that are no conversation, or longer than the model reads,
                by :meth:`leave_out`.
        """
        faults: list[Fault] = []
        samples: list[Sample] = []
        for i, given in enumerate(inputs, start=1):
            where = f"input {i}"
            turns, found = self._turns(given, where)
            faults += found
            if found:
                continue
            turns = messages.with_system(turns, self.settings)
            try:
                ids = chat.prompt(self.tokenizer, turns, self.settings.template)
            except DataError as error:
                faults += [replace(fault, where=where) for fault in error.faults]
                continue
            found = self.prompt_faults(ids, where)
            faults += found
            if found:
                continue
            samples.append(
                {
                    "id": str(given.get("id", i) if isinstance(given, dict) else i),
                    "prompt": str(turns[-1].get("content", "")),
                    "documents": [(ids, np.zeros(len(ids), dtype=bool))],
                }
            )
        self.leave_out(faults, len(samples))
        return samples

    def _turns(self, given: Any, where: str) -> tuple[Messages, list[Fault]]:
        settings = self.settings
        asked = messages.columns("prompt", settings) if settings.prompt else []
        if not isinstance(given, dict):
            faults = checks.text_faults("prompt", given, where)
            if len(asked) == 1 and not faults:
                return _user(
                    *messages.fill("prompt", settings, {asked[0]: given}, where)
                )
            return _user(given, faults)
        for key in (settings.messages, "messages"):
            if key in given:
                turns, faults = messages.parse(given[key], where)
                if turns and turns[-1]["role"] == ASSISTANT:
                    fix = "leave it out: it is what the model is to say"
                    faults = [Fault("the last turn is the assistant's", where, fix=fix)]
                return turns, faults
        missing = [name for name in asked or ["prompt"] if name not in given]
        if not missing and settings.prompt:
            return _user(*messages.fill("prompt", settings, given, where))
        if "prompt" in given:
            text = given["prompt"]
            return _user(text, checks.text_faults("prompt", text, where))
        why = f"it has {', '.join(map(repr, given)) or 'nothing'}"
        return [], [
            Fault(f"there is no {name!r}", where, why, nearest(name, given))
            for name in missing
        ]

    def input_name(self, sample: Sample) -> str:
        return str(sample["prompt"])

    def show(self, sample: Sample) -> dict[str, Any]:
        """``id``, ``prompt`` (its end) and ``response``, 200 characters of each; of a
        pack, those of its first conversation and how many ``conversations`` it has."""
        documents = sample["documents"]
        ids, counted = documents[0]
        if not counted.any():
            return {"id": sample["id"], "prompt": _ending(self.text(ids))}
        last = len(counted) - int(np.argmax(counted[::-1]))
        first = last - int(np.argmin(counted[:last][::-1]))
        shown = {
            "id": sample["id"],
            "prompt": _ending(self.text(ids[:first])),
            "response": shortened(self.text(ids[first:last])),
        }
        return (
            {**shown, "conversations": len(documents)} if len(documents) > 1 else shown
        )

    def describe(self) -> dict[str, Any]:
        """Also the share of tokens that are learned, and what was left out."""
        described = super().describe()
        del described["divided documents"]
        counts = [
            (int(counted.sum()), len(counted))
            for samples in self._samples.values()
            for sample in samples
            for _, counted in sample["documents"]
        ]
        learned, total = np.sum(counts, axis=0).tolist()
        described["learned tokens"] = learned / total
        described[f"too long ({self.settings.long})"] = self._long
        if self.settings.bins:
            described["outside bins"] = self._outside
        return described


def _ending(text: str) -> str:
    """The last of a prompt: a chat template begins each with the same words."""
    return shortened(text[::-1])[::-1]


def _user(text: Any, faults: list[Fault]) -> tuple[Messages, list[Fault]]:
    return [{"role": "user", "content": text}], faults
