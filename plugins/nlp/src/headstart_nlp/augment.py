"""Augmentation of token ids: dropout of tokens, and swaps of neighbouring words.

Both work on whole batches on their device, and are functions of the generator alone.
Token dropout follows the word dropout of Iyyer et al. (ACL 2015), with the mask token
in the place of the dropped one; the random swap is that of Wei and Zou, *EDA* (EMNLP
2019), restricted to neighbours so that phrases stay near each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def _uniform(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator
) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn.to(like.device)


def drop_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    share: float,
    mask_id: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
) -> Tensor:
    """Replace a share of the tokens by the mask token.

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens), 0 for padding.
        share: Probability for each token.
        mask_id: The mask token.
        special_ids: Ids that are never replaced.
        generator: The only source of chance.
    """
    dropped = _uniform(tuple(input_ids.shape), input_ids, generator) < share
    dropped &= attention_mask.bool()
    for special in special_ids:  # a handful; a tensor of them would cost a transfer
        dropped &= input_ids != special
    return input_ids.masked_fill(dropped, mask_id)


def swap_words(
    input_ids: Tensor, word_ids: Tensor, *, share: float, generator: torch.Generator
) -> Tensor:
    """Let neighbouring words change places, all tokens of a word together.

    Words are paired (from the first or the second, at random per row) and each pair
    is swapped with probability ``share``, so about that share of the words moves, none
    by more than one place and none across a special token.

    Args:
        input_ids: (batch, tokens).
        word_ids: (batch, tokens), the word of each token, -1 for special tokens and
            padding.
        share: Probability for each pair.
        generator: The only source of chance.
    """
    batch, length = word_ids.shape
    starts = torch.ones_like(word_ids, dtype=torch.bool)
    starts[:, 1:] = (word_ids[:, 1:] != word_ids[:, :-1]) | (word_ids[:, 1:] < 0)
    # Place of each token's word in its row; special tokens count as words here.
    place = starts.long().cumsum(1) - 1
    movable = torch.zeros(batch, length + 2, dtype=torch.bool, device=word_ids.device)
    movable.scatter_(1, place, word_ids >= 0)
    drawn = _uniform((batch, length + 1), word_ids, generator)
    first = drawn[:, :length] < share
    parity = (drawn[:, length:] < 0.5).long()
    places = torch.arange(length, device=word_ids.device)[None, :]
    first &= (places % 2 == parity) & movable[:, :length] & movable[:, 1 : length + 1]
    step = first.long()
    step[:, 1:] -= first[:, :-1].long()
    order = torch.argsort(place + step.gather(1, place), dim=1, stable=True)
    return input_ids.gather(1, order)
