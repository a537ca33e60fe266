"""The configuration files that come with weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def read_configuration(path: Path) -> dict[str, Any]:
    """A JSON file beside weights, such as ``config.json``.

    Raises:
        UserError: It is not there, cannot be read, or holds no configuration.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no {path.name} beside the weights",
            where=str(path.parent),
            why="it says which architecture the weights belong to",
            fix="put it there; transformers' save_pretrained writes it",
        ) from None
    except OSError as error:
        what = f"this cannot be read: {error.strerror or error}"
        raise UserError(what, where=str(path)) from error
    except ValueError as error:
        raise UserError(f"this is no JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise UserError("this JSON holds no configuration", where=str(path))
    return found
