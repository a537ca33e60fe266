"""All the sections of a recommender's report, in the order of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart_recsys.sections.items import Items
from headstart_recsys.sections.ranking import by_popularity, known_and_new, samples
from headstart_recsys.sections.vectors import (
    Vectors,
    item_map,
    most_moved,
    neighbours,
)

if TYPE_CHECKING:
    from headstart.report.parts import Evaluation, Section


def sections(evaluation: Evaluation) -> list[Section]:
    """Sections about rankings and about the items' vectors.

    Reads the outputs ``top``, ``hits``, ``held_out``, ``relevant``, ``user``,
    ``cold_user``, ``known`` and, where items are new, ``cold_hits`` and
    ``cold_relevant``; the task's ``items``, ``counts``, ``titles``, ``categories`` and
    ``cold``; and ``item_table`` of ``evaluation.before`` and ``evaluation.after``. What
    is not there leaves its section out.
    """
    items = Items.of(evaluation.task)
    vectors = Vectors.of(evaluation, items)
    return [
        *by_popularity(evaluation, items),
        *known_and_new(evaluation, items),
        *samples(evaluation, items),
        *most_moved(evaluation, items, vectors),
        *neighbours(items, vectors),
        *item_map(items, vectors),
    ]
