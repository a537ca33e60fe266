"""Items that a user does not have, drawn on the device that trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS = 4
"""How often an item that the user has is drawn again at most."""
BITS = 16
"""Bits of the filter for each event: one pair in sixteen at most is looked up though
it is no event."""
_CHUNK = 1 << 22
_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4)."""


class EventSampler:
    """Draws items for users, none of which they have (but by great misfortune).

    What a user has is looked up among sorted ``user * items + item`` keys. On a CPU
    that is a cache miss at every step of the search; there a filter of bits tells
    first which pairs can be among them at all (as Bloom 1970, with one hash).

    Args:
        users: Of the events that are known, int32 ``(N,)``; empty: nothing is
            looked up.
        items: Of the same events.
        count: Items in all.
        weights: How often each item is drawn, ``(count,)`` whole numbers; items with
            0 never are. ``None``: all equally often.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        count: int,
        weights: np.ndarray | None = None,
    ) -> None:
        self._count = count
        keys = users.astype(np.int64)
        keys *= count
        keys += items
        keys.sort()
        self._keys = torch.from_numpy(keys)
        self._filter: torch.Tensor | None = None
        self._bits = 0
        self._tickets = count
        # What a ticket stands for: the item itself, a place in a list, or a share.
        self._choices: torch.Tensor | None = None
        self._limits: torch.Tensor | None = None
        if weights is not None:
            drawable = np.flatnonzero(weights)
            if len(np.unique(weights[drawable])) > 1:
                limits = np.cumsum(weights, dtype=np.int64)
                self._limits, self._tickets = torch.from_numpy(limits), int(limits[-1])
            elif len(drawable) < count:
                self._choices = torch.from_numpy(drawable)
                self._tickets = len(drawable)

    def draw(
        self, users: torch.Tensor, shape: Sequence[int], generator: torch.Generator
    ) -> torch.Tensor:
        """Items for users.

        Args:
            users: Codes, int64 ``(B,)``.
            shape: Of the result; begins with ``B``.
            generator: On the users' device.

        Returns:
            Item codes, int64.
        """
        self._move(users.device)
        drawn = self._random(shape, generator)
        if not len(self._keys):
            return drawn
        spread = [len(users)] + [1] * (len(shape) - 1)
        base = (users * self._count).view(spread).expand(drawn.shape)
        if users.device.type != "cpu":
            # Without a look at what was found: that would wait for the device.
            for _ in range(ROUNDS):
                again = self._random(shape, generator)
                drawn = torch.where(self._known(base + drawn), again, drawn)
            return drawn
        flat, base = drawn.view(-1), base.reshape(-1)
        places = self._found(base + flat)
        for _ in range(ROUNDS):
            if not len(places):
                break
            flat[places] = self._random(places.shape, generator)
            places = places[self._found(base[places] + flat[places])]
        return drawn

    def some(
        self,
        users: torch.Tensor,
        without: torch.Tensor,
        count: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Some of what each user has, as a history to train on.

        Drawn with repetition, so that every user has as wide a row and nothing is
        looked up one by one.

        Args:
            users: Codes, int64 ``(B,)``.
            without: The item to be found, which is never among them, int64 ``(B,)``.
            count: Places of each row.
            generator: On the users' device.

        Returns:
            Item codes, int64 ``(B, count)``; -1 where the item to be found was drawn.
        """
        self._move(users.device)
        first, end = (
            torch.searchsorted(self._keys, (users + more) * self._count)
            for more in (0, 1)
        )
        share = torch.rand(
            (len(users), count), generator=generator, device=users.device
        )
        width = (end - first)[:, None]
        place = first[:, None] + (share * width).long().clamp(max=width - 1)
        items = self._keys[place.clamp(min=0, max=len(self._keys) - 1)] % self._count
        return items.masked_fill((items == without[:, None]) | (width == 0), -1)

    def _random(self, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        tickets = torch.randint(
            self._tickets, tuple(shape), generator=generator, device=self._keys.device
        )
        if self._choices is not None:
            return self._choices[tickets]
        if self._limits is not None:
            return torch.searchsorted(self._limits, tickets, right=True)
        return tickets

    def _known(self, keys: torch.Tensor) -> torch.Tensor:
        """Which keys are events."""
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return self._keys[place] == keys

    def _found(self, keys: torch.Tensor) -> torch.Tensor:
        """Places of those keys that are events, by way of the filter."""
        if self._filter is None:
            self._filter = self._make_filter()
        slot = self._slot(keys)
        bit = torch.bitwise_right_shift(self._filter[slot >> 3], (slot & 7).byte())
        maybe = (bit & 1).nonzero().squeeze(1)
        return maybe[self._known(keys[maybe])]

    def _slot(self, keys: torch.Tensor) -> torch.Tensor:
        # The upper bits of a product are its best mixed ones.
        return ((keys * _MULTIPLIER) >> (64 - self._bits)) & ((1 << self._bits) - 1)

    def _make_filter(self) -> torch.Tensor:
        self._bits = max(6, (BITS * len(self._keys) - 1).bit_length())
        table = np.zeros(1 << (self._bits - 3), dtype=np.uint8)
        for start in range(0, len(self._keys), _CHUNK):
            slots = self._slot(self._keys[start : start + _CHUNK]).numpy()
            slots.sort()
            byte = slots >> 3
            first = np.flatnonzero(np.diff(byte, prepend=-1))
            bits = np.left_shift(1, slots & 7).astype(np.uint8)
            table[byte[first]] |= np.bitwise_or.reduceat(bits, first)
        return torch.from_numpy(table)

    def _move(self, device: torch.device) -> None:
        if self._keys.device == device:
            return
        self._keys = self._keys.to(device)
        if self._choices is not None:
            self._choices = self._choices.to(device)
        if self._limits is not None:
            self._limits = self._limits.to(device)
