"""Sections of the report for recommenders: who and what is ranked well, and why."""

from headstart_recsys.sections.ranking import by_popularity, known_and_new, samples
from headstart_recsys.sections.vectors import item_map, most_moved, neighbours
from headstart_recsys.sections.whole import sections

__all__ = [
    "by_popularity",
    "item_map",
    "known_and_new",
    "most_moved",
    "neighbours",
    "samples",
    "sections",
]
