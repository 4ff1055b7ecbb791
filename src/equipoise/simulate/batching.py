"""Continuous batching on a pool of ranks that step together, simulated step by step.

Before a step, waiting requests are admitted in the order of their arrival: each to the rank with
the fewest sequences among those with room for it (ties: the lowest rank). The first one that no
rank has room for holds up all behind it. A request keeps room for its whole prompt and answer from
its admission to its end, so nothing is ever preempted; real engines take room as answers grow, and
preempt when it runs out.

A sequence gets one token a step, so the step that ends it is known when it starts. The simulator
therefore touches a request when it is admitted, computed and done, and not in between.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import brief, check_count, check_flag, check_whole
from equipoise.errors import EquipoiseError, argument
from equipoise.simulate.progress import Progress
from equipoise.simulate.requests import MAX_SECONDS, MAX_TOKENS
from equipoise.simulate.step_time import StepTime

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NO_LIMIT = 1 << 40
"""Tokens of a cache that nothing fills."""

_LIMITS = {"max_sequences": MAX_TOKENS, "max_tokens": MAX_TOKENS, "kv_tokens": NO_LIMIT}
_STEPS_UNTOLD = 1 << 10
_SHORTEST_STEP = 1e-6  # seconds; shorter ones would be lost in the rounding of late arrivals


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
    """Ranks that step together, and the limits of each.

    Parameters
    ----------
    step_time
        What a step takes.
    num_ranks
        Ranks with sequences of their own (attention data parallelism); 1 where all ranks share
        every sequence.
    max_sequences
        Sequences of a rank, those whose prompt is being computed included.
    max_tokens
        Tokens of a rank in one step: one for each sequence, and those of prompts.
    kv_tokens
        Tokens that the key-value cache of a rank holds.
    chunked_prefill
        True: a step gives every sequence its token, and what is left of ``max_tokens`` to prompts,
        which it may cut. False: prompts are computed whole, and sequences wait meanwhile, those of
        all ranks.
    """

    step_time: StepTime
    num_ranks: int = 1
    max_sequences: int
    max_tokens: int
    kv_tokens: int
    chunked_prefill: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_ranks", check_count("num_ranks", self.num_ranks))
        for name, high in _LIMITS.items():
            limit = check_whole(name, getattr(self, name), low=1, high=high)
            object.__setattr__(self, name, limit)
        check_flag("chunked_prefill", self.chunked_prefill)
        if self.max_tokens < self.max_sequences:
            raise EquipoiseError(
                f"{argument('max_tokens')} is {self.max_tokens} with {argument('max_sequences')} "
                f"{self.max_sequences}; expected one token for each sequence at least."
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """What a pool does for each request, in the order of their arrival; whole numbers, ``(N,)``.

    Parameters
    ----------
    arrival_seconds
        When each is there, ascending, ``(N,)``.
    cached_tokens
        Tokens whose keys and values come with the request.
    prompt_tokens
        Tokens to compute before the first token of the answer; 0 where it came with the request.
    decode_steps
        Tokens of the answer that the pool makes after the first.
    """

    arrival_seconds: Floats
    cached_tokens: Ints
    prompt_tokens: Ints
    decode_steps: Ints

    @property
    def kv_tokens(self) -> Ints:
        """Room that each needs; the last token of an answer is never read again."""
        return self.cached_tokens + self.prompt_tokens + self.decode_steps


@dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """The steps that a pool took, ``(T,)`` each.

    Parameters
    ----------
    start, seconds
        When each began, and how long it took.
    prefill_tokens, sequences
        Tokens of prompts computed, and sequences that got a token; sums over the ranks.
    """

    start: Floats
    seconds: Floats
    prefill_tokens: Ints
    sequences: Ints


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """What a pool did: seconds ``(N,)`` of each request, and its steps.

    Parameters
    ----------
    admitted, prompt_done, finished
        When each request left the queue, had its prompt computed, and left the pool.
    steps
        The pool's steps.
    """

    admitted: Floats
    prompt_done: Floats
    finished: Floats
    steps: Steps


def run(pool: Pool, work: Work, progress: Progress | None = None) -> Timeline:
    """Serve all requests.

    Parameters
    ----------
    progress
        Function that is told now and then how many requests are done, of how many.

    Raises
    ------
    EquipoiseError
        A request that never fits, or a step of less than a microsecond or without end.
    """
    _check_fits(pool, work)
    ranks = _Ranks(pool, work)
    start, taken, computed, stepped = array("d"), array("d"), array("q"), array("q")
    now, step = 0.0, 0
    while not ranks.is_done:
        now = ranks.next_start(now)
        ranks.admit(now)
        batch = ranks.next_batch()
        seconds = pool.step_time.seconds(step, batch.prefill, batch.sequences, batch.context)
        if not _SHORTEST_STEP <= seconds <= MAX_SECONDS:
            raise EquipoiseError(
                f"Step {step} takes {brief(seconds)} seconds; expected {_SHORTEST_STEP} to "
                f"{MAX_SECONDS:,.0f}."
            )
        start.append(now)
        taken.append(seconds)
        computed.append(batch.num_computed)
        stepped.append(batch.num_sequences)
        now += seconds
        ranks.finish(batch, now)
        step += 1
        if progress is not None and step % _STEPS_UNTOLD == 0:
            progress(ranks.num_finished, len(work.arrival_seconds))
    steps = Steps(
        start=np.array(start),
        seconds=np.array(taken),
        prefill_tokens=np.array(computed),
        sequences=np.array(stepped),
    )
    return Timeline(
        admitted=np.array(ranks.admitted),
        prompt_done=np.array(ranks.prompt_done),
        finished=np.array(ranks.finished),
        steps=steps,
    )


@dataclass(slots=True)
class _Batch:
    """What one step computes: chunks of prompts (rank, request, tokens), and what ranks do."""

    chunks: list[tuple[int, int, int]]
    prefill: Ints
    sequences: Ints
    context: Ints
    num_computed: int
    num_sequences: int


class _Ranks:
    """The queue, and what runs on each rank."""

    def __init__(self, pool: Pool, work: Work) -> None:
        num_requests, num_ranks = len(work.arrival_seconds), pool.num_ranks
        self._pool = pool
        self._arrival = work.arrival_seconds.tolist()
        self._cached = work.cached_tokens.tolist()
        self._left = work.prompt_tokens.tolist()
        self._decode_steps = work.decode_steps.tolist()
        self._needs = work.kv_tokens.tolist()
        self.admitted = [0.0] * num_requests
        self.prompt_done = [0.0] * num_requests
        self.finished = [0.0] * num_requests
        self._rank = [0] * num_requests
        self._num_admitted = self.num_finished = 0

        self._members = [0] * num_ranks  # requests on each rank
        self._bit = [1 << rank for rank in range(num_ranks)]
        self._most = min(pool.max_sequences, num_requests)  # requests of a rank at a time
        self._ranks_with = [0] * (self._most + 1)  # by number of requests, a bit each
        self._ranks_with[0] = (1 << num_ranks) - 1
        self._fewest = 0  # no rank has less
        self._room = [pool.kv_tokens] * num_ranks
        self._prompts: list[deque[int]] = [deque() for _ in range(num_ranks)]
        self._computing: set[int] = set()  # ranks with prompts
        self._sequences = np.zeros(num_ranks, np.int64)
        self._context = np.zeros(num_ranks, np.int64)
        # Views of these two: single numbers are read and written several times as fast.
        self._sequences_of = self._sequences.data
        self._context_of = self._context.data
        self._num_sequences = 0
        self._nothing = np.zeros(num_ranks, np.int64)
        self._num_decoded = 0  # steps that gave sequences a token
        self._last: defaultdict[int, list[int]] = defaultdict(list)  # who ends with which of them

    @property
    def is_done(self) -> bool:
        return self.num_finished == len(self._arrival)

    def next_start(self, now: float) -> float:
        """When the next step can begin: now, or when something arrives."""
        if self._num_admitted > self.num_finished:
            return now
        arrival: float = self._arrival[self._num_admitted]
        return max(now, arrival)

    def admit(self, now: float) -> None:
        """Take in what has arrived and fits, first come first served."""
        while self._num_admitted < len(self._arrival):
            request = self._num_admitted
            if self._arrival[request] > now:
                return
            rank = self._emptiest(self._needs[request])
            if rank is None:
                return
            self._num_admitted += 1
            self.admitted[request] = now
            self._rank[request] = rank
            self._join(rank)
            self._room[rank] -= self._needs[request]
            if self._left[request]:
                self._prompts[rank].append(request)
                self._computing.add(rank)
            else:
                self._begin_answer(request, now)

    def next_batch(self) -> _Batch:
        """What the next step computes."""
        chunks = self._chunks()
        pauses = bool(chunks) and not self._pool.chunked_prefill
        sequences = self._nothing if pauses else self._sequences
        context = self._nothing if pauses else self._context
        prefill, num_computed = self._nothing, 0
        if chunks:
            prefill, context = prefill.copy(), context.copy()
            for rank, request, tokens in chunks:
                prefill[rank] += tokens
                context[rank] += self._cached[request]
                num_computed += tokens
        num_sequences = 0 if pauses else self._num_sequences
        return _Batch(chunks, prefill, sequences, context, num_computed, num_sequences)

    def finish(self, batch: _Batch, now: float) -> None:
        """End a step: count its tokens, and let go of the requests that are done."""
        if batch.num_sequences:
            self._num_decoded += 1
            self._context += self._sequences
            for request in self._last.pop(self._num_decoded, ()):
                self._end_answer(request, now)
        for rank, request, tokens in batch.chunks:
            self._left[request] -= tokens
            self._cached[request] += tokens
            if not self._left[request]:
                self._prompts[rank].popleft()
                if not self._prompts[rank]:
                    self._computing.remove(rank)
                self._begin_answer(request, now)

    def _emptiest(self, tokens: int) -> int | None:
        """The rank with the fewest requests of those with room."""
        while not self._ranks_with[self._fewest]:
            self._fewest += 1
        for members in range(self._fewest, self._most):
            ranks = self._ranks_with[members]
            while ranks:
                lowest = ranks & -ranks
                rank = lowest.bit_length() - 1
                if self._room[rank] >= tokens:
                    return rank
                ranks ^= lowest
        return None

    def _join(self, rank: int) -> None:
        """Count a request more on a rank."""
        members, bit = self._members[rank], self._bit[rank]
        self._members[rank] = members + 1
        self._ranks_with[members] ^= bit
        self._ranks_with[members + 1] |= bit

    def _part(self, rank: int) -> None:
        """Count a request less on a rank."""
        members, bit = self._members[rank], self._bit[rank]
        self._members[rank] = members - 1
        self._ranks_with[members] ^= bit
        self._ranks_with[members - 1] |= bit
        if members <= self._fewest:
            self._fewest = members - 1

    def _chunks(self) -> list[tuple[int, int, int]]:
        """Parts of prompts for the next step, in the order of their arrival on each rank."""
        chunks = []
        for rank in self._computing:
            left = self._pool.max_tokens
            if self._pool.chunked_prefill:
                left -= self._sequences_of[rank]
            for request in self._prompts[rank]:
                tokens = min(left, self._left[request])
                if not tokens or (tokens < self._left[request] and not self._pool.chunked_prefill):
                    break
                chunks.append((rank, request, tokens))
                left -= tokens
        return chunks

    def _begin_answer(self, request: int, now: float) -> None:
        """The prompt is computed, which gives the first token."""
        self.prompt_done[request] = now
        if not self._decode_steps[request]:
            self._leave(request, now)
            return
        rank = self._rank[request]
        self._sequences_of[rank] += 1
        self._num_sequences += 1
        self._context_of[rank] += self._cached[request]
        self._last[self._num_decoded + self._decode_steps[request]].append(request)

    def _end_answer(self, request: int, now: float) -> None:
        rank = self._rank[request]
        self._sequences_of[rank] -= 1
        self._num_sequences -= 1
        self._context_of[rank] -= self._cached[request] + self._decode_steps[request]
        self._leave(request, now)

    def _leave(self, request: int, now: float) -> None:
        rank = self._rank[request]
        self._part(rank)
        self._room[rank] += self._needs[request]
        self.finished[request] = now
        self.num_finished += 1


def _check_fits(pool: Pool, work: Work) -> None:
    """Refuse requests that would wait for ever."""
    most = int(work.kv_tokens.max())
    if most > pool.kv_tokens:
        raise EquipoiseError(
            f"A request needs {most:,} tokens of the cache and a rank has {pool.kv_tokens:,}; "
            f"raise {argument('kv_tokens')}, or cut the prompts and answers."
        )
    longest = int(work.prompt_tokens.max())
    if longest > pool.max_tokens and not pool.chunked_prefill:
        raise EquipoiseError(
            f"A prompt has {longest:,} tokens and a step takes {pool.max_tokens:,}; "
            f"raise {argument('max_tokens')} or use chunked prefill."
        )
