"""The toy plugin keeps every promise; broken ones are caught."""

from __future__ import annotations

from headstart.testing import PluginSuite, toy


class TestToy(PluginSuite):
    plugin = toy
    name = "toy"
