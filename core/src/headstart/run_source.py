"""The weights source ``run:FOLDER``: the model of another run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headstart.assets import cache_folder
from headstart.checkpoint import open_checkpoint
from headstart.errors import UserError
from headstart.run_folder import ARCHITECTURE, ROWS, read_json
from headstart.runs import Run
from headstart.weights.sources import Weights
from headstart.weights.tensors import files_sha256, tensor_files

if TYPE_CHECKING:
    from headstart.weights.sources import SourceContext


def resolve_run(reference: str, context: SourceContext) -> Weights:
    """The kept model of another run, its tables with the names of their rows.

    Adapters are folded into the layers that they are beside, once, in the cache.

    Raises:
        UserError: It is no run folder, or has no checkpoint that holds.
    """
    folder = Path(reference).expanduser()
    if not (folder / "recipe.toml").is_file():
        raise UserError(
            "this is not a run folder",
            where=f"run:{reference}",
            why=f"there is no {folder.absolute() / 'recipe.toml'}",
            fix="give the folder that `headstart run` named, e.g. run:runs/…",
        )
    checkpoint, _ = open_checkpoint(folder / "checkpoints")
    run = Run(folder)
    if run.recipe().strategy.name == "lora":
        key = files_sha256(checkpoint.kept_files)[:16]
        merged = cache_folder() / "merged" / key
        if not merged.is_dir():
            run.export(merged, merge=True)
        return Weights(f"run:{reference}", merged, tensor_files(merged))
    rows, task = folder / ROWS, read_json(folder / "task.json")
    return Weights(
        f"run:{reference}",
        folder / ARCHITECTURE,
        checkpoint.kept_files,
        rows={k: tuple(v) for k, v in read_json(rows).items()} if rows.exists() else {},
        classes=tuple(task.get("labels") or task.get("vocabulary", ())),
        native=True,
    )
