"""Global fine-tuning of MiniLM: our trainer beside plain PyTorch loops.

The same batches in the same order, the same model, one process, rounds in turn. The
plain loops are what one writes by hand: transformers' BertModel, mean pooling, a
linear layer, AdamW, clipping, a linear schedule.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import publish, setting
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModel

from headstart.assembly import Assembly, assemble
from headstart.batch_order import epoch_batches
from headstart.clock import Clock
from headstart.plugins import load_plugins
from headstart.recipe import Recipe, load_recipe
from headstart.training_setup import make_trainer, plan_training


class PlainClassifier(nn.Module):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            folder, add_pooling_layer=False, local_files_only=True
        )
        self.dropout = nn.Dropout(0.1)
        self.linear = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        hidden = self.encoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return self.linear(self.dropout(pooled))


def plain_round(recipe: Recipe, assembly: Assembly, fused: bool | None) -> float:
    """Samples a second of a plain loop over one epoch."""
    model = PlainClassifier(str(assembly.weights.folder))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=fused)
    samples = assembly.data.samples("train")
    batches = epoch_batches(
        len(samples),
        recipe.train.batch_size,
        seed=recipe.train.seed,
        epoch=0,
        sizes=assembly.data.sizes("train"),
    )
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.01, total_iters=len(batches)
    )
    loader = DataLoader(
        samples,
        batch_sampler=[b.tolist() for b in batches],
        collate_fn=assembly.data.collate,
    )
    began = time.perf_counter()
    for batch in loader:
        loss = functional.cross_entropy(model(batch), batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return len(samples) / (time.perf_counter() - began)


def our_round(recipe: Recipe, assembly: Assembly) -> tuple[float, float]:
    """Samples a second and padding waste of our trainer over one epoch."""
    plan = plan_training(recipe, assembly)
    trainer = make_trainer(recipe, assembly, plan, Clock(assembly.execution.device))
    trainer.fit()
    waste = trainer.batches.padding_waste
    assert waste is not None
    return trainer.batches.count / trainer.train_seconds, waste


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    registry = load_plugins()
    recipe = load_recipe(
        "nlp/sentiment",
        {"data.rows": arguments.rows, "train.epochs": 1, "data.validation_size": 40},
        registry=registry,
    )
    assembly = assemble(recipe, registry)
    recipe = replace(recipe, data=assembly.data.settings)
    pace: dict[str, list[float]] = {"ours": [], "plain": [], "plain, fused AdamW": []}
    waste = 0.0
    for _ in range(arguments.rounds):
        ours, waste = our_round(recipe, assembly)
        pace["ours"].append(ours)
        pace["plain"].append(plain_round(recipe, assembly, None))
        pace["plain, fused AdamW"].append(plain_round(recipe, assembly, True))
    rows = []
    for name, values in pace.items():
        ratios = [
            ours / other for ours, other in zip(pace["ours"], values, strict=True)
        ]
        rows.append(
            {
                "loop": name,
                "samples/s (median)": statistics.median(values),
                "ours / this, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "padding": f"{waste:.1%}",
            }
        )
    title = f"Global fine-tuning of MiniLM, {arguments.rows} movie snippets, one epoch"
    publish("fine_tuning", title, rows, setting("headstart", "transformers"))


if __name__ == "__main__":
    main()
