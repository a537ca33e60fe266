"""CTC on a small wav2vec 2.0: our trainer beside a plain loop and transformers' own.

A small wav2vec 2.0 from random numbers, the same for all, its feature
encoder frozen; it normalises every frame (``feat_extract_norm = "layer"``), because
transformers can mask padding only in such networks. No dropout and no masks anywhere.
The plain loop is what one writes by hand around transformers' ``Wav2Vec2ForCTC``: our
batches, the sum of the clips' losses over their frames, fused AdamW, clipping, a linear
schedule. transformers' own example of CTC is the Trainer with a collator that pads by
the feature extractor, the mean of the clips' losses each over its characters, and clips
of similar length in one batch (sorted in chunks of at most a quarter of the data); that
gets as many clips a batch as ours have on average.
Both peers find the sounds at 16 kHz and normalised in memory; ours keeps them at 16 kHz
in 16 bits, and normalises each batch.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from common import publish, setting
from peer_loops import EQUAL, Job, cold_cache, hugging_face, ours, plain
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
from transformers.trainer_pt_utils import LengthGroupedSampler

from headstart.assembly import assemble
from headstart.batches import BatchParts
from headstart.distributed import World
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.assembly import Assembly
    from headstart.recipe import Recipe

LEARNING_RATE = 5e-4
RATE = 16_000
NETWORK = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": [128] * 7,
    "num_conv_pos_embeddings": 64,
    "num_conv_pos_embedding_groups": 16,
    # What follows is so that all must come out alike.
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "feat_extract_norm": "layer",
}
NOTABLE = 1e-5
OURS, CACHED = "ours", "ours, from the cache"
PLAIN, TRAINER = "plain loop, the same batches", "transformers' CTC example"
LOOPS = (OURS, CACHED, PLAIN, TRAINER)


class Peer(nn.Module):
    """transformers' model with our numbers.

    Args:
        assembly: Has them.
        reduction: Of the loss: ``mean`` as transformers means it, or ``sum``, which is
            then divided by the frames.
    """

    def __init__(self, assembly: Assembly, reduction: str) -> None:
        super().__init__()
        config = Wav2Vec2Config(**(assembly.model.backbone.config or {}))
        config.vocab_size = len(assembly.data.task["vocabulary"])
        config.pad_token_id = 0
        config.mask_time_prob = config.mask_feature_prob = 0.0
        config.ctc_loss_reduction = reduction
        config.ctc_zero_infinity = True
        self.model: Any = Wav2Vec2ForCTC(config)
        self.model.load_state_dict(numbers(assembly.model))
        self.model.freeze_feature_encoder()
        self.reduction = reduction

    def forward(
        self, input_values: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        loss = self.model(input_values, attention_mask=attention_mask, labels=labels)[0]
        if self.reduction == "sum":
            lengths = attention_mask.sum(-1)
            frames = self.model._get_feat_extract_output_lengths(lengths)
            loss = loss / frames.sum()
        return {"loss": loss}


def numbers(model: Any) -> dict[str, Tensor]:
    """Our parameters by transformers' names."""
    tensors = model.backbone.upstream_state_dict()
    # Without masks transformers' model has nothing to put in their place.
    del tensors["masked_spec_embed"]
    return {
        **{f"wav2vec2.{name}": tensor for name, tensor in tensors.items()},
        **{f"lm_head.{k}": v for k, v in model.head.linear.state_dict().items()},
    }


def apart(model: Any, peer: Peer) -> str:
    """How far parameters are apart, in words.

    Biases of keys are told apart. They have no influence, since attention is the same
    whatever is added to all keys: their gradient is rounding alone, and AdamW makes
    steps of a full learning rate of it. So it does, for a while, of any gradient near
    nothing.
    """
    theirs = peer.model.state_dict()
    keys, others = [], []
    for name, mine in numbers(model).items():
        difference = (mine - theirs[name]).detach().abs().flatten()
        (keys if name.endswith("k_proj.bias") else others).append(difference)
    rest = torch.cat(others)
    return (
        f"by {float(rest.max()):.1e} at most, {int((rest > NOTABLE).sum())} of "
        f"{len(rest):,} by more than {NOTABLE:g}; biases of keys, which have no "
        f"influence and no gradient but rounding, by {float(torch.cat(keys).max()):.1e}"
    )


