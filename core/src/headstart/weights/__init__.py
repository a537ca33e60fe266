"""Pretrained parameters: where they come from, and how they get into a backbone."""
