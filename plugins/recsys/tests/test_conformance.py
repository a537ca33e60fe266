"""The recsys plugin keeps every promise of the core's contract."""

from __future__ import annotations

import headstart_recsys
from headstart.testing import PluginSuite


class TestRecsys(PluginSuite):
    plugin = headstart_recsys
    name = "recsys"
