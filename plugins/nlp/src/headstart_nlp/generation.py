"""Text from a causal language model, through transformers' own ``generate``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headstart.errors import DataError, Fault, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from headstart.stages import Backbone, State
    from headstart_nlp.options import GenerationOptions

END, STOP, LENGTH = "end of text", "stop", "length"
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of a character to."""
CONTEXT = 8
"""Tokens of the prompt that are decoded with what follows: some tokenizers write a
word without its space where it comes first."""


@dataclass(frozen=True)
class Continuation:
    """What a model made of a prompt.

    Attributes:
        text: Without the prompt, special tokens and the stop text.
        tokens: How many were generated, the end-of-text token not counted.
        ended: ``end of text``, ``stop`` (one of the stop texts) or ``length``.
    """

    text: str
    tokens: int
    ended: str


@lru_cache(maxsize=4)
def open_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    fix = "name a folder that has tokenizer.json: data.tokenizer=FOLDER"
    path = Path(folder).expanduser()
    if not folder or not path.is_dir():
        raise UserError(
            "there is no tokenizer" if not folder else "there is no such folder",
            where=folder or "data.tokenizer",
            why="without one, generated tokens cannot become text",
            fix=fix,
        )
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the library lets its parsers' own errors through
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            "the tokenizer cannot be loaded", where=folder, why=why, fix=fix
        ) from error


def prompts_of(batch: State) -> list[list[int]]:
    """The token ids of each row of a batch, padding left out."""
    rows, there = batch["input_ids"].tolist(), (batch["segments"] > 0).tolist()
    return [
        [token for token, real in zip(row, mask, strict=True) if real]
        for row, mask in zip(rows, there, strict=True)
    ]


def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Any,
    emit: Callable[[str], None] | None = None,
) -> list[list[Continuation]]:
    """Continue prompts.

    Each continuation draws from a generator of its own, seeded by the options' seed,
    the prompt and its number, and chooses by its place in the cumulative distribution:
    so it depends neither on the batch nor on the kind of device.

    Args:
        backbone: Has ``language_model()``.
        prompts: Token ids; none may be empty.
        options: ``temperature`` is a number; ``None`` is taken for 0.
        tokenizer: Decodes.
        emit: Takes the text piece by piece, a line break behind each continuation,
            prompt after prompt; without it prompts go through the model together.

    Returns:
        ``options.samples`` continuations of each prompt.

    Raises:
        DataError: Prompts that are empty or fill the model's context; all of them.
    """
    context = backbone.preprocessing.get("max_positions")
    _check(prompts, context)
    turns = [
        _Turn(tuple(prompt), number, _room(len(prompt), options.max_tokens, context))
        for prompt in prompts
        for number in range(options.samples)
    ]
    found: dict[int, Continuation] = {}
    for group in _groups(turns, options.max_tokens, apart=emit is not None):
        results = _continue(
            backbone, [turns[i] for i in group], options, tokenizer, emit
        )
        found.update(zip(group, results, strict=True))
    size = options.samples
    return [
        [found[i * size + number] for number in range(size)]
        for i in range(len(prompts))
    ]


@dataclass(frozen=True)
class _Turn:
    """One continuation to make, of at most ``room`` tokens."""

    prompt: tuple[int, ...]
    number: int
    room: int


def _check(prompts: Sequence[Sequence[int]], context: int | None) -> None:
    faults = []
    for i, prompt in enumerate(prompts, 1):
        if not prompt:
            what, fix = "the prompt is empty", "give it at least one word"
            faults.append(Fault(what, f"prompt {i}", fix=fix))
        elif context and len(prompt) >= context:
            what = f"the prompt has {len(prompt):,} tokens"
            why = f"the model's context is {context:,} tokens, answer included"
            fix = f"shorten it by {len(prompt) - context + 1:,} tokens at least"
            faults.append(Fault(what, f"prompt {i}", why, fix))
    if faults:
        raise DataError(*faults)


def _room(length: int, wanted: int, context: int | None) -> int:
    return min(wanted, context - length) if context else wanted


def _groups(turns: Sequence[_Turn], wanted: int, *, apart: bool) -> list[list[int]]:
    """Turns that go together: all that have room for what is wanted."""
    together = [i for i, turn in enumerate(turns) if not apart and turn.room == wanted]
    alone = [[i] for i in range(len(turns)) if i not in set(together)]
    return ([together] if together else []) + alone


def _continue(
    backbone: Any,
    turns: Sequence[_Turn],
    options: GenerationOptions,
    tokenizer: Any,
    emit: Callable[[str], None] | None,
) -> list[Continuation]:
    model = backbone.language_model()
    ends = _ends(backbone.preprocessing, tokenizer, model.generation_config)
    padding = backbone.preprocessing.get("pad_token_id")
    if padding is None:
        padding = min(ends, default=0)
    width = max(len(turn.prompt) for turn in turns)
    starts = [width - len(turn.prompt) for turn in turns]
    rows = [
        [padding] * start + list(turn.prompt)
        for start, turn in zip(starts, turns, strict=True)
    ]
    device = next(model.parameters()).device
    ids = torch.tensor(rows, device=device)
    pads = torch.tensor(starts, device=device)[:, None]
    decoders = [_Decoder(tokenizer, turn.prompt, options.stop) for turn in turns]
    watch = _Watch(decoders, width, ends, emit)
    watched = StoppingCriteriaList([watch] if options.stop or emit else [])
    with torch.no_grad():
        full = model.generate(
            ids,
            attention_mask=(torch.arange(width, device=device) >= pads).long(),
            generation_config=_configuration(turns[0].room, ends, padding),
            logits_processor=_processors(turns, options, pads),
            stopping_criteria=watched,
        )
    results = []
    for new, decoder, seen in zip(
        full[:, width:].tolist(), decoders, watch.seen, strict=True
    ):
        # What follows an end in its row waits for longer rows and means nothing.
        end = next((i for i, token in enumerate(new) if token in ends), None)
        text, ended, count = decoder.text(new[:end]), LENGTH, len(new)
        if end is not None:
            ended, count = END, end
        if seen.stopped is not None:
            text, ended, count = decoder.cut(text), STOP, seen.stopped
        if emit:
            emit(text[seen.emitted :] + "\n")
        results.append(Continuation(text, count, ended))
    return results


