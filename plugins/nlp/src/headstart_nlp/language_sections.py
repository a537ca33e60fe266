"""Sections of the report that only language models have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report.parts import Section, Table
from headstart.report.verdict import number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart.report.parts import Cell, Evaluation

LONGEST_TEXT = 600
NOTHING_FORGOTTEN = 0.02
"""A perplexity that rises by less than this share says nothing about forgetting."""


def sections(evaluation: Evaluation) -> list[Section]:
    """Those for which the evaluation has something to show."""
    found = (samples(evaluation), general_text(evaluation), hardest(evaluation))
    return [section for section in found if section is not None]


def samples(evaluation: Evaluation) -> Section | None:
    """What the model made of held-out prompts before and after, and what is true.

    Reads ``samples`` of the probe, and the task's prompts.
    """
    prompts = (evaluation.task.get("probe") or {}).get("prompts") or ()
    after = list(evaluation.after.get("samples") or ())
    if not prompts or not after:
        return None
    before = list(evaluation.before.get("samples") or [None] * len(after))
    rows = tuple(
        tuple(_shortened(text) for text in (p["text"], old, new, p["reference"]))
        for p, old, new in zip(prompts, before, after, strict=True)
    )
    table = Table(
        ("prompt", "before", "after", "reference"),
        rows,
        caption="Held-out prompts, none of which was trained on; the same seed twice.",
    )
    return Section(
        "Samples before and after",
        "Read them: a better loss need not be a better text.",
        tables=(table,),
    )


def general_text(evaluation: Evaluation) -> Section | None:
    """Whether general language suffered: catastrophic forgetting (French 1999).

    Reads ``general_nll``, ``general_tokens`` and ``general_documents`` of the probe.
    """
    after = _perplexity(evaluation.after)
    if after is None:
        return None
    asked = (evaluation.task.get("probe") or {}).get("general") or {}
    before = _perplexity(evaluation.before)
    name = str(asked.get("name") or "general text")
    rows: list[tuple[Cell, ...]] = []
    held_out = evaluation.metrics.get("perplexity")
    if held_out is not None:
        first = evaluation.before.get("metrics", {}).get("perplexity")
        moved = held_out / first - 1 if first else None
        rows.append((f"{evaluation.split} split", first, float(held_out), moved))
    change = after / before - 1 if before else None
    rows.append((name, before, after, change))
    tokens = int(evaluation.after["general_tokens"])
    documents = int(evaluation.after["general_documents"])
    table = Table(
        ("text", "perplexity before", "after", "change"),
        tuple(rows),
        caption=f"{name}: {tokens:,} tokens of {documents:,} "
        f"document{'s' * (documents != 1)}.",
    )
    return Section("Forgetting", _verdict(name, before, after), tables=(table,))


def _verdict(name: str, before: float | None, after: float) -> str:
    if before is None:
        return f"Perplexity on {name} is {number(after)} after the training."
    change = after / before - 1
    moved = f"from {number(before)} to {number(after)} ({change:+.1%})"
    if change > NOTHING_FORGOTTEN:
        return (
            f"The model forgot: its perplexity on {name} rose {moved}. A lower "
            "learning rate, fewer epochs, LoRA, or some general text among the "
            "training data keep more."
        )
    if change < -NOTHING_FORGOTTEN:
        return f"Nothing was forgotten: perplexity on {name} even fell {moved}."
    return f"Nothing was forgotten: perplexity on {name} went {moved}."


def hardest(evaluation: Evaluation) -> Section | None:
    """Documents with the highest loss a token: look here for what is no text at all.

    Reads ``nll`` and ``tokens``, (documents,).
    """
    if not {"nll", "tokens"} <= evaluation.outputs.keys():
        return None
    nll = np.asarray(evaluation.outputs["nll"], dtype=float)
    tokens = np.asarray(evaluation.outputs["tokens"], dtype=int)
    there = np.flatnonzero(tokens > 0)
    mean = nll[there] / tokens[there]
    order = there[np.argsort(-mean, kind="stable")][: evaluation.rows]
    if len(order) == 0:
        return None
    shown = [evaluation.shown(int(i)) for i in order]
    names = list(dict.fromkeys(name for sample in shown for name in sample))
    names = [name for name in names if name not in ("tokens", "loss a token")]
    rows = tuple(
        (
            *(_shortened(sample.get(name)) for name in names),
            int(tokens[i]),
            float(nll[i] / tokens[i]),
        )
        for i, sample in zip(order, shown, strict=True)
    )
    caption = f"{len(rows)} of {len(there):,} documents, {evaluation.split} split."
    return Section(
        "Hardest documents",
        "The documents that surprised the model most, in nats a token. Text in "
        "another language, tables and broken encodings end up here.",
        tables=(Table((*names, "tokens", "loss a token"), rows, caption=caption),),
    )


def _perplexity(probe: Mapping[str, Any]) -> float | None:
    if not probe.get("general_tokens"):
        return None
    return math.exp(float(probe["general_nll"]) / int(probe["general_tokens"]))


def _shortened(value: Any) -> Cell:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
