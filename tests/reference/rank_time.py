"""The time of a rank's share of a layer, term by term in plain loops."""

from __future__ import annotations

import math


def smooth_max(a: float, b: float, sharpness: float) -> float:
    return (a**sharpness + b**sharpness) ** (1 / sharpness)


def rank_seconds(time, load: list[float], tokens: float) -> float:
    """``time`` is a ``RankTime``; ``load`` has the assignments of each slot of one rank."""
    product = time.small_product_seconds if tokens < time.small_tokens else time.product_seconds
    device = time.fixed_seconds + time.token_seconds * tokens
    for assignments in load:
        device += time.slot_seconds
        if assignments > 0:
            padded = math.ceil(assignments / time.token_block) * time.token_block
            padded = padded if time.token_block > 1 else assignments
            device += smooth_max(time.expert_seconds, product * padded, time.sharpness)
            device += time.assignment_seconds * assignments
    return smooth_max(time.host_seconds, device, 8) if time.host_seconds else device
