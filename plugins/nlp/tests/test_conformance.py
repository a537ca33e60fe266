"""The nlp plugin keeps every promise of the core's contract."""

from __future__ import annotations

import headstart_nlp
from headstart.testing import PluginSuite


class TestNlp(PluginSuite):
    plugin = headstart_nlp
    name = "nlp"
