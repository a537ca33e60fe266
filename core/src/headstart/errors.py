"""Errors that teach: what is wrong, where, why, and what to do about it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        what: The finding, one sentence.
        where: File and row, recipe key, stage; whatever leads the reader there.
        why: Why this cannot work, when the finding alone does not say so.
        fix: What to do; the nearest valid name where there is one.
    """

    what: str
    where: str = ""
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        why = f"\n  why: {self.why}" if self.why else ""
        fix = f"\n  fix: {self.fix}" if self.fix else ""
        return head + why + fix


class HeadstartError(ValueError):
    """A fault, or several of one kind together, told to the person who can mend it.

    Attributes:
        faults: Everything that was found.
        exit_code: What the command line returns for this kind of error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        *faults: Fault | str,
        where: str = "",
        why: str = "",
        fix: str = "",
    ) -> None:
        self.faults: tuple[Fault, ...] = tuple(
            f if isinstance(f, Fault) else Fault(f, where, why, fix) for f in faults
        )
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        body = "\n".join(f"- {f}".replace("\n", "\n  ") for f in self.faults)
        return f"{len(self.faults)} faults:\n{body}"


class UserError(HeadstartError):
    """A recipe, an override or an argument that cannot work."""

    exit_code = 2


class DataError(HeadstartError):
    """Data that cannot be trained or evaluated on."""

    exit_code = 3


class PluginError(HeadstartError):
    """A plugin that is needed and is missing, broken or incompatible."""

    exit_code = 4


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like this one, whatever its case; ``None`` if none is."""
    folded = {known.casefold().strip(): known for known in sorted(names)}
    match = difflib.get_close_matches(
        name.casefold().strip(), list(folded), n=1, cutoff=0.6
    )
    return folded[match[0]] if match else None


def nearest(name: str, names: Iterable[str]) -> str:
    """The hint for a name that does not exist: the closest one, else all of them.

    Returns:
        A sentence for ``fix``, e.g. ``did you mean 'layer3'?``; empty when there are
        no names at all.
    """
    known = sorted(set(names))
    match = closest(name, known)
    if match is not None:
        return f"did you mean {match!r}?"
    if not known:
        return ""
    shown = ", ".join(known[:12])
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"known: {shown}{more}"
