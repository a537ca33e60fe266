"""LoRA on SmolLM2-135M: our trainer beside a plain loop and the Hugging Face Trainer.

The plain loop is what one writes by hand: transformers' model, peft's adapters, the
same packed batches, AdamW, clipping, a linear schedule. The Hugging Face Trainer has
no packing that runs without a CUDA kernel, so it pads, with documents of similar
length in one batch (its ``group_by_length``, which sorts in chunks of at most a quarter
of the data). Ours is shown padded too, in both orders. The same documents for all, the
same number of them in a batch on average, one process, rounds in turn. Tokens a second
are those of the documents; padding does not count.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from common import publish, setting
from peer_loops import EQUAL, hugging_face, ours, plain
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from headstart.assembly import assemble
from headstart.batch_order import epoch_batches
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

if TYPE_CHECKING:
    from headstart.assembly import Assembly
    from headstart.recipe import Recipe

LEARNING_RATE = 1e-3
RANK, ALPHA = 8, 16


class Peer(torch.nn.Module):
    """transformers' model with peft's adapters; takes our batches and its own."""

    def __init__(self, folder: Any, layers: int) -> None:
        super().__init__()
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, num_hidden_layers=layers, dtype=torch.float32
        )
        linear = ["q_proj", "k_proj", "v_proj", "o_proj"]
        linear += ["gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear)
        self.model = get_peft_model(model, config)

    def forward(self, input_ids: Any, labels: Any, **rest: Any) -> dict[str, Any]:
        if "segments" in rest:
            segments = rest["segments"]
            same = segments[:, None, :, None] == segments[:, None, None, :]
            causal = torch.ones(same.shape[-2:], dtype=torch.bool).tril()
            rest = {
                "attention_mask": same & causal,
                "position_ids": rest["positions"],
            }
        logits = self.model(input_ids=input_ids, **rest).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        return {"loss": loss}


class Padded:
    """What a padding collator of the Hugging Face library gives; counts the padding."""

    def __init__(self) -> None:
        self.used = self.total = 0

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.as_tensor(sample["input_ids"]).long() for sample in samples]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
        self.used += int(mask.sum())
        self.total += mask.numel()
        return {
            "input_ids": pad(ids, batch_first=True),
            "attention_mask": mask,
            "labels": pad(ids, batch_first=True, padding_value=-100),
        }


def parts(arguments: argparse.Namespace, packing: bool) -> tuple[Recipe, Assembly]:
    registry = load_plugins()
    overrides: dict[str, Any] = {
        **EQUAL,
        "data.rows": arguments.documents,
        "data.packing": packing,
        "data.general": "",
        "data.prompts": 0,
        "data.validation_size": 4,
        "train.epochs": 1,
        "train.evaluate_every": 1000,
        "train.evaluate_at_start": False,
        "train.learning_rate": LEARNING_RATE,
        "strategy.lora.rank": RANK,
        "strategy.lora.alpha": float(ALPHA),
        "backbone.keep": arguments.layers + 1,
        "train.batch_size": arguments.batch,
    }
    if not packing:
        # As many documents as fit into a batch of packs on average.
        packed = parts(arguments, packing=True)[1]
        rows = packed.data.samples("train")
        documents = sum(len(row["documents"]) for row in rows)
        overrides["train.batch_size"] = round(arguments.batch * documents / len(rows))
    recipe = load_recipe("nlp/generate", overrides, registry=registry)
    return recipe, assemble(recipe, registry)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    recipe, packed = parts(arguments, packing=True)
    padded_recipe, single = parts(arguments, packing=False)
    train = padded_recipe.train.model_copy(update={"group_by_size": False})
    shuffled = replace(padded_recipe, train=train)
    tokens = sum(
        len(ids) for s in packed.data.samples("train") for ids, _ in s["documents"]
    )
    folder = packed.weights.folder
    documents = [
        {"input_ids": ids.tolist(), "length": len(ids)}
        for sample in single.data.samples("train")
        for ids, _ in sample["documents"]
    ]
    order = epoch_batches(
        len(packed.data.samples("train")),
        recipe.train.batch_size,
        seed=recipe.train.seed,
        epoch=0,
        sizes=packed.data.sizes("train"),
    )
    loader = DataLoader(
        packed.data.samples("train"),
        batch_sampler=[batch.tolist() for batch in order],
        collate_fn=packed.data.collate,
    )
    pace: dict[str, list[float]] = {}
    waste: dict[str, float] = {}

    def book(name: str, seconds: float) -> None:
        pace.setdefault(name, []).append(tokens / seconds)

    for _ in range(arguments.rounds):
        for name, (each, assembly) in {
            "ours, packed": (recipe, packed),
            "ours, padded, similar lengths together": (padded_recipe, single),
            "ours, padded, random order": (shuffled, single),
        }.items():
            fresh = copy.copy(assembly)
            object.__setattr__(fresh, "model", copy.deepcopy(assembly.model))
            _, trainer = ours(each, fresh, tell=False)
            book(name, trainer.train_seconds)
            waste[name] = trainer.batches.padding_waste or 0.0
        job = plain(
            Peer(folder, arguments.layers),
            loader,
            epochs=1,
            learning_rate=LEARNING_RATE,
        )
        book("plain loop, the same packs", job.seconds)
        collate = Padded()
        began = time.perf_counter()
        hugging_face(
            Peer(folder, arguments.layers),
            documents,
            collate,
            epochs=1,
            learning_rate=LEARNING_RATE,
            batch_size=padded_recipe.train.batch_size,
            train_sampling_strategy="group_by_length",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            lr_scheduler_type="linear",
        )
        name = "Hugging Face Trainer, padded"
        book(name, time.perf_counter() - began)
        waste[name] = 1 - collate.used / collate.total
    waste["plain loop, the same packs"] = waste["ours, packed"]
    mine = pace["ours, packed"]
    rows = []
    for name, values in pace.items():
        ratios = [ours / other for ours, other in zip(mine, values, strict=True)]
        rows.append(
            {
                "loop": name,
                "tokens/s (median)": statistics.median(values),
                "ours packed / this, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "padding": f"{waste[name]:.1%}",
            }
        )
    packs = len(packed.data.samples("train"))
    title = (
        f"LoRA on the first {arguments.layers} layers of SmolLM2-135M, "
        f"{len(documents)} movie snippets ({tokens:,} tokens) in {packs} packs of 256"
    )
    goal = (
        "at least .98 of a plain loop with the same packs, at least the Hugging Face "
        "Trainer, 1.5 times our own padded batches, less than 3 % padding"
    )
    versions = setting("headstart", "transformers", "peft", "accelerate")
    assert all(math.isfinite(v) for values in pace.values() for v in values)
    remark = (
        "Beside our own padded batches packing gains little: the trainer puts "
        "documents of similar length into one batch anyway. Beside padded batches in "
        "random order, which is what most loops train on, it is half as fast again."
    )
    publish("language_model", title, rows, versions, goal=goal, remark=remark)


if __name__ == "__main__":
    main()
