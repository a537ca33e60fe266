"""Copy pretrained tensors into a backbone, all or nothing, and report what happened."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import nn

from headstart.errors import Fault, UserError
from headstart.weights.pretrained_head import PretrainedHead, misfit
from headstart.weights.rows import AlignedTable, align_tables
from headstart.weights.transfer_report import TransferReport, few

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from headstart.heads import Head
    from headstart.stages import Backbone
    from headstart.weights.sources import Weights

SHOWN = 12
"""Faults of one kind that are told in full; the rest is counted."""


@dataclass
class _Plan:
    """What is to be copied where, found out before anything is."""

    take: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    reinitialised: list[tuple[str, str]] = field(default_factory=list)
    fitted: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    tables: list[AlignedTable] = field(default_factory=list)


def load_weights(
    backbone: Backbone,
    weights: Weights,
    *,
    allow: Sequence[str] = (),
    head: Head | None = None,
    labels: Sequence[str] = (),
) -> TransferReport:
    """Copy pretrained tensors into a backbone's parameters and buffers.

    Every tensor of the source must have a place and every place a tensor, of the same
    shape and finite. What a backbone says it ignores and what belonged to dropped
    stages is skipped; anything else must be allowed by name. Values are cast to the
    backbone's types. Tables whose rows belong to named things (``Backbone.rows``) are
    aligned by id. Nothing is copied unless everything fits.

    Args:
        backbone: Built, with random parameters; ``keep`` already applied.
        weights: Where the tensors are; of ``none`` nothing is copied.
        allow: Glob patterns of upstream names that may be missing, left over or of
            another shape.
        head: Takes the tensors of a pretrained head that its ``upstream`` names, as
            far as they have its shapes, and rows of the classes that it knows.
        labels: The head's classes.

    Raises:
        UserError: Something does not fit. All faults, with the nearest names and the
            line for the recipe that would allow them.
    """
    ours = {
        backbone.upstream_name(name): tensor
        for name, tensor in backbone.state_dict(keep_vars=True).items()
    }
    if not weights.files:
        why = "the weights are random (weights = 'none')"
        return TransferReport(
            weights.reference, reinitialised=tuple((name, why) for name in ours)
        )
    theirs = weights.tensors()
    left: list[tuple[str, str]] = []
    if weights.native:
        theirs, left = _from_run(theirs, backbone, head)
    classes = weights.classes or backbone.classes
    pretrained = PretrainedHead(head, theirs, classes, labels)
    rest = {name: t for name, t in theirs.items() if name not in pretrained.names}
    tables, misaligned = align_tables(backbone, rest, weights.rows)
    rest |= {table.table: table.values for table in tables}
    plan = _plan(backbone, ours, rest, allow)
    plan.faults += pretrained.faults
    if misaligned:
        # Their shapes say nothing: rows are matched by id.
        plan.reshaped = {
            name: shapes
            for name, shapes in plan.reshaped.items()
            if name not in {*map(backbone.upstream_name, backbone.rows)}
        }
        plan.faults += misaligned
    if faults := _faults(plan, weights.reference):
        raise UserError(*faults)
    with torch.no_grad():
        for name, tensor in plan.take.items():
            ours[name].copy_(tensor)
    pretrained.copy()
    rows = tuple(table.start_others(backbone) for table in tables)
    parameters = {
        id(ours[name]): ours[name].numel()
        for name in plan.take
        if isinstance(ours[name], nn.Parameter)
    }
    return TransferReport(
        weights.reference,
        weights.revision,
        weights.sha256,
        weights.licence,
        loaded=len(plan.take),
        loaded_parameters=sum(parameters.values()),
        skipped=(*plan.skipped, *left, *pretrained.skipped),
        reinitialised=tuple(plan.reinitialised),
        fitted=tuple(plan.fitted),
        head_loaded=tuple(pretrained.values),
        classes_kept=pretrained.kept,
        classes_new=pretrained.new,
        rows=rows,
    )


def _from_run(
    theirs: Mapping[str, Tensor], backbone: Backbone, head: Head | None
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """A run's tensors under the names that they have in files of the upstream library.

    Returns:
        Those that may have a place, and the others with why they have none.
    """
    found: dict[str, Tensor] = {}
    left: list[tuple[str, str]] = []
    prefixes: Mapping[str, str] = getattr(head, "upstream", {})
    averaged = any(raw.startswith("module.") for raw in theirs)
    for raw, tensor in theirs.items():
        # Beside the average are a counter, and tensors that never trained.
        if averaged and (f"module.{raw}" in theirs or "." not in raw):
            continue
        part, _, name = raw.removeprefix("module.").partition(".")
        if part == "backbone":
            found[backbone.upstream_name(name)] = tensor
            continue
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default="")
        if prefix:
            found[prefixes[prefix] + name[len(prefix) :]] = tensor
        else:
            left.append((raw, "that run's own head"))
    return found, left


def _plan(
    backbone: Backbone,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    allow: Sequence[str],
) -> _Plan:
    plan = _Plan()
    seen: dict[str, str] = {}
    for raw, tensor in theirs.items():
        name = _upstream(raw, ours, backbone)
        if name in ours:
            if name in seen:
                what = f"{seen[name]!r} and {raw!r} are both {name!r}"
                plan.faults.append(Fault(what))
            elif fault := misfit(raw, tensor, ours[name]):
                plan.faults.append(fault)
            elif tensor.shape == ours[name].shape:
                plan.take[name] = tensor
            elif fitted := backbone.fit_tensor(name, tensor, ours[name]):
                plan.take[name], how = fitted
                plan.fitted.append((name, how))
            else:
                shapes = f"{tuple(tensor.shape)} in the weights"
                shapes += f", {tuple(ours[name].shape)} in the model"
                if pattern := _matching((name, raw), allow):
                    why = f"{shapes}; allowed by {pattern!r}"
                    plan.reinitialised.append((name, why))
                else:
                    plan.reshaped[name] = shapes
            seen[name] = raw
        elif _matching((raw, name), backbone.ignored):
            plan.skipped.append((raw, "pretraining head"))
        elif _is_dropped(name, backbone):
            plan.skipped.append((raw, "stage dropped by backbone.keep"))
        elif pattern := _matching((raw, name), allow):
            plan.skipped.append((raw, f"allowed by {pattern!r}"))
        else:
            plan.unknown.append(raw)
    # A tied tensor is stored once, under one of its names.
    present = {id(ours[name]) for name in seen}
    for name in ours:
        if name in seen or id(ours[name]) in present:
            continue
        if (origin := backbone.copies.get(name, "")) in seen:
            plan.take[name] = theirs[seen[origin]]
            continue
        if pattern := _matching((name,), allow):
            why = f"not in the weights; allowed by {pattern!r}"
            plan.reinitialised.append((name, why))
        elif _matching((name,), backbone.optional):
            plan.reinitialised.append((name, "not in the weights, which need not be"))
        elif name.replace("num_batches_tracked", "running_mean") in seen:
            # torch's own loading fills it in as well: nothing is computed from it.
            plan.reinitialised.append((name, "a counter that older files lack"))
        else:
            plan.missing.append(name)
    return plan


def _upstream(name: str, ours: Mapping[str, Tensor], backbone: Backbone) -> str:
    """The name that a source's tensor has in the bare upstream model of today.

    A model with a head wraps the backbone (``bert.``), a file may lack the wrapper of
    ours, and old files have old names for some parameters (``gamma``); the backbone's
    ``wrappers`` and ``renames`` tell.
    """
    if name in ours:
        return name
    wrappers: Iterable[str] = getattr(backbone, "wrappers", ())
    renames: Iterable[tuple[str, str]] = getattr(backbone, "renames", ())
    own = tuple(filter(None, backbone.upstream.values()))
    for wrapper in wrappers:
        if name.startswith(own):
            break
        if name.startswith(wrapper):
            name = name.removeprefix(wrapper)
        elif f"{wrapper}{name}".startswith(own):
            name = f"{wrapper}{name}"
        else:
            continue
        break
    if name in ours:
        return name
    for old, new in renames:
        renamed = name.removesuffix(old) + new
        if name.endswith(old) and renamed in ours:
            return renamed
    return name


def _is_dropped(name: str, backbone: Backbone) -> bool:
    gone = tuple(f"stages.{stage}." for stage in backbone.dropped)
    best = max(
        (pair for pair in backbone.upstream.items() if name.startswith(pair[1])),
        key=lambda pair: len(pair[1]),
        default=("", ""),
    )
    return bool(best[1]) and best[0].startswith(gone)


def _matching(names: Iterable[str], patterns: Iterable[str]) -> str:
    """The first pattern that matches one of the names, or nothing."""
    names = tuple(names)
    return next((p for p in patterns if any(fnmatchcase(n, p) for n in names)), "")


def _faults(plan: _Plan, where: str) -> list[Fault]:
    """All that is wrong; the last one brings the line that would allow it."""
    allowable = [*plan.missing, *plan.unknown, *plan.reshaped]
    if allowable and not plan.take:
        return [
            Fault(
                "no tensor of the weights fits this backbone",
                where,
                f"the weights have {few(plan.unknown or plan.reshaped)}, "
                f"the model wants {few(plan.missing or plan.reshaped)}",
                "choose the backbone that these weights belong to",
            )
        ]
    faults = [replace(fault, where=where) for fault in plan.faults]
    for what, names, others in (
        ("is not in the weights", plan.missing, plan.unknown),
        ("has no place in the model", plan.unknown, plan.missing),
    ):
        faults += [
            Fault(f"{name!r} {what}", where, fix=_near(name, others))
            for name in names[:SHOWN]
        ]
        if len(names) > SHOWN:
            more = f"{len(names) - SHOWN} more: {what}"
            faults.append(Fault(more, where, f"the last one is {names[-1]!r}"))
    faults += [
        Fault(f"{name!r} has another shape: {shapes}", where)
        for name, shapes in plan.reshaped.items()
    ]
    if allowable:
        line = f"backbone.allow = {json.dumps(_patterns(allowable))}"
        fix = f"if all this is meant: {line}"
        if faults[-1].fix:
            fix = f"{faults[-1].fix}; {fix}"
        faults[-1] = replace(faults[-1], fix=fix)
    return faults


def _near(name: str, others: Sequence[str]) -> str:
    match = get_close_matches(name, others, n=1, cutoff=0.6)
    return f"is it {match[0]!r}?" if match else ""


def _patterns(names: Sequence[str]) -> list[str]:
    """Few glob patterns that match all the names: as they are, or ever less exact."""
    numbered = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    first = dict.fromkeys(
        name.partition(".")[0] + ".*" for name in names if "." in name
    )
    whole = [name for name in names if "." not in name]
    for patterns in (list(names), list(numbered)):
        if len(patterns) <= 6:
            return patterns
    return [*first, *whole]
