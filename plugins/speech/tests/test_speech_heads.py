"""The transcription head: its loss, what it reads, what it says about a collapse."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.testing.parts import same
from headstart_speech.ctc import ctc_losses, scanned_losses
from headstart_speech.heads import CTCHead, build_ctc, sample_targets
from headstart_speech.layers import Doubling
from headstart_speech.options import TranscribeOptions
from headstart_speech.settings import CTCSettings

TASK = {
    "kind": "transcription",
    "vocabulary": ["<blank>", " ", "a", "b", "c"],
    "text": {"case": "lower"},
    "rate": 16000,
}
FEATURES = {"hidden": Feature("hidden", "tokens", 6, stride=320)}


def make_head(task: dict[str, Any] = TASK, **settings: Any) -> CTCHead:
    torch.manual_seed(0)
    return build_ctc(CTCSettings(name="speech/ctc", **settings), FEATURES, task)


def make_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.full((3, 4), -1)
    labels[0] = torch.tensor([2, 2, 1, 3])
    labels[1, :1] = 4
    return {
        "hidden": torch.randn(3, 9, 6, generator=generator),
        "frames": torch.tensor([9, 4, 6]),
        "labels": labels,
    }


def says(head: CTCHead, path: list[int]) -> dict[str, Any]:
    """The state of one clip in which these classes are the likeliest."""
    logits = torch.full((1, len(path), 5), -3.0)
    logits[0, torch.arange(len(path)), torch.tensor(path)] = 3.0
    return {"log_probs": logits.log_softmax(-1), "heard": torch.tensor([len(path)])}


def all_paths_loss(probabilities: np.ndarray, labels: list[int]) -> float:
    """By definition: the probability of every path that collapses to the labels."""
    total = 0.0
    frames, classes = probabilities.shape
    for path in itertools.product(range(classes), repeat=frames):
        if [k for k, _ in itertools.groupby(path) if k] == labels:
            total += np.prod(probabilities[np.arange(frames), path])
    return -np.log(total)


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1], [2, 1, 2]])
def test_loss_is_the_sum_over_all_paths(labels: list[int]) -> None:
    log_probs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    log_probs = log_probs.log_softmax(-1)
    padded = torch.tensor([labels + [-1] * (3 - len(labels))] * 2)
    found = ctc_losses(log_probs, padded, torch.tensor([5, 4]))
    for clip, frames in enumerate((5, 4)):
        expected = all_paths_loss(log_probs[clip, :frames].exp().numpy(), labels)
        assert float(found[clip]) == pytest.approx(expected, rel=1e-5)


def test_scan_equals_torch_in_values_and_gradients() -> None:
    """What runs on other devices, tried on this one."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 40, 7, generator=generator).mul(2).requires_grad_()
    labels = torch.randint(1, 7, (6, 9), generator=generator)
    labels[:, 3] = labels[:, 2]
    counts = torch.tensor([9, 8, 5, 1, 0, 9])
    labels[torch.arange(9) >= counts[:, None]] = 0
    # The last has too few frames for its labels, whatever the order.
    frames = torch.tensor([40, 33, 11, 5, 7, 8])
    weights = torch.randn(6, generator=generator)

    theirs = nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        labels,
        frames,
        counts,
        reduction="none",
        zero_infinity=True,
    )
    (expected,) = torch.autograd.grad((theirs * weights).sum(), logits)
    ours = scanned_losses(logits.log_softmax(-1), labels, counts, frames)
    lost = torch.isinf(ours)
    assert lost.tolist() == [False] * 5 + [True]
    (found,) = torch.autograd.grad((ours.masked_fill(lost, 0) * weights).sum(), logits)
    torch.testing.assert_close(ours[:5], theirs[:5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_clip_without_frames_has_no_likelihood() -> None:
    log_probs = torch.randn(1, 3, 4).log_softmax(-1)
    nothing, none = torch.full((1, 2), -1), torch.tensor([0])
    assert torch.isinf(ctc_losses(log_probs, nothing, none)).all()
    counts, labels = torch.tensor([0]), nothing.clamp(min=0)
    assert torch.isinf(scanned_losses(log_probs, labels, counts, none)).all()


def test_loss_is_a_mean_over_frames() -> None:
    head, state = make_head(dropout=0.0), make_state()
    with torch.no_grad():
        done = head(head.reduce(state))
    total = sum(
        float(
            ctc_losses(
                done["log_probs"][[i], :n], state["labels"][[i]], torch.tensor([n])
            )
        )
        for i, n in enumerate([9, 4, 6])
    )
    assert float(head.loss(done)) == pytest.approx(total / 19, rel=1e-5)
    assert float(head.weight(state)) == 19.0


@pytest.mark.parametrize("layer", ["bilstm", "conv", "transformer"])
@pytest.mark.parametrize("upsample", [1, 2])
def test_a_clip_does_not_depend_on_its_batch(layer: str, upsample: int) -> None:
    head = make_head(layers=2, layer=layer, width=8, upsample=upsample).eval()
    state = make_state()
    with torch.no_grad():
        together = head(head.reduce(state))
        other = {**state, "hidden": state["hidden"].clone()}
        for clip, frames in enumerate(state["frames"].tolist()):
            other["hidden"][clip, frames:] = 7.0
            cut = {key: value[[clip]] for key, value in state.items()}
            cut["hidden"] = cut["hidden"][:, :frames]
            alone = head(head.reduce(cut))["log_probs"][0]
            assert len(alone) == frames * upsample
            torch.testing.assert_close(together["log_probs"][clip, : len(alone)], alone)
        outputs = head.outputs(head(head.reduce(other)))
    assert outputs["prediction"] == head.outputs(together)["prediction"]
    torch.testing.assert_close(outputs["nll"], together["nll"])


@pytest.mark.parametrize("layer", ["bilstm", "conv", "transformer"])
def test_layers_see_both_sides_of_a_frame(layer: str) -> None:
    head = make_head(layers=1, layer=layer, width=8).eval()
    hidden = make_state()["hidden"].requires_grad_()
    state = head({"hidden": hidden, "frames": torch.tensor([9, 9, 9])})
    state["log_probs"][:, 4, 2].sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad.abs().sum((0, 2)) > 0)[[3, 4, 5]].all()


def test_gradients_reach_every_parameter() -> None:
    head = make_head(layers=1, width=8, upsample=2)
    head.loss(head(head.reduce(make_state()))).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_doubling_starts_with_every_frame_twice() -> None:
    hidden = torch.randn(2, 3, 6)
    with torch.no_grad():
        doubled = Doubling(6)(hidden)
    assert torch.equal(doubled, hidden.repeat_interleave(2, dim=1))


def test_doubled_frames_say_more_and_keep_their_times() -> None:
    state = {key: value[:1] for key, value in make_state().items()}
    state["frames"] = torch.tensor([4])
    plain, doubled = make_head(), make_head(upsample=2)
    # "aa b" needs five frames, and there are four.
    assert torch.isinf(plain(state)["nll"])[0]
    assert torch.isfinite(doubled(state)["nll"])[0]
    spoken = doubled.outputs(says(doubled, [0, 0, 2, 2, 0, 0]))
    assert spoken["words"][0][0]["start"] == pytest.approx(0.02)
    assert spoken["words"][0][0]["end"] == pytest.approx(0.04)


def test_clips_that_cannot_be_aligned_teach_nothing_and_are_counted() -> None:
    head, state = make_head(dropout=0.0).train(), make_state()
    state["frames"] = torch.tensor([4, 4, 6])
    state["hidden"].requires_grad_()
    done = head(head.reduce(state))
    loss = head.loss(done)
    loss.backward()
    assert torch.isfinite(loss)
    assert state["hidden"].grad is not None
    assert not state["hidden"].grad[0].any() and state["hidden"].grad[1].any()
    assert torch.isinf(head.outputs(done)["nll"]).tolist() == [True, False, False]
    (fault,) = head.diagnose({"blank-ratio": 0.5, "cer": 0.5})
    assert fault.what.startswith("1 of 3 clips were too short")
    assert head.diagnose({"blank-ratio": 0.5, "cer": 0.5}) == []


def test_outputs_have_what_metrics_read() -> None:
    head = make_head()
    state = says(head, [0, 2, 2, 0, 2, 3, 1, 1, 4, 0])
    state |= {"labels": torch.tensor([[2, 3, 1, 4, -1]]), "nll": torch.tensor([2.0])}
    outputs = head.outputs(state)
    assert outputs["prediction"] == ["aab c"]
    assert outputs["target"] == ["ab c"]
    assert outputs["blank"].tolist() == pytest.approx([0.3])
    assert outputs["frames"].tolist() == [10]
    words = [(w["word"], w["start"], w["end"]) for w in outputs["words"][0]]
    assert words == [("aab", 0.02, 0.12), ("c", 0.16, 0.18)]
    score = torch.tensor([3.0, -3, -3, -3, -3]).softmax(0)[0]
    assert outputs["words"][0][0]["score"] == pytest.approx(float(score), abs=1e-4)


def test_frames_behind_the_end_are_not_heard() -> None:
    head = make_head()
    state = says(head, [2, 0, 3, 4, 4])
    outputs = head.outputs({**state, "heard": torch.tensor([2])})
    assert outputs["prediction"] == ["a"]
    assert outputs["blank"].tolist() == [0.5]


def test_predictions_have_what_options_ask_for() -> None:
    head = make_head()
    outputs = head.outputs(says(head, [2, 0, 3]))
    (row,) = head.decode(outputs)
    assert row["text"] == "ab" and len(row["words"]) == 1 and "format" not in row
    for given, timed in (
        ({"format": "json"}, True),
        ({"format": "json", "timestamps": False}, False),
        ({"format": "srt", "timestamps": False}, True),
    ):
        head.options = TranscribeOptions(**given)
        (row,) = head.decode(outputs)
        assert row["format"] == given["format"] and ("words" in row) == timed


def test_reduction_and_state_are_left_alone() -> None:
    head, state = make_head().eval(), {**make_state(), "masked": torch.zeros(3)}
    before = copy.deepcopy(state)
    reduced = head.reduce(state)
    head(reduced)
    assert same(state, before)
    assert set(reduced) == {"hidden", "frames", "labels"}


def test_blank_starts_as_likely_as_asked_for() -> None:
    state = {"hidden": torch.zeros(1, 2, 6), "frames": torch.tensor([2])}
    for head, blank in ((make_head(), 0.6), (make_head(blank_start=0.2), 0.2)):
        shares = head(state)["log_probs"].exp()[0, 0].tolist()
        assert shares == pytest.approx([blank] + 4 * [(1 - blank) / 4])


CLASSES = ("<pad>", "<s>", "|", "B", "A", "z")


def test_pretrained_rows_go_to_the_same_characters() -> None:
    head = make_head()
    theirs = torch.arange(6.0)[:, None].expand(6, 6)
    found = head.adapt_classes(
        "linear.weight", theirs, head.linear.weight.detach(), CLASSES
    )
    assert found is not None
    # <blank> is <pad>, " " is |, a is A, b is B; c is new.
    assert found[:4, 0].tolist() == [0.0, 2.0, 4.0, 3.0]
    assert torch.equal(found[4], head.linear.weight[4])


def test_pretrained_rows_of_added_tokens_are_left() -> None:
    """vocab.json of a tokenizer whose <s> and </s> were added behind it."""
    ours = make_head().linear.bias.detach()
    found = make_head().adapt_classes("linear.bias", torch.arange(8.0), ours, CLASSES)
    assert found is not None and found[:4].tolist() == [0.0, 2.0, 4.0, 3.0]
    few = make_head().adapt_classes("linear.bias", torch.arange(5.0), ours, CLASSES)
    assert few is not None and torch.equal(few, ours)


def test_pretrained_rows_do_not_go_behind_new_layers() -> None:
    assert make_head().upstream == {"linear.": "lm_head."}
    assert make_head(layers=1, width=8).upstream == {}


def test_pretrained_rows_of_ambiguous_case_stay_apart() -> None:
    head = make_head({**TASK, "vocabulary": ["<blank>", " ", "a", "A", "é"]})
    theirs = torch.arange(1.0, 7.0)
    ours = head.linear.bias.detach()
    found = head.adapt_classes(
        "linear.bias", theirs, ours, ("-", "|", "A", "É", "x", "y")
    )
    assert found is not None
    expected = [1.0, 2.0, float(ours[2]), 3.0, 4.0]
    assert found.tolist() == pytest.approx(expected)


def test_pretrained_rows_of_unknown_characters_are_not_taken_by_place() -> None:
    head = make_head()
    ours = head.linear.bias.detach()
    found = head.adapt_classes("linear.bias", torch.zeros(5), ours, ())
    assert found is not None and torch.equal(found, ours)


COLLAPSED = {"blank-ratio": 0.999, "cer": 1.0, "loss": 2.0}


def test_a_head_that_speaks_is_not_diagnosed() -> None:
    head = make_head()
    for better in ({"blank-ratio": 0.9}, {"cer": 0.4}):
        assert head.diagnose({**COLLAPSED, **better}) == []
    # Long pauses between words that are right, where only these are measured.
    paused = {"blank-ratio": 0.99, "wer": 0.2, "loss": 2.0}
    assert [head.diagnose(paused) for _ in range(2)] == [[], []]
    assert head.diagnose({"loss": 1.0}) == []


def test_collapse_names_the_learning_rate() -> None:
    head = make_head()
    assert head.diagnose(COLLAPSED) == [], "all do so at first"
    (fault,) = head.diagnose(COLLAPSED)
    assert "99.9%" in fault.what and "learning_rate" in fault.fix
    assert head.diagnose({**COLLAPSED, "cer": 0.5}) == []
    assert head.diagnose(COLLAPSED) == [], "it spoke in between"
    (fault,) = make_head().diagnose({**COLLAPSED, "loss": float("nan")})
    assert "too high" in fault.why and "lower train.learning_rate" in fault.fix


def test_collapse_names_short_clips() -> None:
    head, state = make_head(), make_state()
    head.diagnose(COLLAPSED)
    state["frames"] = torch.tensor([6, 1, 2])
    head.loss(head.train()(head.reduce(state)))
    # Nine frames for five characters.
    (fault,) = head.diagnose(COLLAPSED)
    assert "1.8 frames" in fault.why and "upsample" in fault.fix


def test_collapse_names_the_vocabulary() -> None:
    many = [chr(0x4E00 + i) for i in range(300)]
    head = make_head({**TASK, "vocabulary": ["<blank>", " ", *many]})
    head.diagnose(COLLAPSED)
    (fault,) = head.diagnose(COLLAPSED)
    assert "302 characters" in fault.why


def test_other_tasks_and_features_are_refused() -> None:
    settings = CTCSettings(name="speech/ctc")
    with pytest.raises(UserError, match="speech/contrastive"):
        build_ctc(settings, FEATURES, {"kind": "unlabelled-audio", "rate": 16000})
    with pytest.raises(UserError, match="speech/wav2vec2"):
        build_ctc(settings, {"image": Feature("image", "map", 3)}, TASK)


def test_sample_targets_can_be_aligned() -> None:
    targets = sample_targets(TASK, 6)
    log_probs = torch.zeros(6, 4, 5).log_softmax(-1)
    losses = ctc_losses(log_probs, targets["labels"], targets["frames"])
    assert torch.isfinite(losses).all()
    assert targets["labels"].max() == 4
