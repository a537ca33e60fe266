"""Training on patches of volumes: our trainer beside a plain MONAI loop.

The same patches in the same order through the same collation, the same network from the
same numbers, one process, rounds in turn, the first one of a round by turns. The plain
loop is what one writes by hand: the network, MONAI's ``DiceCELoss``, fused AdamW,
clipping, a linear schedule; once in the layout that PyTorch gives and once with
channels last, which ours takes. DynUNet is MONAI's own class; deepbrain's network,
which MONAI does not have, is written out here.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from common import publish, setting
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from peer_loops import EQUAL, ours, plain
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from headstart.assembly import Assembly, assemble
from headstart.batch_order import epoch_batches
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.recipe import Recipe

LEARNING_RATE = 1e-3
BATCH, PATCHES = 4, 8
LAST = torch.channels_last_3d
NETWORKS: dict[str, dict[str, Any]] = {
    # Without dropout, so that both loops must come out alike.
    "deepbrain's U-Net": {"backbone.dropout": 0.0},
    "DynUNet": {
        "backbone.name": "medical/dynunet",
        "backbone.weights": "none",
        "backbone.filters": [8, 16, 32, 64],
        "backbone.strides": [1, 2, 2, 2],
        "backbone.kernel_size": [3, 3, 3, 3],
    },
}


class DeepBrain(nn.Module):
    """deepbrain's network, with the names of its weights."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        before = 1
        for i, width in enumerate(widths):
            level = {
                "conv1": nn.Conv3d(before, width, 3, padding=1),
                "conv2": nn.Conv3d(width, width, 3, padding=1),
            }
            self.add_module(f"level{i}", nn.ModuleDict(level))
            before = width
        for i in (2, 1, 0):
            up = {
                "up": nn.ConvTranspose3d(before, widths[i], 3, stride=2, bias=False),
                "conv": nn.Conv3d(2 * widths[i], widths[i], 3, padding=1),
            }
            self.add_module(f"up{i}", nn.ModuleDict(up))
            before = widths[i]
        self.output = nn.Conv3d(before, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i in range(3):
            level: Any = self.get_submodule(f"level{i}")
            x = functional.relu(level["conv2"](functional.relu(level["conv1"](x))))
            skips.append(x)
            x = functional.max_pool3d(x, 2)
        for i in (2, 1, 0):
            block: Any = self.get_submodule(f"up{i}")
            i_, j, k = skips[i].shape[2:]
            raised = block["up"](x)[..., :i_, :j, :k]
            x = functional.relu(block["conv"](torch.cat([raised, skips[i]], 1)))
        logits: Tensor = self.output(x)
        return logits


class Peer(nn.Module):
    """A network with MONAI's loss; takes our batches, starts from our numbers."""

    def __init__(self, assembly: Assembly, channels_last: bool) -> None:
        super().__init__()
        classes = len(assembly.data.task["labels"])
        config = dict(assembly.model.backbone.config or {})
        del config["channel_names"]
        if config.pop("network") == "DynUNet":
            self.network: nn.Module = DynUNet(**config, out_channels=classes)
        else:
            self.network = DeepBrain(classes)
        # ``skip_layers`` has DynUNet's tensors a second time.
        missing, unexpected = self.network.load_state_dict(
            numbers(assembly.model), strict=False
        )
        assert not unexpected
        assert all(name.startswith("skip_layers.") for name in missing)
        self.layout = LAST if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.layout)
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)

    def forward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        logits = self.network(image.contiguous(memory_format=self.layout))
        return {"loss": self.loss(logits, mask.unsqueeze(1))}


def numbers(model: Any) -> dict[str, Tensor]:
    """Our parameters by the names of the network as a whole."""
    dynunet = model.backbone.config["network"] == "DynUNet"
    output = "output_block.conv.conv" if dynunet else "output"
    own = {f"{output}.{k}": v for k, v in model.head.conv.state_dict().items()}
    return {**model.backbone.upstream_state_dict(), **own}


def apart(model: Any, peer: Peer) -> float:
    """The largest difference of two parameters."""
    theirs = peer.network.state_dict()
    pairs = [(mine, theirs[name]) for name, mine in numbers(model).items()]
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def parts(network: str, steps: int) -> tuple[Recipe, Assembly]:
    recipe = load_recipe(
        "medical/tumour-segmentation",
        {
            **EQUAL,
            **NETWORKS[network],
            # What is validated after the last step is not in the time; little of it.
            "head.overlap": 0.0,
            "metrics.names": ["dice"],
            "data.validation_variants": 1,
            "data.augmentation": "none",
            "data.cache": "memory",
            "data.patches_per_case": PATCHES,
            "data.variants": math.ceil(BATCH * steps / PATCHES),
            "train.batch_size": BATCH,
            "train.epochs": 1,
            "train.max_steps": steps,
            "train.learning_rate": LEARNING_RATE,
            "report.scratch_control": False,
        },
        registry=load_plugins(),
    )
    return recipe, assemble(recipe, load_plugins())


def measure(network: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    recipe, assembly = parts(network, steps)
    samples = assembly.data.samples("train")
    for sample in samples:
        assembly.data.collate([sample])  # from the cache from here on
    order = epoch_batches(len(samples), BATCH, seed=recipe.train.seed, epoch=0)
    loader = DataLoader(
        samples,
        batch_sampler=[batch.tolist() for batch in order[:steps]],
        collate_fn=assembly.data.collate,
    )
    plains = {"plain loop": False, "plain loop, channels last": True}
    pace: dict[str, list[float]] = {name: [] for name in ("ours", *plains)}
    difference: dict[str, float] = {"ours": 0.0}
    for turn in range(rounds):
        peers = {}
        for name in list(pace)[:: -1 if turn % 2 else 1]:
            if name == "ours":
                fresh = replace(assembly, model=copy.deepcopy(assembly.model))
                _, trainer = ours(recipe, fresh, tell=False)
                seconds = trainer.train_seconds
            else:
                peers[name] = Peer(assembly, plains[name])
                job = plain(peers[name], loader, epochs=1, learning_rate=LEARNING_RATE)
                seconds = job.seconds
            pace[name].append(BATCH * steps / seconds)
        for name, peer in peers.items():
            difference[name] = apart(fresh.model, peer)
    rows = []
    for name, values in pace.items():
        ratios = [a / b for a, b in zip(pace["ours"], values, strict=True)]
        rows.append(
            {
                "network": network,
                "loop": name,
                "samples/s (median)": statistics.median(values),
                "ours / this, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "parameters differ by": f"{difference[name]:.1e}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    arguments = parser.parse_args()
    rows = []
    for network in arguments.network or NETWORKS:
        rows += measure(network, arguments.steps, arguments.rounds)
    publish(
        "volume_loop",
        f"Segmentation of simulated lesions, {arguments.steps} steps of {BATCH} "
        "patches of 64x64x32, all training",
        rows,
        setting("headstart-medical", "monai"),
        goal="at least .98 of a plain MONAI loop",
        remark="DynUNet has levels of 8, 16, 32 and 64 channels. The last column is "
        "after training, from the same start.",
    )


if __name__ == "__main__":
    main()
