"""The head of causal language models: loss of the next token, and generation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.errors import UserError
from headstart.heads import Head
from headstart_nlp.options import GenerationOptions
from headstart_nlp.token_loss import token_losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from headstart.model import Model
    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_nlp.settings import LanguageModelSettings

TEMPERATURE = {"text": 0.8, "conversation": 0.0}
"""By kind of task: a story wants to go on, an answer wants to be right."""
PROBE_TOKENS = 64
GENERAL_TOKENS = 8192
GENERAL_BATCH = 2048
"""Tokens of a report's samples; of general text that is read, and at a time: about
ten seconds for a model of 100 million parameters on two cores."""
IGNORED = -100


class LanguageModel(Head):
    """Each token predicts the one behind it; without parameters of its own.

    The loss is the mean cross entropy of the tokens whose label is not -100. Outputs
    are sums over each row, which is a document wherever models are evaluated.

    Args:
        settings: Label smoothing, which is for training alone.
        feature: The logits, (batch, tokens, vocabulary).
        task: ``kind``, ``probe`` (what the report shows from before and after), and
            ``tokenizer`` where it is not that of the weights.
    """

    def __init__(
        self,
        settings: LanguageModelSettings,
        feature: Feature,
        task: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.feature = feature.name
        self.reads = (feature.name,)
        self.label_smoothing = settings.label_smoothing
        self.task = task

    def forward(self, state: State) -> State:
        """Add ``token_loss`` (batch, tokens) float32 where there are labels.

        At each token the loss of the one behind it; 0 where that does not count.
        """
        if "labels" not in state:
            return dict(state)
        targets = _next(state["labels"])
        smoothing = self.label_smoothing if self.training else 0.0
        flat = state[self.feature].flatten(0, 1)
        losses = token_losses(flat, targets.flatten(), smoothing)
        return {**state, "token_loss": losses.view_as(targets)}

    def loss(self, state: State) -> Tensor:
        count = self.weight(state).clamp(min=1)
        total: Tensor = state["token_loss"].sum() / count
        return total

    def weight(self, batch: State) -> Tensor:
        """Tokens in the batch that count."""
        labels: Tensor = batch["labels"]
        return labels[:, 1:].ge(0).sum().float()

    def infer(self, model: Model, batch: State) -> State:
        """One pass; when ``headstart predict`` asks, what the model makes of prompts.

        Adds ``continuations``, for each row a list of ``text``, ``tokens``, ``ended``.
        """
        if not isinstance(self.options, GenerationOptions):
            return super().infer(model, batch)
        from headstart_nlp.generation import prompts_of

        prompts = prompts_of(batch)
        return {**batch, "continuations": self._generate(model, prompts, self.options)}

    def outputs(self, state: State) -> dict[str, Any]:
        """Per row ``nll`` (nats), ``tokens`` that count, how many are ``right``.

        ``right`` are those that the model finds likeliest, ``whole`` tells whether all
        are. Without labels ``next_token``, the likeliest behind the row's last.
        """
        if "continuations" in state:
            return {"continuations": state["continuations"]}
        logits = state[self.feature]
        if "token_loss" not in state:
            return {"next_token": logits[_last(state, logits)].argmax(-1)}
        targets = _next(state["labels"])
        counted = targets >= 0
        right = (logits.argmax(-1) == targets) & counted
        tokens, hits = counted.sum(1), right.sum(1)
        return {
            "nll": state["token_loss"].sum(1),
            "tokens": tokens,
            "right": hits,
            "whole": hits == tokens,
        }

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``text``, ``tokens`` and how it ``ended``; under ``samples`` if several.

        Of what was only scored, ``perplexity`` and ``tokens``, or ``next_token``.
        """
        if "continuations" in outputs:
            return [
                found[0] if len(found) == 1 else {"samples": found}
                for found in outputs["continuations"]
            ]
        if "next_token" in outputs:
            return [{"next_token": token} for token in outputs["next_token"].tolist()]
        pairs = zip(outputs["nll"].tolist(), outputs["tokens"].tolist(), strict=True)
        return [
            {"perplexity": math.exp(nll / count) if count else None, "tokens": count}
            for nll, count in pairs
        ]

    def probe(self, model: Model) -> dict[str, Any]:
        """Samples from held-out prompts, and the loss on general text.

        Returns:
            ``samples``, a text for each prompt of the task; ``general_nll`` (nats in
            all) over ``general_tokens`` of ``general_documents``. Only what the task
            asks for.
        """
        asked = self.task.get("probe") or {}
        prompts = [prompt["ids"] for prompt in asked.get("prompts") or ()]
        documents = (asked.get("general") or {}).get("documents") or ()
        found: dict[str, Any] = {}
        training = model.training
        model.eval()
        if prompts:
            options = GenerationOptions(max_tokens=PROBE_TOKENS)
            texts = self._generate(model, prompts, options)
            found["samples"] = [several[0]["text"] for several in texts]
        if documents:
            found |= self._general(model, documents)
        model.train(training)
        return found

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_nlp.language_sections import sections

        return sections(evaluation)

    def _generate(
        self, model: Model, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> list[list[dict[str, Any]]]:
        from headstart_nlp.generation import generate, open_tokenizer

        if options.temperature is None:
            usual = TEMPERATURE[self.task["kind"]]
            options = options.model_copy(update={"temperature": usual})
        given = model.backbone.preprocessing.get("tokenizer")
        tokenizer = open_tokenizer(str(self.task.get("tokenizer") or given or ""))
        found = generate(model.backbone, prompts, options, tokenizer, self.emit)
        return [[vars(each) for each in several] for several in found]

    def _general(
        self, model: Model, documents: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """The loss on general text, the same documents every time."""
        context = model.backbone.preprocessing.get("max_positions") or GENERAL_BATCH
        limit = min(context, GENERAL_BATCH)
        device = next(model.parameters()).device
        nll, tokens, count = 0.0, 0, 0
        for batch in _batches(_first(documents, limit)):
            state = {key: value.to(device) for key, value in batch.items()}
            with torch.no_grad():
                outputs = self.outputs(model(model.prefix(state)))
            nll += float(outputs["nll"].double().sum())
            tokens += int(outputs["tokens"].sum())
            count += len(outputs["tokens"])
        return {
            "general_nll": nll,
            "general_tokens": tokens,
            "general_documents": count,
        }


def build_language_model(
    settings: LanguageModelSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> LanguageModel:
    """The head ``nlp/language-model``.

    Raises:
        UserError: The task is of another kind; the backbone predicts no tokens.
    """
    if task["kind"] not in TEMPERATURE:
        raise UserError(
            "the head 'nlp/language-model' is for texts and conversations, the data's "
            f"kind is {task['kind']!r}",
            where="head.name",
            fix="take nlp/corpus or nlp/conversations as data, or another head",
        )
    logits = [feature for feature in features.values() if feature.kind == "logits"]
    if not logits:
        raise UserError(
            "the backbone does not predict the next token",
            where="backbone.name",
            why=f"it leaves {', '.join(features) or 'nothing'}",
            fix="choose a causal language model, e.g. nlp/causal",
        )
    return LanguageModel(settings, logits[0], task)


def sample_labels(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid labels for tests, (batch, 12): prompts and first tokens do not count."""
    rows, columns = torch.arange(batch_size)[:, None], torch.arange(12)
    labels = (rows * 12 + columns * 7) % 64
    return {"labels": labels.masked_fill(columns < 1 + rows % 4, IGNORED)}


def _next(labels: Tensor) -> Tensor:
    """At each token the label of the one behind it, (batch, tokens)."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)


def _last(state: State, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each row's last token that is no padding."""
    rows = torch.arange(len(logits), device=logits.device)
    return rows, state["segments"].gt(0).sum(1).clamp(min=1) - 1


def _first(documents: Sequence[Sequence[int]], limit: int) -> list[np.ndarray]:
    """The first documents, each cut at a limit, as far as a report reads."""
    cut = [np.array(document[:limit]) for document in documents if len(document) > 1]
    total = np.cumsum([len(document) for document in cut])
    return cut[: max(1, int((total <= GENERAL_TOKENS).sum()))]


def _batches(documents: Sequence[np.ndarray]) -> Iterator[State]:
    """Documents of similar length together, padded on the right."""
    waiting = sorted(documents, key=len, reverse=True)
    while waiting:
        size = max(1, GENERAL_BATCH // len(waiting[0]))
        rows, waiting = waiting[:size], waiting[size:]
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        positions = torch.arange(int(lengths.max())).expand(len(rows), -1)
        there = positions < lengths
        ids = torch.zeros_like(positions)
        ids[there] = torch.from_numpy(np.concatenate(rows)).long()
        yield {
            "input_ids": ids,
            "positions": positions * there,
            "segments": there.long(),
            "labels": ids.masked_fill(~there | (positions == 0), IGNORED),
        }
