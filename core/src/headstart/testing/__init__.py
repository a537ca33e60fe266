"""Tools for tests of the core and of plugins."""
