"""Checksums of experts, computed where their weights are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def expert_checksum(weights: Mapping[str, Tensor], slot: int) -> Tensor:
    """Checksum of the bytes of all tensors of the expert in a slot, a 0-D int64 tensor.

    Every 8-byte word is scrambled together with its position and the results are added up. A
    change of one word changes the sum for certain, since the scrambling (the last step of Steele's
    SplitMix64) is one to one; any other change goes unnoticed with a probability of about 2**-64.
    It does not protect against forgery.

    Parameters
    ----------
    weights
        Tensors by name, ``(slots, ...)`` each. The names enter the checksum, their order does not.
    """
    total = torch.zeros((), dtype=torch.int64, device=next(iter(weights.values())).device)
    for name in sorted(weights):
        words = _words(slot_bytes(weights[name], slot))
        position = torch.arange(1, len(words) + 1, device=words.device)
        # In sequence, so that swapping the contents of two tensors changes the result.
        total = _scramble(total + _scramble(words + position * _GOLDEN).sum())
    return total


def slot_bytes(tensor: Tensor, slot: int) -> Tensor:
    """The bytes of one slot of a contiguous tensor ``(slots, ...)``: a view, 1-D uint8."""
    return tensor[slot].view(-1).view(torch.uint8)


def _words(data: Tensor) -> Tensor:
    """Bytes as 8-byte words, the last filled up with zeros."""
    return nn.functional.pad(data, (0, -len(data) % 8)).view(torch.int64)


def _signed(value: int) -> int:
    """The int64 of the same bits as a number below 2**64."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _scramble(x: Tensor) -> Tensor:
    """Spread every bit over the word; int64 products wrap."""
    for shift, factor in _ROUNDS:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shifted right, with zeros coming in from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)
