"""Conversations in tables: lists of messages, or prompts and responses in columns.

Faults of one row go to ``findings.samples``; the recipe's ``data.bad`` decides about
them.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from string import Formatter
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, nearest
from headstart_nlp import checks
from headstart_nlp.chat import ASSISTANT
from headstart_nlp.documents import Document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart.data import Findings
    from headstart_nlp.files import Table
    from headstart_nlp.settings import ConversationSettings

ROLES = ("system", "user", ASSISTANT, "tool")
FILL = "fill it in, or remove the row"
SHAPE = '[{"role": "user", "content": …}, {"role": "assistant", "content": …}]'
Messages = list[dict[str, Any]]


def check_settings(settings: ConversationSettings) -> list[Fault]:
    """Faults of ``data.prompt``, ``data.response`` and ``data.bins``."""
    faults = checks.check_bins(settings.bins)
    both = {"prompt": settings.prompt, "response": settings.response}
    empty = [role for role, value in both.items() if not value]
    if len(empty) == 1:
        given = next(role for role in both if role not in empty)
        what = f"data.{empty[0]} is empty, and data.{given} is not"
        why = "a conversation has both: what is asked, and what is learned"
        fix = f"name the column of the {empty[0]}, or remove data.{given}"
        faults.append(Fault(what, f"data.{empty[0]}", why, fix))
    if settings.bins and len(empty) == 2:
        why = "they are words for a response, and data.response is empty"
        fix = 'data.prompt="…{text}", data.response="{label}"'
        faults.append(Fault("there is nothing to bin", "data.bins", why, fix))
    for role, value in both.items():
        try:
            odd = [
                spec or f"!{conversion}" if name else "{}"
                for _, name, spec, conversion in Formatter().parse(value)
                if name is not None and (not name or spec or conversion)
            ]
        except ValueError as error:
            fix = "write each column in one pair of braces, and a brace itself twice"
            faults.append(Fault(f"{error}: {value!r}", f"data.{role}", fix=fix))
            continue
        if odd and "{" in value:
            what = f"{odd[0]!r} names no column: {value!r}"
            fix = "write {column}, and a brace that is to be read twice: {{"
            faults.append(Fault(what, f"data.{role}", fix=fix))
    return faults


def wanted(settings: ConversationSettings) -> dict[str, str]:
    """The columns that are read, by role."""
    found = {"id": settings.id} if settings.id else {}
    if settings.bins:
        found["label"] = settings.label
    if not settings.prompt:
        return {**found, "messages": settings.messages}
    for role in ("prompt", "response"):
        value = getattr(settings, role)
        for _, name in _parts(value):
            if name is not None and not _is_bin(name, settings):
                found[role if name == value else f"{role}:{name}"] = name
    return found


def read_table(
    table: Table, settings: ConversationSettings, findings: Findings
) -> tuple[list[Document], int]:
    """The conversations of a table that can be used.

    Returns:
        Conversations, each up to its last response, and how many were left out
        because their score is in none of ``data.bins``.
    """
    documents: list[Document] = []
    outside, seen = 0, dict[str, int]()
    names = wanted(settings)
    for i, number in enumerate(table.numbers):
        where = table.where(number)
        row = {names[role]: values[i] for role, values in table.columns.items()}
        name, faults = checks.identity(table, seen, i)
        messages: Messages | None
        if settings.prompt:
            messages, found = _filled(row, settings, where)
        else:
            messages, found = parse(row[settings.messages], where)
            found = found or _without_response(messages, where)
        faults += found
        if messages is None:
            outside += 1
            continue
        for fault in faults:
            findings.sample(table.file, number, fault)
        if not faults:
            whole = with_system(messages, settings)
            while whole[-1]["role"] != ASSISTANT:
                whole.pop()
            documents.append(Document(name, whole, where))
    return documents, outside


def parse(value: Any, where: str) -> tuple[Messages, list[Fault]]:
    """Messages of a cell, a list or its JSON, and what is wrong with them."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            what = f"the messages are not JSON: {value.strip()[:40]!r}"
            return [], [Fault(what, where, str(error), f"write {SHAPE}")]
    if value is None or value in ("", []):
        return [], [Fault("empty messages", where, fix=FILL)]
    if not isinstance(value, list):
        what = f"the messages are no list: {value!r}"[:80]
        return [], [Fault(what, where, fix=f"write {SHAPE}")]
    faults: list[Fault] = []
    for turn, message in enumerate(value, start=1):
        faults += _message_faults(message, turn, where)
    if not faults and value[0]["role"] not in ROLES[:2]:
        what = f"the first turn is the {value[0]['role']}'s"
        why = "an answer needs something that it answers"
        fix = "begin with a turn of the system or the user"
        faults.append(Fault(what, where, why, fix))
    if faults:
        return [], faults
    return [{k: v for k, v in m.items() if v is not None} for m in value], []


