"""For those who write a plugin: the conformance suite, and the toy plugin.

::

    import headstart_audio_tags
    from headstart.testing import PluginSuite

    class TestConformance(PluginSuite):
        plugin = headstart_audio_tags
        name = "audio-tags"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.testing.suite import PluginSuite

__all__ = ["PluginSuite"]


def __getattr__(name: str) -> object:
    # On use: the toy plugin beside it must import no torch, as any plugin.
    if name == "PluginSuite":
        from headstart.testing.suite import PluginSuite

        return PluginSuite
    raise AttributeError(f"module 'headstart.testing' has no attribute {name!r}")
