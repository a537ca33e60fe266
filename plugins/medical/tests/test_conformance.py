"""The medical plugin keeps every promise of the core's contract."""

from __future__ import annotations

import headstart_medical
from headstart.testing import PluginSuite


class TestMedical(PluginSuite):
    plugin = headstart_medical
    name = "medical"
