"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headstart.errors import HeadstartError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        HeadstartError: The disk is full or cannot be written; what was there stays.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise HeadstartError(
            "a file of the run cannot be written",
            where=str(path),
            why=str(error),
            fix="make room or choose another folder with --folder",
        ) from error


@contextmanager
def new_folder(target: Path, what: str, fix: str) -> Iterator[Path]:
    """A folder to fill, which bears its name once all of it is there.

    Args:
        target: A folder that is not there, or empty.
        what: Is written, in the plural, for errors.
        fix: Where else it could go.

    Raises:
        UserError: There is something already, or it cannot be written; then nothing is
            left of it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            "there is something already",
            where=str(target),
            why=f"{what} are written as a whole folder",
            fix=fix,
        )
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise UserError(
            f"the {what} cannot be written", where=str(target), why=str(error)
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
