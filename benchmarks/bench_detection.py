"""Training Faster R-CNN: our trainer beside torchvision's model in a plain loop.

ResNet-18 with a feature pyramid, the same scenes in the same batches, one process,
rounds in turn. torchvision's is its own `FasterRCNN` on its `resnet_fpn_backbone`, in
the loop of its reference scripts: losses summed, backward, step. Both get AdamW with
fused kernels. Composing the scenes is in both times.

With torchvision's 512 sampled proposals for an image, the head takes nearly all of a
step on small images, so what freezing saves is measured on larger ones with 128.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import publish, setting
from peer_data import Order
from peer_loops import EQUAL, falling
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from headstart.assembly import Assembly, assemble
from headstart.clock import Clock
from headstart.plugins import load_plugins
from headstart.recipe import Recipe, load_recipe
from headstart.training_setup import make_trainer, plan_training

LEARNING_RATE = 1e-4
FROZEN = {"nothing": 5, "stem": 4, "stem, layer1, layer2": 2}
"""What is frozen: how many layers torchvision's builder then trains."""
CASES = [
    ("nothing", 128, 512),
    ("nothing", 320, 128),
    ("stem", 320, 128),
    ("stem, layer1, layer2", 320, 128),
]
"""What is frozen, pixels of a side, proposals sampled for an image."""


def our_recipe(
    frozen: str, size: int, sampled: int, scenes: int, batch_size: int
) -> Recipe:
    last = frozen.rpartition(", ")[2]
    strategy = {"strategy.name": "global", "strategy.freeze_until": ""}
    if frozen != "nothing":
        strategy = {"strategy.name": "layer-retraining", "strategy.freeze_until": last}
    return load_recipe(
        "vision/detect",
        {
            **EQUAL,
            **strategy,
            "backbone.name": "vision/resnet",
            "backbone.architecture": "resnet18",
            "backbone.norm": "frozen",
            "backbone.weights": "none",
            "head.features": [],
            "head.anchor_sizes": [],
            "head.channels": 256,
            "head.proposals": None,
            "head.sampled": sampled,
            "head.width": 1024,
            "data.size": size,
            "data.train": scenes,
            "data.validation": 2,
            "data.test": 2,
            "train.batch_size": batch_size,
            "train.epochs": 1,
            "train.learning_rate": LEARNING_RATE,
            "train.clip": 0.0,
            "cache.mode": "off",
        },
        registry=load_plugins(),
    )


def our_round(recipe: Recipe, assembly: Assembly) -> float:
    """Images a second."""
    plan = plan_training(recipe, assembly)
    trainer = make_trainer(recipe, assembly, plan, Clock(assembly.execution.device))
    # What is validated after the last step is not in the time.
    trainer.fit()
    return trainer.batches.count / trainer.train_seconds


def torchvision_round(recipe: Recipe, assembly: Assembly, layers: int) -> float:
    """Images a second of torchvision's model in the loop of its scripts."""
    size = recipe.data.size
    device = assembly.execution.device
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        trainable_layers=layers,
        norm_layer=FrozenBatchNorm2d,
    )
    classes = len(assembly.data.task["labels"]) + 1
    model = FasterRCNN(
        backbone,
        classes,
        min_size=size,
        max_size=size,
        box_batch_size_per_image=recipe.head.sampled,
    ).to(device)
    model.train()
    training = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        training, lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    samples = assembly.data.samples("train")
    order = Order(len(samples), recipe.train.batch_size, recipe.train.seed)
    loader = DataLoader(samples, batch_sampler=order, collate_fn=assembly.data.collate)
    schedule = falling(optimizer, len(order))
    began = time.perf_counter()
    for batch in loader:
        images, targets = as_torchvision(batch, device)
        losses = model(images, targets)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return len(samples) / (time.perf_counter() - began)


def as_torchvision(batch: dict[str, Any], device: torch.device) -> tuple[Any, Any]:
    """A batch as its detectors take it: lists of images and of targets."""
    images = list((batch["pixels"].to(device).float() / 255).unbind())
    targets = []
    for row, labels in enumerate(batch["box_labels"]):
        there = labels > 0
        found = {"boxes": batch["boxes"][row][there], "labels": labels[there]}
        targets.append({key: value.to(device) for key, value in found.items()})
    return images, targets


def norms_unmoved() -> bool:
    """Whether frozen BatchNorm keeps every bit while the rest trains."""
    recipe = our_recipe("stem, layer1, layer2", 64, 128, 8, 4)
    backbone = recipe.backbone.model_copy(update={"norm": "batch"})
    recipe = replace(recipe, backbone=backbone)
    assembly = assemble(recipe, load_plugins())
    model = assembly.model
    names = ("stem", "layer1", "layer2")
    before = {
        f"{name}.{key}": value.clone()
        for name in names
        for key, value in model.backbone.stages[name].state_dict().items()
    }
    our_round(recipe, assembly)
    kept = all(
        torch.equal(before[f"{name}.{key}"], value)
        for name in names
        for key, value in model.backbone.stages[name].state_dict().items()
    )
    moved = any(
        isinstance(module, nn.BatchNorm2d) and int(module.num_batches_tracked) > 0
        for module in model.backbone.stages["layer3"].modules()
    )
    return kept and moved


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    unfrozen: dict[int, float] = {}
    for frozen, size, sampled in CASES:
        recipe = our_recipe(
            frozen, size, sampled, arguments.scenes, arguments.batch_size
        )
        assembly = assemble(recipe, load_plugins())
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(our_round(recipe, assembly))
            theirs.append(torchvision_round(recipe, assembly, FROZEN[frozen]))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        first = unfrozen.setdefault(size, statistics.median(ours))
        rows.append(
            {
                "frozen": frozen,
                "pixels": size,
                "proposals": sampled,
                "ours, images/s": statistics.median(ours),
                "torchvision, images/s": statistics.median(theirs),
                "ours / torchvision, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "ours / ours with nothing frozen": statistics.median(ours) / first,
            }
        )
    unmoved = "did not move by one bit" if norms_unmoved() else "MOVED"
    publish(
        "detection",
        "Faster R-CNN, ResNet-18 with FPN, composited scenes, "
        f"batches of {arguments.batch_size}",
        rows,
        setting("headstart", "torchvision"),
        goal="at least .98 of torchvision's loop; faster where more is frozen",
        remark=f"BatchNorm in frozen stages {unmoved} while later stages trained.",
    )


if __name__ == "__main__":
    main()
