"""TensorRT-LLM's options file for a map, with the reasons for its values as comments."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from equipoise.dispatch.chunking import advised_max_tokens, busiest_shares, num_chunks
from equipoise.engines.formats import Launch
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement
from equipoise.report.measured import aligned
from equipoise.trace import Trace

_WIDTH = 96
_FIRST_ERA = "pytorch_backend_config"


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The limits on the tokens that the engine sends to its experts at once; ``None``: not known.

    Parameters
    ----------
    max_batch_size
        Most requests that a rank decodes together.
    rank_assignments
        Number of assignments that a rank has room for in a chunk. A token that chose two experts of
        one rank counts twice.
    """

    max_batch_size: int | None = None
    rank_assignments: int | None = None


def options_text(
    launch: Launch, placement: Placement, recording: Trace | None, capacity: Capacity
) -> str:
    """Return the options file: the options of ``launch``, CUDA graphs and the largest chunk.

    The largest chunk is ``moe_max_num_tokens``, the number of tokens of all ranks together up to
    which the engine serves a step in one chunk. It is set to the batches of all ranks, but to no
    more than the busiest rank has room for, judged by the recording.

    Parameters
    ----------
    launch
        Flags and files that load the map.
    placement
        Placement that the map holds.
    recording
        Trace from which the load of the busiest rank follows; ``None``: not known.

    Raises
    ------
    EquipoiseError
        The version's options file is not known; or room for assignments is given without a
        recording that states ``top_k``, or there is room for less than a token.
    """
    if not launch.files:
        raise EquipoiseError(
            f"The options file of TensorRT-LLM {launch.version} is not known; leave it out."
        )
    content: dict[str, Any] = yaml.safe_load(launch.files[0][1])
    most = _largest_chunk(placement, recording, capacity)
    reasons = {
        "enable_attention_dp": "Balancing requires attention data parallelism.",
        "moe_expert_parallel_size": "Whole experts on every rank: start with tensor-parallel size "
        f"{placement.num_ranks}.",
        **_add(content, capacity.max_batch_size, most),
    }
    parts = [f"# Options of TensorRT-LLM {launch.version}, written by equipoise.\n"]
    for key, value in content.items():
        parts += [f"# {line}\n" for line in textwrap.wrap(reasons.get(key, ""), _WIDTH)]
        parts.append(yaml.safe_dump({key: value}, sort_keys=False))
    return "".join(parts)


@dataclass(frozen=True)
class _Chunk:
    """Most tokens of a chunk, all ranks together (``None``: the engine decides), and the reason."""

    max_num_tokens: int | None
    reason: str


def _add(content: dict[str, Any], batch: int | None, most: _Chunk) -> dict[str, str]:
    """Add graphs and the largest chunk under the release's names; return the reasons by key."""
    graphs = (
        "Decoding steps of up to 128 requests a rank run as CUDA graphs, the engine's own default."
        if batch is None
        else "Decoding steps run as CUDA graphs up to the largest batch of a rank."
    )
    if "moe_config" in content:  # since 1.0
        content["cuda_graph_config"] = (
            {} if batch is None else {"enable_padding": True, "max_batch_size": batch}
        )
        if most.max_num_tokens is not None:
            content["moe_config"]["max_num_tokens"] = most.max_num_tokens
        return {"cuda_graph_config": graphs, "moe_config": most.reason}
    section = content.get(_FIRST_ERA, content)
    section["use_cuda_graph"] = True
    if batch is not None:
        section |= {"cuda_graph_padding_enabled": True, "cuda_graph_max_batch_size": batch}
    if most.max_num_tokens is not None:
        section["moe_max_num_tokens"] = most.max_num_tokens
    if section is content:
        return {"use_cuda_graph": graphs, "moe_load_balancer": most.reason}
    return {_FIRST_ERA: f"{graphs} {most.reason}"}


def _largest_chunk(placement: Placement, recording: Trace | None, capacity: Capacity) -> _Chunk:
    reasons, limits = [], []
    ranks, batch = placement.num_ranks, capacity.max_batch_size
    full_step = None if batch is None else batch * ranks
    if full_step is not None:
        limits.append(full_step)
        reasons.append(
            f"With {batch:,} requests on each of {ranks} ranks, the {full_step:,} tokens of a "
            "decoding step fit in one chunk (speculative decoding has several tokens a request)."
        )
    busy = None if recording is None else _busiest(placement, recording, full_step)
    if capacity.rank_assignments is not None:
        if busy is None:
            raise EquipoiseError(
                f"{argument('rank_assignments')} needs the load of the busiest rank, and no load "
                "was recorded; leave it out, or give a recording with load."
            )
        fits = busy.fitting_tokens(capacity.rank_assignments)
        limits.append(fits)
        reasons.append(
            f"A rank has room for {capacity.rank_assignments:,} assignments; the busiest rank may "
            f"get that number from a chunk of {fits:,} tokens."
        )
    most = min(limits, default=None)
    if most is None:
        reasons.append("The engine chooses the number of tokens in a chunk.")
    elif batch is not None and most < batch * ranks:
        chunks = num_chunks([batch] * ranks, most)
        reasons.append(f"That is less, so a full decoding step takes {chunks} chunks.")
    if busy is not None:
        reasons.append(busy.text(most))
    return _Chunk(most, " ".join(reasons))


@dataclass(frozen=True)
class _Busiest:
    """The load of the busiest rank with a map, in some steps of a recording."""

    placement: Placement
    steps: Trace

    def text(self, tokens: int | None) -> str:
        """Return a sentence on the busiest rank's share, and on its assignments in such a chunk."""
        least = int(self.steps.counts.sum(axis=2, dtype=np.int64).max(axis=1).min())
        shares = busiest_shares(self.steps.counts, self.placement)
        step, row = np.unravel_index(int(shares.argmax()), shares.shape)
        share, K = float(shares[step, row]), self.steps.top_k
        count = self.steps.num_steps
        told = (
            f"In the {count} recorded step{'s' * (count != 1)} with {least:,} or more assignments "
            f"in a layer, the busiest rank of this map got at most {share:.1%} of them (step "
            f"{self.steps.steps[step]}, layer {self.steps.layer_ids[row]}; an equal share is "
            f"{1 / self.placement.num_ranks:.1%})"
        )
        if tokens is None or K is None:
            return f"{told}."
        return f"{told}. That is {round(share * tokens * K):,} of a chunk's {tokens * K:,}."

    def fitting_tokens(self, rank_assignments: int) -> int:
        """Return the most tokens of a chunk of which no rank gets more than it has room for."""
        if self.steps.top_k is None:
            raise EquipoiseError(
                f"{argument('rank_assignments')} needs the number of choices per token, which the "
                "recording does not state; leave it out."
            )
        return advised_max_tokens(
            self.steps.counts,
            self.placement,
            top_k=self.steps.top_k,
            rank_assignments=rank_assignments,
        )


def _busiest(placement: Placement, recording: Trace, tokens: int | None) -> _Busiest | None:
    """Return the busiest rank's load in the steps of at least that number of tokens.

    Smaller steps are left out, since chance alone makes few tokens uneven. If no step is that
    large, the largest ones count; if the numbers of tokens are not known, those of at least the
    mean size. The result is ``None`` if there is no load.
    """
    size = recording.counts.sum(axis=2, dtype=np.int64).max(axis=1)
    if not size.any():
        return None
    K = recording.top_k
    wanted = size.mean() if tokens is None or K is None else tokens * K
    steps = recording.select(steps=size >= min(wanted, size.max()))
    return _Busiest(aligned(placement, steps), steps)
