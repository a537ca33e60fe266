"""The head of pretraining, against transformers' own model and by hand."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_speech.backbones import build_wav2vec2
from headstart_speech.catalogue import TINY
from headstart_speech.contrastive import (
    ContrastiveHead,
    build_contrastive,
    sample_masks,
)
from headstart_speech.masks import distractors, hidden_spans
from headstart_speech.pretraining_metrics import codebook_perplexity
from headstart_speech.settings import ContrastiveSettings, WaveformSettings

if TYPE_CHECKING:
    from pathlib import Path

TASK = {"kind": "unlabelled-audio", "rate": 16000}
SIZES = {"groups": 2, "codes": 40, "code_width": 12, "width": 10}
FEATURES = {
    "hidden": Feature("hidden", "tokens", 16, 320),
    "quantizable": Feature("quantizable", "tokens", 8, 320, "projection"),
}
FRAMES = torch.tensor([30, 22, 13])


def settings(**values: Any) -> ContrastiveSettings:
    return ContrastiveSettings(name="speech/contrastive", **{**SIZES, **values})


def head(seed: int = 0, **values: Any) -> ContrastiveHead:
    torch.manual_seed(seed)
    return build_contrastive(settings(**values), FEATURES, TASK)


def upstream(**values: Any) -> Wav2Vec2ForPreTraining:
    """A tiny model without dropout, whose layers and codebook have our sizes."""
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        num_codevector_groups=2,
        num_codevectors_per_group=values.pop("codes", 40),
        codevector_dim=12,
        proj_codevector_dim=10,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        **values,
    )
    torch.manual_seed(0)
    return Wav2Vec2ForPreTraining(config)


def batch(frames: Tensor = FRAMES, negatives: int = 6) -> dict[str, Tensor]:
    """Hidden spans and distractors of clips with so many frames."""
    generator = torch.Generator().manual_seed(1)
    width = int(frames.max())
    masked = hidden_spans(
        frames, width, probability=0.65, length=3, generator=generator
    )
    drawn = distractors(masked, frames, negatives, generator)
    return {"frames": frames, "masked": masked, "negatives": drawn}


def state(seed: int = 0, **values: Any) -> dict[str, Tensor]:
    """What a backbone would leave, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = batch(**values)
    shape = rows["masked"].shape
    hidden = torch.randn(*shape, 16, generator=generator)
    features = torch.randn(*shape, 8, generator=generator)
    return {**rows, "hidden": hidden, "quantizable": features}


def copied(model: Wav2Vec2ForPreTraining, **values: Any) -> ContrastiveHead:
    ours = head(seed=1, codes=model.config.num_codevectors_per_group, **values)
    theirs = {k: v for k, v in model.state_dict().items() if "wav2vec2." not in k}
    missing = ours.load_state_dict(theirs, strict=False)
    assert missing.missing_keys == ["updates"] and not missing.unexpected_keys
    return ours


def both(
    model: Wav2Vec2ForPreTraining, ours: ContrastiveHead
) -> tuple[Any, dict[str, Tensor]]:
    """Their results and our state, on the same features, masks and noise."""
    generator = torch.Generator().manual_seed(2)
    waveform = torch.randn(3, 9_600, generator=generator)
    # Of one length: what transformers does behind a clip's end is not the head's.
    rows = batch(torch.tensor([30, 30, 30]))
    behind = torch.arange(3)[:, None, None] * 30
    kept: dict[str, Tensor] = {}

    def keep(_: Any, __: Any, result: Any) -> None:
        # Copied: the forward pass goes on to write the mask into the first.
        kept["hidden"] = result.last_hidden_state.detach().clone()
        kept["quantizable"] = result.extract_features.detach().clone()

    hook = model.wav2vec2.register_forward_hook(keep)
    torch.manual_seed(3)
    theirs = model(
        waveform,
        mask_time_indices=rows["masked"],
        sampled_negative_indices=rows["negatives"] + behind,
    )
    hook.remove()
    assert kept["hidden"].shape == (3, 30, 16)
    torch.manual_seed(3)
    return theirs, ours({**rows, **kept})


