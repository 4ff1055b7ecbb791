"""The ranks that serve and their limits, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.groups import SERVING
from equipoise.cli.options.limits import Amount, Redundant, Size
from equipoise.engines.server_costs import Cache
from equipoise.errors import EquipoiseError
from equipoise.simulate.contest import Server
from equipoise.simulate.serving import HandOver

_WHOLE_PROMPTS = 8192  # tokens of a step that computes prompts whole, if none is longer


@Parameter(name="*", group=SERVING)
@dataclass(frozen=True, kw_only=True)
class ServingArguments:
    """Limits of the ranks.

    Parameters
    ----------
    max_sequences
        Largest number of sequences that a rank serves at a time.
    chunked_prefill
        Largest number of tokens of a rank in one step. Prompts are cut to fit next to the sequences
        that decode. 0: prompts are computed whole, while all sequences wait.
    kv_tokens
        Tokens that the KV cache of a rank holds without redundant experts, as engines print it at
        start. If not given: what --hardware and --model leave for it, or no limit without them.
    prefill_ranks
        Number of separate ranks that compute prompts, without balancing. 0: the same ranks compute
        prompts and decode.
    hand_over_seconds
        Seconds that a request takes from the ranks that compute prompts to those that decode (with
        --prefill-ranks).
    """

    max_sequences: Annotated[int, Size] = 128
    chunked_prefill: Annotated[int, Redundant] = 2048
    kv_tokens: Annotated[int | None, Amount] = None
    prefill_ranks: Annotated[int, Redundant] = 0
    hand_over_seconds: Annotated[float, Parameter(validator=Number(gte=0, lte=1e6))] = 0.0

    def check(self, phase: str | None) -> None:
        """Refuse what a pool of its own for prompts, or the lack of one, would ignore."""
        if not self.prefill_ranks and self.hand_over_seconds:
            raise EquipoiseError("--hand-over-seconds: only with --prefill-ranks.")
        if self.prefill_ranks and phase is not None:
            raise EquipoiseError(
                "--serve: not with --prefill-ranks, where one pool decodes and the other computes "
                "prompts."
            )

    def server(self, ranks: int, *, longest_prompt: int, cache: Cache) -> Server:
        """Ranks with these limits; whole prompts are computed even if they are that long."""
        return Server(
            num_ranks=ranks,
            kv_tokens=cache.kv_tokens,
            token_bytes=cache.token_bytes,
            slot_bytes=cache.slot_bytes,
            max_sequences=self.max_sequences,
            max_tokens=self.chunked_prefill or max(_WHOLE_PROMPTS, longest_prompt),
            chunked_prefill=self.chunked_prefill > 0,
            prefill_ranks=self.prefill_ranks,
            hand_over=HandOver(fixed_seconds=self.hand_over_seconds),
        )
