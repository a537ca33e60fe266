"""headstart: transfer learning that shows whether it paid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.hookspecs import hookimpl
from headstart.version import __version__

if TYPE_CHECKING:
    from headstart.cross_validation import cross_validate
    from headstart.fine_tuning import resume, run
    from headstart.runs import Run


__all__ = ["Run", "__version__", "cross_validate", "hookimpl", "resume", "run"]


def __getattr__(name: str) -> object:
    # On use, so that a plugin's entry module can import `hookimpl` for nothing.
    if name in ("resume", "run"):
        from headstart import fine_tuning

        return getattr(fine_tuning, name)
    if name == "cross_validate":
        from headstart.cross_validation import cross_validate

        return cross_validate
    if name == "Run":
        from headstart.runs import Run

        return Run
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")