def stack(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch as one writes it by hand."""
    sounds = [sample["input_values"] for sample in samples]
    return {
        "input_values": pad_sequence(sounds, batch_first=True),
        "attention_mask": pad_sequence(
            [torch.ones(len(sound), dtype=torch.long) for sound in sounds],
            batch_first=True,
        ),
        "labels": pad_sequence(
            [sample["labels"] for sample in samples],
            batch_first=True,
            padding_value=-100,
        ),
    }


class ExtractorPadding:
    """A batch padded by the feature extractor, as in the example; counts padding."""

    def __init__(self) -> None:
        make: Any = Wav2Vec2FeatureExtractor
        self.extractor = make(return_attention_mask=True)
        self.used = self.total = 0

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        sounds = [{"input_values": sample["input_values"]} for sample in samples]
        batch = self.extractor.pad(sounds, padding=True, return_tensors="pt")
        self.used += int(batch["attention_mask"].sum())
        self.total += batch["attention_mask"].numel()
        labels = [sample["labels"] for sample in samples]
        padded = pad_sequence(labels, batch_first=True, padding_value=-100)
        return {**batch, "labels": padded}


def parts(arguments: argparse.Namespace, cache: str) -> tuple[Recipe, Assembly]:
    registry = load_plugins()
    overrides = {
        **EQUAL,
        "backbone.name": "speech/wav2vec2",
        "backbone.weights": "none",
        "backbone.config": NETWORK,
        "backbone.dropout": 0.0,
        "backbone.mask_time": 0.0,
        "head.layers": 0,
        "head.dropout": 0.0,
        "data.path": "asset:prompts-fr",
        "data.train_size": arguments.clips,
        # No loop is about these.
        "data.validation_size": 8,
        "data.test_size": 8,
        "strategy.name": "layer-retraining",
        "strategy.freeze_until": "features",
        "train.epochs": 1,
        "train.batch_size": 64,
        "train.batch_total": arguments.seconds,
        "train.learning_rate": LEARNING_RATE,
        "train.head_learning_rate": LEARNING_RATE,
        "cache.mode": cache,
        "report.scratch_control": False,
    }
    recipe = load_recipe("speech/new-language", overrides, registry=registry)
    return recipe, assemble(recipe, registry)


def peer_samples(assembly: Assembly) -> list[dict[str, Any]]:
    """The clips as the example prepares them, once."""
    make: Any = Wav2Vec2FeatureExtractor
    extractor = make(return_attention_mask=True)
    found = []
    for sample in assembly.data.samples("train"):
        sound = assembly.data.collate([sample])["waveform"][0].numpy()
        values = extractor(sound, sampling_rate=RATE).input_values[0]
        found.append(
            {
                "input_values": torch.as_tensor(values),
                "labels": torch.from_numpy(sample["labels"]),
            }
        )
    return found


def example(assembly: Assembly, samples: list[dict[str, Any]], size: int) -> Any:
    """Trains transformers' example; the job and the share of padding."""
    collate = ExtractorPadding()
    # What its Trainer takes for `train_sampling_strategy = "group_by_length"`, which
    # it can only set up by itself where inputs are called `input_ids`.
    lengths = [len(sample["input_values"]) for sample in samples]
    sampler = LengthGroupedSampler(size, lengths=lengths)
    job = hugging_face(
        Peer(assembly, "mean"),
        samples,
        collate,
        epochs=1,
        learning_rate=LEARNING_RATE,
        batch_size=size,
        loader=DataLoader(
            samples,  # type: ignore[arg-type]
            batch_size=size,
            sampler=sampler,
            collate_fn=collate,
        ),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        lr_scheduler_type="linear",
    )
    return job, 1 - collate.used / collate.total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    recipe, assembly = parts(arguments, "off")
    cached = parts(arguments, "on")[0]
    # From here on every clip is in memory, as it is for the others.
    samples = peer_samples(assembly)
    batches = BatchParts(assembly.data, recipe, World())
    order = [batches.batch(step).tolist() for step in range(batches.steps_per_epoch)]
    loader = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=stack,
    )
    size = round(len(samples) / len(order))
    sound = sum(len(sample["input_values"]) for sample in samples) / RATE
    pace: dict[str, list[float]] = {name: [] for name in LOOPS}
    padding: dict[str, float] = {}
    filling = []
    for turn in range(arguments.rounds):
        for name in LOOPS[:: -1 if turn % 2 else 1]:
            if name in (OURS, CACHED):
                fresh = replace(assembly, model=copy.deepcopy(assembly.model))
                with cold_cache():
                    each = cached if name == CACHED else recipe
                    _, trainer = ours(each, fresh, tell=False)
                seconds = trainer.train_seconds
                if name == CACHED:
                    filling.append(trainer.clock.seconds()["prefix"])
                else:
                    mine = fresh.model
                    padding[name] = trainer.batches.padding_waste or 0.0
            elif name == PLAIN:
                peer = Peer(assembly, "sum")
                job: Job = plain(peer, loader, epochs=1, learning_rate=LEARNING_RATE)
                seconds = job.seconds
            else:
                job, padding[name] = example(assembly, samples, size)
                seconds = job.seconds
            pace[name].append(sound / seconds)
        difference = apart(mine, peer)
    padding[PLAIN] = padding[CACHED] = padding[OURS]
    rows = []
    for name, values in pace.items():
        ratios = [a / b for a, b in zip(pace[OURS], values, strict=True)]
        median = statistics.median(values)
        rows.append(
            {
                "loop": name,
                "seconds of sound/s (median)": median,
                "clips/s": median * len(samples) / sound,
                "ours / this, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "padding": f"{padding[name]:.1%}",
            }
        )
    remark = (
        "After training, the parameters of ours and of the plain loop differ "
        f"{difference}. The cache holds what the frozen "
        f"feature encoder gives; filling it took {statistics.median(filling):.1f} s, "
        f"which is not in its pace, and an epoch without it "
        f"{sound / statistics.median(pace[OURS]):.1f} s."
    )
    publish(
        "speech_loop",
        f"CTC, wav2vec 2.0 of 4 layers x 192, {len(samples)} French prompts "
        f"({sound / 60:.1f} min) in {len(order)} batches of at most "
        f"{arguments.seconds:g} s",
        rows,
        setting("headstart-speech", "transformers", "accelerate"),
        goal="at least .98 of a plain loop around transformers' model, at most 10 % "
        "padding",
        remark=remark,
    )


if __name__ == "__main__":
    main()
