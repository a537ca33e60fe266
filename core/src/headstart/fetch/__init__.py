"""Bring one file to this machine: from a web address, a package, or a hub."""