def test_evaluation_equals_transformers() -> None:
    model = upstream().eval()
    ours = copied(model).eval()
    with torch.no_grad():
        theirs, found = both(model, ours)
    hidden = found["masked"].sum()
    torch.testing.assert_close(ours.loss(found), theirs.contrastive_loss / hidden)
    # Their diversity is of the codes of this batch: the metric says the same of it.
    metric = codebook_perplexity(TASK)
    metric.update(ours.outputs(found)["codes"])
    used = metric.compute()
    assert float(used) == pytest.approx(float(theirs.codevector_perplexity))
    whole = ours.loss(found) + 0.1 * (80 - used) / 80
    assert float(whole * hidden) == pytest.approx(float(theirs.loss))


def test_training_equals_transformers() -> None:
    """With the same Gumbel noise, loss and gradients are the same."""
    model = upstream(codes=1000).train()
    ours = copied(model, gumbel_start=1.5).train()
    model.set_gumbel_temperature(1.5)
    theirs, found = both(model, ours)
    # So many codes that no distractor has those of its frame: those differ by rounding.
    asked = found["candidates"].sum(2)[found["masked"]]
    assert (asked == 7).all()
    loss = ours.loss(found)
    torch.testing.assert_close(loss, theirs.loss / found["masked"].sum())
    loss.backward()
    (theirs.loss / found["masked"].sum()).backward()
    for name, parameter in ours.named_parameters():
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_with_its_backbone_equals_transformers() -> None:
    """From waveform to loss, and gradients down to the first convolution."""
    given = WaveformSettings(
        name="speech/wav2vec2", normalize=False, **TINY["speech/wav2vec2"]
    )
    backbone = build_wav2vec2(given, None, {}).eval()
    quantizable = Feature("quantizable", "tokens", 16, 320, "projection")
    features = {**backbone.features, "quantizable": quantizable}
    ours = build_contrastive(settings(), features, TASK).eval()
    sizes = {
        "num_codevector_groups": 2,
        "num_codevectors_per_group": 40,
        "codevector_dim": 12,
        "proj_codevector_dim": 10,
        "mask_time_prob": 0.05,
    }
    config = Wav2Vec2Config(**{**backbone.config, **sizes})
    model = Wav2Vec2ForPreTraining(config).eval()
    wrapped = {f"wav2vec2.{k}": v for k, v in backbone.upstream_state_dict().items()}
    model.load_state_dict({**wrapped, **dict(ours.named_parameters())})
    rows = batch(torch.tensor([12, 12]))
    waveform = torch.randn(2, 3920, generator=torch.Generator().manual_seed(0))
    behind = torch.arange(2)[:, None, None] * 12
    expected = (
        model(
            waveform,
            mask_time_indices=rows["masked"],
            sampled_negative_indices=rows["negatives"] + behind,
        ).contrastive_loss
        / rows["masked"].sum()
    )
    lengths = torch.full((2,), 3920)
    state = backbone.run({**rows, "waveform": waveform, "lengths": lengths})
    loss = ours.loss(ours(ours.reduce(state)))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for name in ("masked_spec_embed", "feature_extractor.conv_layers.0.conv.weight"):
        (mine,) = (
            p
            for n, p in backbone.named_parameters()
            if backbone.upstream_name(n) == name
        )
        theirs = model.get_parameter(f"wav2vec2.{name}").grad
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-3, atol=1e-6)


def test_parts_average_to_the_whole() -> None:
    ours, rows = head().eval(), state()
    whole = ours.loss(ours(rows))
    sums = []
    for piece in (slice(0, 1), slice(1, 3)):
        part = {key: value[piece] for key, value in rows.items()}
        sums.append(ours.loss(ours(part)) * ours.weight(part))
    torch.testing.assert_close(sum(sums) / ours.weight(rows), whole)
    assert ours.weight(rows) == rows["masked"].sum()