def fill(
    role: str,
    settings: ConversationSettings,
    values: Mapping[str, Any],
    where: str,
) -> tuple[str, list[Fault]]:
    """``data.prompt`` or ``data.response`` with the values of one row.

    Args:
        role: ``prompt`` or ``response``.
        settings: Have the texts with columns in braces.
        values: What stands in the columns.
        where: The row, for people.
    """
    text, faults = "", list[Fault]()
    for literal, name in _parts(getattr(settings, role)):
        text += literal
        if name is None:
            continue
        value = _plain(values[name])
        for fault in checks.text_faults(name, value, where):
            other = value is not None and not isinstance(value, str)
            fix = f"check data.{role}" if other else fault.fix
            faults.append(replace(fault, fix=fix))
        text += value if isinstance(value, str) else ""
    return text, faults


def columns(role: str, settings: ConversationSettings) -> list[str]:
    """The columns that ``data.prompt`` or ``data.response`` is made of."""
    return [name for _, name in _parts(getattr(settings, role)) if name is not None]


def with_system(messages: Messages, settings: ConversationSettings) -> Messages:
    """The messages behind ``data.system``, unless they bring their own."""
    if not settings.system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": settings.system}, *messages]


def _parts(value: str) -> list[tuple[str, str | None]]:
    """Text, and the column behind it; a value without braces is a column."""
    if "{" not in value and "}" not in value:
        return [("", value)]
    return [(literal, name) for literal, name, _, _ in Formatter().parse(value)]


def _is_bin(name: str, settings: ConversationSettings) -> bool:
    return bool(settings.bins) and name in ("label", settings.label)


def _plain(value: Any) -> Any:
    """Numbers as they are written; what is not finite is missing."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    return str(value) if isinstance(value, (int, float)) else value


def _filled(
    row: dict[str, Any], settings: ConversationSettings, where: str
) -> tuple[Messages | None, list[Fault]]:
    """Prompt and response of a row; ``None``: its score is in no bin."""
    faults: list[Fault] = []
    if settings.bins:
        word = _word(row[settings.label], settings.bins)
        if word is None:
            return None, []
        if not word:
            what = f"the label is not a number: {row[settings.label]!r}"[:80]
            return [], [Fault(what, where, "data.bins need one", FILL)]
        row = {**row, "label": word, settings.label: word}
    messages = []
    for role, speaker in (("prompt", "user"), ("response", ASSISTANT)):
        text, found = fill(role, settings, row, where)
        faults += found
        messages.append({"role": speaker, "content": text})
    return messages, faults


def _word(value: Any, bins: Mapping[str, tuple[float, float]]) -> str | None:
    """The name of a score's bin; ``None`` for none, empty where it is no score."""
    try:
        score = float(value)
    except (TypeError, ValueError):
        return ""
    if math.isnan(score):
        return ""
    inside = (name for name, (low, high) in bins.items() if low <= score <= high)
    return next(inside, None)


def _without_response(messages: Messages, where: str) -> list[Fault]:
    if any(message["role"] == ASSISTANT for message in messages):
        return []
    why = f"its turns are {', '.join(message['role'] for message in messages)}"
    fix = "add what the assistant says, or remove the conversation"
    return [Fault("no response", where, why, fix)]


def _message_faults(message: Any, turn: int, where: str) -> list[Fault]:
    if not isinstance(message, dict):
        what = f"turn {turn} is no message: {message!r}"[:80]
        return [Fault(what, where, fix=f"write {SHAPE}")]
    missing = [key for key in ("role", "content") if key not in message]
    calls = bool(message.get("tool_calls"))
    if "role" in missing or (missing and not calls):
        what = f"turn {turn} has no {' and no '.join(missing)}"
        why = f"it has {', '.join(map(repr, message)) or 'nothing'}"
        return [Fault(what, where, why, f"write {SHAPE}")]
    faults = []
    role = message["role"]
    if role not in ROLES:
        hint = nearest(str(role), ROLES)
        faults.append(Fault(f"unknown role {role!r} in turn {turn}", where, fix=hint))
    content = message.get("content")
    if calls and not content:
        return faults
    if content is not None and not isinstance(content, str):
        what = f"the content of turn {turn} is not a string: {content!r}"[:80]
        fix = "write its text as one string; images and sounds cannot be read"
        return [*faults, Fault(what, where, fix=fix)]
    return faults + checks.text_faults(f"content of turn {turn}", content, where)
