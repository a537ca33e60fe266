"""headstart: transfer learning that shows whether it paid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.hookspecs import hookimpl
from headstart.version import __version__

if TYPE_CHECKING:
    from headstart.runs import Run, run


__all__ = ["Run", "__version__", "hookimpl", "run"]


def __getattr__(name: str) -> object:
    # On use, so that a plugin's entry module can import `hookimpl` for nothing.
    if name in ("Run", "run"):
        from headstart import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")
