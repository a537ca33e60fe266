"""The folder of a run: what is written before the first step."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.environment import describe_environment
from headstart.errors import UserError
from headstart.files import write_text

if TYPE_CHECKING:
    from headstart.assembly import Assembly
    from headstart.plugins import Registry
    from headstart.recipe import Recipe

ARCHITECTURE = "backbone"
"""Folder inside a run with the configuration and vocabulary of its backbone."""
CALIBRATION = "calibration.json"
"""What the head fitted to validation after the training."""
ROWS = "rows.json"
"""What the rows of the backbone's tables belong to, by upstream name."""


def create_run_folder(
    folder: str | Path | None, recipe: Recipe, registry: Registry, assembly: Assembly
) -> Path:
    """A new run folder with recipe, environment, task, data counts and architecture.

    Raises:
        UserError: The folder is in use or cannot be made.
    """
    target = new_folder(recipe.name) if folder is None else Path(folder)
    if target.exists() and any(target.iterdir()):
        raise UserError(
            "the run folder is not empty",
            where=str(target),
            fix="name a new folder, or leave --folder away",
        )
    backbone, findings = assembly.model.backbone, assembly.data.findings
    documents = {
        "environment.json": describe_environment(recipe, assembly, registry),
        "task.json": assembly.data.task,
        "data.json": {
            "description": assembly.data.describe(),
            "warnings": [asdict(fault) for fault in findings.warnings],
            "left_out": [asdict(fault) for fault in findings.left_out],
        },
        "summary.json": {"status": "running"},
    }
    if backbone.rows:
        documents[ROWS] = {
            backbone.upstream_name(table): list(ids)
            for table, ids in backbone.rows.items()
        }
    if backbone.config is not None:
        documents[f"{ARCHITECTURE}/config.json"] = backbone.config
    # Whoever is killed leaves no folder, or one that can be resumed.
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / ARCHITECTURE).mkdir(parents=True)
        for path in backbone.files:
            shutil.copy2(path, draft / ARCHITECTURE / path.name)
        (draft / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
        for name, content in documents.items():
            write_json(draft / name, content)
        if target.exists():
            target.rmdir()
        draft.rename(target)
    except OSError as error:
        raise UserError(
            "the run folder cannot be written",
            where=str(target),
            why=str(error),
            fix="choose another with --folder, or set HEADSTART_RUNS",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def new_folder(recipe_name: str) -> Path:
    """A folder under ``runs/`` that is not there yet, named by recipe and time."""
    root = Path(os.environ.get("HEADSTART_RUNS", "runs"))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = root / f"{recipe_name.replace('/', '-')}-{stamp}"
    target, count = base, 1
    while target.exists():
        count += 1
        target = base.with_name(f"{base.name}-{count}")
    return target


def write_json(path: Path, value: Any) -> None:
    """Write a document whole or not at all; see :func:`write_text`."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """A document of a run folder.

    Raises:
        UserError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            "a file of the run cannot be read",
            where=str(path),
            why=str(error),
            fix="the run was damaged or not finished; run its recipe.toml again",
        ) from error
