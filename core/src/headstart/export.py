"""A run's model in the upstream library's own format, for use without headstart."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from headstart import adapters
from headstart.assembly import build_data
from headstart.files import new_folder
from headstart.run_folder import read_json, write_json
from headstart.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from headstart.model import Model
    from headstart.recipe import Recipe
    from headstart.runs import Run

ABOUT = "headstart.json"
"""Where an exported model comes from, and what its head needs."""
HEAD = "head.safetensors"


def export_model(
    model: Model, recipe: Recipe, run: Run, folder: Path, merge: bool
) -> Path:
    """Write a model into a new folder.

    - ``model.safetensors``: the backbone under the upstream library's names, adapters
      folded in; or the adapters alone in peft's format.
    - ``config.json`` and vocabulary, as the run folder keeps them.
    - ``head.safetensors``: the head, where it has parameters.
    - ``headstart.json``: recipe, weights, labels, test metrics.

    Args:
        model: Of the run; merging changes it.
        recipe: The run's.
        run: Where it comes from.
        folder: Made by this; there whole, or not at all.
        merge: Fold adapters into the weights.

    Raises:
        UserError: The folder is not empty, or cannot be written.
    """
    with new_folder(folder, "exported files", "name a new folder") as partial:
        _write(model, recipe, run, partial, merge)
    return folder


def _write(model: Model, recipe: Recipe, run: Run, folder: Path, merge: bool) -> None:
    backbone, reference = model.backbone.cpu(), recipe.backbone.weights
    alone = bool(backbone.adapted) and not merge
    if alone:
        adapters.save(backbone, recipe.strategy.lora, folder, reference)
    else:
        adapters.merge(backbone)
        tensors = dict(_once(backbone.upstream_state_dict()))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if backbone.config is not None:
            write_json(folder / "config.json", backbone.config)
    for path in backbone.files:
        if path.name != "config.json":
            shutil.copy2(path, folder / path.name)
    data = build_data(recipe)
    data.task = read_json(run.folder / "task.json")
    data.prepare(backbone.preprocessing)
    data.export(folder)
    head = model.head.cpu().state_dict()
    if head:
        save_file(dict(_once(head)), folder / HEAD, metadata={"format": "pt"})
    about: dict[str, Any] = {
        "headstart": __version__,
        "recipe": recipe.name,
        "backbone": recipe.backbone.name,
        "weights": reference,
        "adapters": "in this folder" if alone else "merged" if merge else "",
        "head": recipe.head.model_dump(mode="json"),
        "task": data.task,
        "metrics": run.metrics,
    }
    write_json(folder / ABOUT, about)


def _once(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under the first of its names: tied ones are written once."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        yield name, tensor.detach().contiguous()
