"""Conversations to token ids, and which of them the assistant says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Message = Mapping[str, Any]

ASSISTANT = "assistant"
_TAGGED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render(
    tokenizer: Any, messages: Sequence[Message], template: str
) -> tuple[np.ndarray, np.ndarray]:
    """A conversation as the model reads it, and what of it is learned.

    The assistant's turns are found by writing the conversation up to each of them, or
    by ``{% generation %}`` where the chat template marks them. What ends a turn belongs
    to it, white space after that does not. The last response ends with end-of-text
    even where the template does not say so: generation stops there.

    Args:
        tokenizer: A fast one; its ``chat_template`` writes the turns.
        messages: ``role`` and ``content`` of each turn, at least one the assistant's.
        template: ``chat``, or ``plain`` for each turn on a line of its own.

    Returns:
        Token ids (int32), and true for those that count (bool). The first never does:
        nothing before it could predict it.

    Raises:
        DataError: The template refuses the conversation, or writes a turn differently
            once others follow, so that it cannot be found.
    """
    if template == "plain":
        ids, counted = _encode(tokenizer, *_plain(tokenizer, messages))
    elif _TAGGED.search(_template(tokenizer)):
        found = _apply(
            tokenizer,
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids = np.array(found["input_ids"], dtype=np.int32)
        counted = np.array(found["assistant_masks"], dtype=bool)
    else:
        ids, counted = _encode(tokenizer, *_spans(tokenizer, messages))
    if not counted.any():
        raise DataError(
            "no token of the response is left",
            why="the chat template does not write it, or the tokenizer drops it",
        )
    ids, counted = _closed(ids, counted, tokenizer.eos_token_id)
    counted[0] = False
    return ids, counted


def prompt(tokenizer: Any, messages: Sequence[Message], template: str) -> np.ndarray:
    """Token ids (int32) of a conversation that the assistant is to continue.

    Raises:
        DataError: The template refuses the conversation.
    """
    if template == "plain":
        text, _ = _plain(tokenizer, messages)
    else:
        text = _apply(tokenizer, messages, tokenize=False, add_generation_prompt=True)
    return _encode(tokenizer, text, [])[0]


def _template(tokenizer: Any) -> str:
    found: str = tokenizer.get_chat_template()
    return found


def _apply(tokenizer: Any, messages: Sequence[Message], **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except (TemplateError, TypeError) as error:
        raise DataError(
            f"the chat template refuses the conversation: {error}",
            why=f"its turns are {', '.join(m['role'] for m in messages)}",
            fix="bring the turns into the order that the model knows, or give a "
            "template of your own: data.chat_template=FILE",
        ) from error


def _spans(
    tokenizer: Any, messages: Sequence[Message]
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and from where to where the assistant speaks."""
    text: str = _apply(tokenizer, messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = _apply(
            tokenizer, messages[:i], tokenize=False, add_generation_prompt=True
        )
        through = text
        if i + 1 < len(messages):
            through = _apply(tokenizer, messages[: i + 1], tokenize=False)
        if not (through.startswith(before) and text.startswith(through)):
            raise DataError(
                f"turn {i + 1} is written differently once others follow",
                why="the chat template does not write a conversation turn by turn, "
                "so what the assistant says cannot be told from the rest",
                fix="mark it with {% generation %} … {% endgeneration %} in a template "
                "of your own (data.chat_template=FILE), or give each response "
                "as a conversation that ends with it",
            )
        spans.append((len(before), len(through.rstrip())))
    return text, spans


def _plain(
    tokenizer: Any, messages: Sequence[Message]
) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for message in messages:
        start = len(text)
        if message["role"] == ASSISTANT:
            text += message["content"] + tokenizer.eos_token
            spans.append((start, len(text)))
        else:
            text += message["content"] + "\n"
    bare = tokenizer("")["input_ids"]
    if bare and bare[0] == tokenizer.bos_token_id:
        shift = len(tokenizer.bos_token)
        text = tokenizer.bos_token + text
        spans = [(start + shift, stop + shift) for start, stop in spans]
    return text, spans


def _encode(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, and true for those that hold a character of one of the spans."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    counted = np.zeros(len(ids), dtype=bool)
    # Tokens of mere white space may have no width, so none is looked at by itself:
    # what counts is everything between the first and the last of a span.
    starts, ends = np.array(encoded["offset_mapping"]).reshape(-1, 2).T
    for start, stop in spans:
        first = np.searchsorted(ends, start, side="right")
        counted[first : np.searchsorted(starts, stop, side="left")] = True
    return ids, counted


def _closed(
    ids: np.ndarray, counted: np.ndarray, end: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The conversation with end-of-text learned behind its last response."""
    last = int(np.flatnonzero(counted)[-1])
    if end is None:
        return ids, counted
    found = np.flatnonzero(ids[last:] == end)
    if not found.size:
        ids = np.append(ids[: last + 1], np.int32(end))
        return ids, np.append(counted[: last + 1], True)
    counted[last : last + int(found[0]) + 1] = True
    return ids, counted
