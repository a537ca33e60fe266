"""The speech plugin keeps every promise of the core's contract."""

from __future__ import annotations

import headstart_speech
from headstart.testing import PluginSuite


class TestSpeech(PluginSuite):
    plugin = headstart_speech
    name = "speech"