def test_loss_by_hand() -> None:
    """One hidden frame, with a distractor drawn twice and one of its own codes."""
    ours = head().eval()
    rows = state(frames=torch.tensor([4]))
    rows["quantizable"][0, 3] = rows["quantizable"][0, 1]
    rows["masked"] = torch.tensor([[False, True, False, False]])
    rows["negatives"] = torch.zeros(1, 4, 4, dtype=torch.long)
    rows["negatives"][0, 1] = torch.tensor([2, 0, 3, 2])
    vectors, codes, _ = ours.quantizer(rows["quantizable"], torch.ones(()))
    assert len(codes[0].unique(dim=0)) == 3, "frames 0, 1 and 2 must differ"
    predicted = ours.project_hid(rows["hidden"])[0, 1]
    target = ours.project_q(vectors)[0]
    score = [functional.cosine_similarity(predicted, t, dim=0) / 0.1 for t in target]
    expected = -score[1] + torch.log(
        score[1].exp() + 2 * score[2].exp() + score[0].exp()
    )
    expected = expected.detach()
    found = ours(rows)
    torch.testing.assert_close(ours.loss(found).detach(), expected)
    outputs = ours.outputs(found)
    assert outputs["masked"].tolist() == [1]
    assert outputs["right"].tolist() == [int(score[1] > max(score[0], score[2]))]
    assert outputs["codes"][0].tolist() == [codes[0, 1].tolist()]
    with torch.no_grad():
        (row,) = ours.decode(ours.outputs(ours(rows)))
    assert row["loss"] == pytest.approx(float(expected), abs=1e-4)


def test_frames_that_are_not_hidden_do_not_count() -> None:
    ours, rows = head().eval(), state()
    first = ours.loss(ours(rows))
    changed = copy.deepcopy(rows)
    changed["hidden"][~rows["masked"]] = 7.0
    changed["quantizable"][~rows["masked"]] = -3.0
    assert torch.equal(ours.loss(ours(changed)), first)


def test_a_clip_does_not_depend_on_its_batch() -> None:
    ours, rows = head().eval(), state()
    together = ours.outputs(ours(rows))
    for place, frames in enumerate(FRAMES.tolist()):
        alone = {k: v[place : place + 1] for k, v in rows.items()}
        for key in ("hidden", "quantizable", "masked", "negatives"):
            alone[key] = alone[key][:, :frames]
        found = ours.outputs(ours(alone))
        assert np.array_equal(found["codes"][0], together["codes"][place])
        assert found["right"][0] == together["right"][place]
        torch.testing.assert_close(found["nll"][0], together["nll"][place])


def test_a_model_that_knows_is_right_and_one_that_does_not_is_at_chance() -> None:
    ours = head(code_width=10).eval()
    rows = state(frames=torch.full((40,), 30), negatives=9)
    found = ours.outputs(ours(rows))
    chance = found["right"].sum() / found["masked"].sum()
    assert 0.05 < chance < 0.2
    # What is predicted is what was quantised.
    vectors, *_ = ours.quantizer(rows["quantizable"], torch.ones(()))
    ours.project_hid = torch.nn.Linear(10, 10)
    ours.project_hid.load_state_dict(ours.project_q.state_dict())
    found = ours.outputs(ours({**rows, "hidden": vectors}))
    assert found["right"].sum() == found["masked"].sum()


def test_a_collapsed_codebook_is_not_taken_for_success() -> None:
    ours, rows = head().eval(), state()
    with torch.no_grad():
        ours.quantizer.weight_proj.weight.zero_()
    found = ours(rows)
    assert ours.loss(found) == 0
    outputs = ours.outputs(found)
    assert outputs["right"].tolist() == [0, 0, 0]
    metric = codebook_perplexity(TASK)
    metric.update(outputs["codes"])
    (fault,) = ours.diagnose({"codebook-perplexity": float(metric.compute())})
    assert "2.0 codes of 80" in fault.what
    assert "raise head.diversity from 0.1" in fault.fix
    (fault,) = head(diversity=0).diagnose({"codebook-perplexity": 2.0})
    assert "head.diversity: it is 0" in fault.fix
    assert not ours.diagnose({"codebook-perplexity": 20.0})
    assert not ours.diagnose({"loss": 1.0})


