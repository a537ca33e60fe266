"""The language-model head against torch, transformers and plain NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from headstart.errors import UserError
from headstart.report.parts import Evaluation
from headstart.specs import Feature
from headstart_nlp import language_metrics, language_sections, token_loss
from headstart_nlp.language_model import (
    LanguageModel,
    build_language_model,
    sample_labels,
)
from headstart_nlp.settings import LanguageModelSettings
from headstart_nlp.token_loss import token_losses

TEXT = {"kind": "text"}
FEATURES = {"logits": Feature("logits", "logits", 64)}


def language_model(task: Any = TEXT, **settings: Any) -> LanguageModel:
    given = LanguageModelSettings(name="nlp/language-model", **settings)
    return build_language_model(given, FEATURES, task).eval()


def state(batch: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, 12, 64, generator=generator)
    return {"logits": logits, **sample_labels(TEXT, batch)}


def by_hand(given: dict[str, Any], row: int) -> tuple[float, int, int]:
    """Loss, tokens and right ones of a row, token by token in float64."""
    logits = given["logits"][row].double().numpy()
    nll, tokens, right = 0.0, 0, 0
    for place, label in enumerate(given["labels"][row].tolist()):
        if place and label >= 0:
            scores = logits[place - 1]
            nll += math.log(np.exp(scores).sum()) - scores[label]
            right += int(scores.argmax() == label)
            tokens += 1
    return nll, tokens, right


@pytest.mark.parametrize("chunk", [64, 200, 1 << 20])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [False, True])
def test_token_losses_equal_torchs(
    chunk: int, smoothing: float, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(token_loss.CHUNK, "cpu", chunk)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 50, (17,), generator=generator)
    if ignored:
        targets[::3] = -100
    given = torch.randn(17, 50, generator=generator)
    gradient = torch.randn(17, generator=generator)
    pair = [given.clone().requires_grad_() for _ in range(2)]
    ours = token_losses(pair[0], targets, smoothing)
    theirs = F.cross_entropy(
        pair[1], targets, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(ours, theirs)
    for losses in (ours, theirs):
        (losses * gradient).sum().backward()
    torch.testing.assert_close(pair[0].grad, pair[1].grad)
    assert torch.equal(pair[0].detach(), given), "the logits are still needed"


def test_bf16_logits_are_scored_in_float32() -> None:
    given = state()
    given["logits"] = given["logits"].bfloat16().requires_grad_()
    head = language_model()
    loss = head.loss(head(given))
    exact = {**given, "logits": given["logits"].detach().float()}
    torch.testing.assert_close(loss, head.loss(head(exact)))
    loss.backward()
    assert given["logits"].grad.dtype == torch.bfloat16


def test_nothing_to_predict_is_no_loss() -> None:
    given = state()
    given["labels"] = torch.full((4, 12), -100)
    given["logits"].requires_grad_()
    head = language_model()
    loss = head.loss(head(given))
    loss.backward()
    assert loss.item() == 0.0 and float(head.weight(given)) == 0.0
    assert not given["logits"].grad.any()


def test_loss_is_transformers_own() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    labels = sample_labels(TEXT, 4)["labels"]
    with torch.no_grad():
        theirs = model(input_ids=labels.clamp(min=0), labels=labels)
    head = language_model()
    ours = head.loss(head({"logits": theirs.logits, "labels": labels}))
    torch.testing.assert_close(ours, theirs.loss)


def test_parts_average_to_the_whole() -> None:
    given = state()
    head = language_model()
    whole, parts = head.loss(head(given)), torch.zeros(())
    for rows in (slice(0, 1), slice(1, 4)):
        part = {key: value[rows] for key, value in given.items()}
        parts += head.loss(head(part)) * head.weight(part)
    torch.testing.assert_close(parts / head.weight(given), whole)


def test_smoothing_is_for_training_alone() -> None:
    given, plain = state(), language_model()
    head = language_model(label_smoothing=0.2)
    assert torch.equal(head.loss(head(given)), plain.loss(plain(given)))
    targets = given["labels"][:, 1:].flatten()
    flat = given["logits"][:, :-1].flatten(0, 1)
    expected = F.cross_entropy(flat, targets, label_smoothing=0.2)
    head.train()
    torch.testing.assert_close(head.loss(head(given)), expected)


def test_outputs_are_sums_over_each_row() -> None:
    given = state()
    # A row that greedy decoding gives word for word.
    given["logits"][1, :-1].scatter_(1, given["labels"][1, 1:, None].clamp(min=0), 99.0)
    head = language_model()
    outputs = head.outputs(head(given))
    for row in range(4):
        nll, tokens, right = by_hand(given, row)
        assert float(outputs["nll"][row]) == pytest.approx(nll, rel=1e-5)
        assert (int(outputs["tokens"][row]), int(outputs["right"][row])) == (
            tokens,
            right,
        )
    assert outputs["whole"].tolist() == [False, True, False, False]
    found = head.decode(outputs)
    nll, tokens, _ = by_hand(given, 2)
    assert found[2]["tokens"] == tokens
    assert found[2]["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)


def test_without_labels_the_next_token_is_told() -> None:
    given = state(2)
    del given["labels"]
    given["segments"] = torch.tensor([[1] * 12, [1] * 5 + [0] * 7])
    head = language_model()
    expected = [
        int(given["logits"][0, 11].argmax()),
        int(given["logits"][1, 4].argmax()),
    ]
    found = head.decode(head.outputs(head(given)))
    assert found == [{"next_token": token} for token in expected]


def test_metrics_are_over_all_tokens() -> None:
    given, head = state(9), language_model()
    outputs = head.outputs(head(given))
    rows = [by_hand(given, row) for row in range(9)]
    nll, tokens, right = map(sum, zip(*rows, strict=True))
    perplexity = language_metrics.perplexity(TEXT)
    accuracy = language_metrics.token_accuracy(TEXT)
    for part in (slice(0, 2), slice(2, 9)):
        perplexity.update(outputs["nll"][part], outputs["tokens"][part])
        accuracy.update(outputs["right"][part], outputs["tokens"][part])
    assert float(perplexity.compute()) == pytest.approx(math.exp(nll / tokens))
    assert float(accuracy.compute()) == pytest.approx(right / tokens)


def test_perplexity_of_a_fair_die_is_its_faces() -> None:
    metric = language_metrics.perplexity(TEXT)
    metric.update(
        torch.tensor([3 * math.log(6), 2 * math.log(6)]), torch.tensor([3, 2])
    )
    assert float(metric.compute()) == pytest.approx(6)


def test_greedy_match_leaves_out_empty_documents() -> None:
    whole, tokens = torch.tensor([True, True, False]), torch.tensor([0, 4, 2])
    metric = language_metrics.greedy_match(TEXT)
    metric.update(whole, tokens)
    assert float(metric.compute()) == 0.5
    outputs = {"whole": whole.numpy(), "tokens": tokens.numpy()}
    scores = language_metrics.greedy_match_scores(TEXT, outputs)
    np.testing.assert_array_equal(scores, [np.nan, 1.0, 0.0])


def test_scores_are_shares_in_the_sums() -> None:
    outputs = {
        "nll": np.array([3.0, 0.0, 1.0]),
        "right": np.array([1, 0, 2]),
        "tokens": np.array([2, 0, 4]),
    }
    np.testing.assert_array_equal(
        language_metrics.perplexity_scores(TEXT, outputs),
        [[3.0, 2.0], [np.nan, np.nan], [1.0, 4.0]],
    )
    np.testing.assert_array_equal(
        language_metrics.token_accuracy_scores(TEXT, outputs),
        [[1.0, 2.0], [np.nan, np.nan], [2.0, 4.0]],
    )


def test_what_does_not_fit_is_refused() -> None:
    settings = LanguageModelSettings(name="nlp/language-model")
    with pytest.raises(UserError, match="'single-label'"):
        build_language_model(settings, FEATURES, {"kind": "single-label"})
    with pytest.raises(UserError, match="does not predict the next token"):
        build_language_model(settings, {"hidden": Feature("hidden", "tokens")}, TEXT)


def evaluation(**varying: Any) -> Evaluation:
    shown = [{"id": f"d{i}", "text": f"text {i}"} for i in range(3)]
    outputs = {"nll": np.array([2.0, 9.0, 0.0]), "tokens": np.array([2, 3, 0])}
    given: dict[str, Any] = {"metrics": {}, "task": TEXT, **varying}
    return Evaluation("test", outputs=outputs, samples=shown, **given)


def test_hardest_documents_come_first() -> None:
    section = language_sections.hardest(evaluation())
    assert section is not None
    assert section.tables[0].columns == ("id", "text", "tokens", "loss a token")
    assert section.tables[0].rows == (
        ("d1", "text 1", 3, 3.0),
        ("d0", "text 0", 2, 1.0),
    )


def test_samples_stand_beside_their_reference() -> None:
    prompts = [{"text": "Once", "ids": [1], "reference": "upon a time"}]
    given = evaluation(
        task={"kind": "text", "probe": {"prompts": prompts}},
        before={"samples": ["the the"]},
        after={"samples": ["upon"]},
    )
    section = language_sections.samples(given)
    assert section is not None
    assert section.tables[0].rows == (("Once", "the the", "upon", "upon a time"),)
    assert language_sections.samples(evaluation()) is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(20.0, 30.0, "forgot"), (20.0, 20.1, "Nothing was"), (20.0, 15.0, "even fell")],
)
def test_forgetting_is_said_plainly(before: float, after: float, said: str) -> None:
    def probe(perplexity: float) -> dict[str, Any]:
        nll = 10 * math.log(perplexity)
        return {"general_nll": nll, "general_tokens": 10, "general_documents": 1}

    task = {"kind": "text", "probe": {"general": {"name": "essays"}}}
    section = language_sections.general_text(
        evaluation(task=task, before=probe(before), after=probe(after))
    )
    assert section is not None and said in section.text and "essays" in section.text
    name, first, second, change = section.tables[0].rows[-1]
    assert name == "essays"
    assert (first, second) == (pytest.approx(before), pytest.approx(after))
    assert change == pytest.approx(after / before - 1)
    assert language_sections.general_text(evaluation()) is None