def _ends(
    preprocessing: Mapping[str, Any], tokenizer: Any, configuration: Any
) -> frozenset[int]:
    """Tokens that end a text: what weights, tokenizer and model each call so."""
    found: set[int | None] = set()
    for value in (
        preprocessing.get("eos_token_id"),
        tokenizer.eos_token_id,
        configuration.eos_token_id,
    ):
        found.update(value if isinstance(value, list | tuple) else [value])
    return frozenset(token for token in found if token is not None)


def _configuration(room: int, ends: Iterable[int], padding: int) -> GenerationConfig:
    """Greedy over scores that our processors have prepared.

    Values are spelt out, so that those in the model's own file do not step in.
    """
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=room,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding,
    )


def _processors(
    turns: Sequence[_Turn], options: GenerationOptions, pads: Tensor
) -> LogitsProcessorList:
    """What changes the scores of the next token, in the library's order."""
    steps = LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        steps.append(_Repetition(options.repetition_penalty, pads))
    if not options.temperature:
        return steps
    steps.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        steps.append(TopPLogitsWarper(options.top_p))
    steps.append(_Draw(turns, options.seed))
    return steps


class _Repetition(LogitsProcessor):
    """The library's penalty, for which padding was never there."""

    def __init__(self, penalty: float, pads: Tensor) -> None:
        self.penalise = RepetitionPenaltyLogitsProcessor(penalty)
        self.pads = pads

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        real = torch.where(place >= self.pads, input_ids, input_ids[:, -1:])
        return self.penalise(real, scores)


class _Draw(LogitsProcessor):
    """Leaves one token in each row, drawn by the row's own generator."""

    def __init__(self, turns: Sequence[_Turn], seed: int) -> None:
        self.generators = [
            np.random.default_rng([seed, turn.number, *turn.prompt]) for turn in turns
        ]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        # float32 stays below 1 when float64 multiplies it: the last token is in reach,
        # what is behind it is not.
        chances = [each.random(dtype=np.float32) for each in self.generators]
        reached = torch.softmax(scores.double(), -1).cumsum(-1)
        goal = reached.new_tensor(chances)[:, None] * reached[:, -1:]
        chosen = torch.searchsorted(reached, goal, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


class _Decoder:
    """New tokens of one prompt to text."""

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self.tokenizer = tokenizer
        self.before = list(prompt[-CONTEXT:])
        self.skipped = len(self._decode(self.before))
        self.stop = tuple(stop)

    def text(self, tokens: Sequence[int]) -> str:
        """Text of the new tokens, special ones left out."""
        return self._decode([*self.before, *tokens])[self.skipped :]

    def cut(self, text: str) -> str:
        """The text before the first stop text in it."""
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def settled(self, text: str) -> int:
        """How many characters nothing that follows can take back."""
        sure = len(text.rstrip(UNFINISHED))
        longest = max(map(len, self.stop), default=0)
        for size in range(min(longest - 1, sure), 0, -1):
            tail = text[sure - size : sure]
            if any(stop.startswith(tail) for stop in self.stop):
                return sure - size
        return sure

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


@dataclass
class _Seen:
    """What is known of a row while it grows."""

    ended: bool = False
    stopped: int | None = None
    emitted: int = 0


class _Watch(StoppingCriteria):
    """Ends rows at stop texts, and passes on text as it comes."""

    def __init__(
        self,
        decoders: Sequence[_Decoder],
        width: int,
        ends: frozenset[int],
        emit: Callable[[str], None] | None,
    ) -> None:
        self.decoders = decoders
        self.width = width
        self.ends = ends
        self.emit = emit
        self.seen = [_Seen() for _ in decoders]

    def __call__(self, input_ids: Any, scores: Any, **rest: Any) -> Any:
        rows = input_ids[:, self.width :].tolist()
        for row, decoder, seen in zip(rows, self.decoders, self.seen, strict=True):
            seen.ended = seen.ended or row[-1] in self.ends
            if not seen.ended:
                self._look(row, decoder, seen)
        done = [seen.ended for seen in self.seen]
        return torch.tensor(done, device=input_ids.device)

    def _look(self, row: list[int], decoder: _Decoder, seen: _Seen) -> None:
        text = decoder.text(row)
        whole = decoder.cut(text)
        if len(whole) < len(text):
            seen.ended, seen.stopped = True, len(row)
        settled = len(whole) if seen.ended else decoder.settled(text)
        if self.emit and settled > seen.emitted:
            self.emit(text[seen.emitted : settled])
            seen.emitted = settled