def test_diversity_asks_for_all_codes() -> None:
    """Gradients of it alone spread the codes, also from a codebook in ruins."""
    ours, rows = head(diversity=1.0).train(), state()
    with torch.no_grad():
        ours.quantizer.weight_proj.weight.mul_(0.01)
        ours.quantizer.weight_proj.bias[::40] = 200.0
    optimizer = torch.optim.SGD([ours.quantizer.weight_proj.bias], lr=1.0)
    found = ours(rows)
    torch.testing.assert_close(found["perplexity"], torch.tensor(2.0))
    ours.loss(found).backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    with torch.no_grad():
        ours.quantizer.weight_proj.bias[::40] = 4.0
    before = float(ours(rows)["perplexity"].detach())
    for _ in range(60):
        optimizer.zero_grad()
        found = ours(rows)
        (80 - found["perplexity"]).div(80).backward()
        optimizer.step()
    assert float(ours(rows)["perplexity"].detach()) > before + 10


def test_temperature_decays_with_saved_passes() -> None:
    ours, rows = (
        head(gumbel_start=2.0, gumbel_decay=0.5, gumbel_end=0.3).train(),
        state(),
    )
    seen = []
    for _ in range(4):
        seen.append(float(ours.gumbel_temperature))
        ours(rows)
    assert seen == [2.0, 1.0, 0.5, pytest.approx(0.3)]
    resumed = head(seed=5, gumbel_start=2.0, gumbel_decay=0.5).train()
    resumed.load_state_dict(ours.state_dict())
    assert resumed.updates == 4
    ours.eval()(rows)
    assert ours.updates == 4, "evaluation is no training pass"


def test_training_draws_codes_by_chance_and_evaluation_does_not() -> None:
    ours, rows = head().train(), state()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ours(rows)["codes"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    ours.eval()
    best = ours.quantizer.weight_proj(rows["quantizable"]).view(3, 30, 2, 40).argmax(-1)
    assert torch.equal(ours(rows)["codes"], best)


def test_a_batch_without_hidden_frames_costs_nothing() -> None:
    ours = head().train()
    rows = state()
    rows["masked"] = torch.zeros_like(rows["masked"])
    rows["negatives"] = torch.zeros_like(rows["negatives"])
    assert ours.weight(rows) == 0
    loss = ours.loss(ours(rows))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    outputs = ours.eval().outputs(ours(rows))
    assert outputs["masked"].tolist() == [0, 0, 0]
    assert [len(codes) for codes in outputs["codes"]] == [0, 0, 0]


def test_predictions_are_codes() -> None:
    ours, rows = head().eval(), state()
    del rows["masked"], rows["negatives"]
    predictions = ours.decode(ours.outputs(ours(ours.reduce(rows))))
    assert [len(row["codes"]) for row in predictions] == FRAMES.tolist()
    assert all(len(codes) == 2 for codes in predictions[2]["codes"])


def test_half_precision_compares_in_float32() -> None:
    ours, rows = head().eval(), state()
    whole = ours(rows)
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(rows)
    assert half["logits"].dtype == torch.float32
    torch.testing.assert_close(ours.loss(half), ours.loss(whole), rtol=0.05, atol=0)


def test_published_pretraining_weights_fill_the_head(tmp_path: Path) -> None:
    ours, theirs = head(seed=4), upstream().state_dict()
    file = tmp_path / "model.safetensors"
    save_file(theirs, file)
    backbone = Backbone(
        {"projection": torch.nn.LayerNorm(8)},
        features=tuple(FEATURES.values()),
        upstream={"stages.projection.": "wav2vec2.feature_projection.layer_norm."},
        ignored=("wav2vec2.*",),
    )
    report = load_weights(backbone, Weights("here", tmp_path, (file,)), head=ours)
    assert len(report.head_loaded) == 7
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_a_backbone_without_what_is_quantised_is_refused() -> None:
    with pytest.raises(UserError, match="'quantizable'") as caught:
        build_contrastive(settings(), {"hidden": FEATURES["hidden"]}, TASK)
    assert "speech/wav2vec2" in caught.value.faults[0].fix


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of groups"):
        settings(groups=5)
    with pytest.raises(ValidationError, match="gumbel_end"):
        settings(gumbel_end=3.0)


def test_sampled_targets_are_valid() -> None:
    rows = sample_masks(TASK, 4)
    masked, negatives = rows["masked"], rows["negatives"]
    assert masked.shape == (4, 12) and masked.any(1).all()
    assert not masked[1, 3:].any() and not masked[2, 8:].any()
    chosen = masked.gather(1, negatives.view(4, -1)).view(negatives.shape)
    assert chosen[masked].all(), "distractors are hidden frames"
