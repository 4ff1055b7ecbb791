"""Step-by-step simulation of continuous batching on a pool of ranks that step together.

Before a step, waiting requests are admitted in order of arrival. Each goes to the rank with the
fewest sequences among those with room for it (ties: the lowest rank). A request that no rank has
room for holds up all requests behind it. A request reserves room for its whole prompt and answer
until it ends, so nothing is ever preempted. Real engines take room as answers grow, and preempt
when it runs out.

A sequence gets one token per step, so its last step is known when it starts. The simulator
therefore handles a request only when it is admitted, when its prompt is computed and when it ends.
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
"""Size of a cache, in tokens, that never fills."""

_LIMITS = {"max_sequences": MAX_TOKENS, "max_tokens": MAX_TOKENS, "kv_tokens": NO_LIMIT}
_STEPS_UNTOLD = 1 << 10
_SHORTEST_STEP = 1e-6  # seconds; shorter steps would vanish in the rounding of late times


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
    """A pool of ranks that step together, and the limits of each rank.

    Parameters
    ----------
    step_time
        Model of a step's time.
    num_ranks
        Number of ranks with their own sequences (attention data parallelism); 1 if all ranks share
        every sequence.
    max_sequences
        Largest number of sequences on a rank, including those whose prompt is being computed.
    max_tokens
        Largest number of tokens of a rank in one step: one for each sequence, plus prompt tokens.
    kv_tokens
        Number of tokens that the key-value cache of a rank holds.
    chunked_prefill
        Flag for chunked prefill: every sequence gets its token in each step, and prompts get the
        rest of ``max_tokens`` and may be cut. Otherwise prompts are computed whole, and the
        sequences of all ranks wait meanwhile.
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
    """The work of a pool for each of ``N`` requests, in order of arrival.

    Parameters
    ----------
    arrival_seconds
        Arrival times, ascending, ``(N,)``.
    cached_tokens
        Number of tokens whose keys and values arrive with each request, ``(N,)``.
    prompt_tokens
        Number of tokens to compute before each answer's first token, ``(N,)``; 0 if the first token
        arrives with the request.
    decode_steps
        Number of tokens of each answer that the pool makes after the first, ``(N,)``.
    """

    arrival_seconds: Floats
    cached_tokens: Ints
    prompt_tokens: Ints
    decode_steps: Ints

    @property
    def kv_tokens(self) -> Ints:
        """Cache tokens that each request needs; the last token of an answer needs none."""
        return self.cached_tokens + self.prompt_tokens + self.decode_steps


@dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """The steps of a pool; all arrays are ``(T,)``.

    Parameters
    ----------
    start, seconds
        Start time and duration of each step, in seconds.
    prefill_tokens, sequences
        Numbers of computed prompt tokens and of sequences that got a token, summed over ranks.
    """

    start: Floats
    seconds: Floats
    prefill_tokens: Ints
    sequences: Ints


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """The result of a simulated pool: times of each request, ``(N,)`` seconds, and the steps.

    Parameters
    ----------
    admitted, prompt_done, finished
        Times at which each request left the queue, had its prompt computed, and left the pool.
    steps
        Steps of the pool.
    """

    admitted: Floats
    prompt_done: Floats
    finished: Floats
    steps: Steps


def run(pool: Pool, work: Work, progress: Progress | None = None) -> Timeline:
    """Simulate a pool until all requests are served.

    Parameters
    ----------
    pool, work
        Pool of ranks, and the requests that it serves.
    progress
        Function that is called now and then with the number of requests done and of all.

    Raises
    ------
    EquipoiseError
        A request that never fits, or a step time that is too short, too long or no number.
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
    """The work of one step: chunks of prompts (rank, request, tokens), and numbers by rank."""

    chunks: list[tuple[int, int, int]]
    prefill: Ints
    sequences: Ints
    context: Ints
    num_computed: int
    num_sequences: int


class _Ranks:
    """The state of the simulation: the queue, and the requests on each rank."""

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

        self._members = [0] * num_ranks  # number of requests on each rank
        self._bit = [1 << rank for rank in range(num_ranks)]
        self._most = min(pool.max_sequences, num_requests)  # largest number of requests on a rank
        self._ranks_with = [0] * (self._most + 1)  # for each number of requests, its ranks as bits
        self._ranks_with[0] = (1 << num_ranks) - 1
        self._fewest = 0  # smallest number of requests on any rank
        self._room = [pool.kv_tokens] * num_ranks
        self._prompts: list[deque[int]] = [deque() for _ in range(num_ranks)]
        self._computing: set[int] = set()  # ranks that compute prompts
        self._sequences = np.zeros(num_ranks, np.int64)
        self._context = np.zeros(num_ranks, np.int64)
        # memoryviews of these two, because single numbers are several times faster there.
        self._sequences_of = self._sequences.data
        self._context_of = self._context.data
        self._num_sequences = 0
        self._nothing = np.zeros(num_ranks, np.int64)
        self._num_decoded = 0  # number of steps so far that gave sequences a token
        self._last: defaultdict[int, list[int]] = defaultdict(list)  # requests by their last step

    @property
    def is_done(self) -> bool:
        return self.num_finished == len(self._arrival)

    def next_start(self, now: float) -> float:
        """Return the start of the next step: now, or the next arrival."""
        if self._num_admitted > self.num_finished:
            return now
        arrival: float = self._arrival[self._num_admitted]
        return max(now, arrival)

    def admit(self, now: float) -> None:
        """Admit requests that have arrived and fit, first come first served."""
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
        """Make the batch of the next step."""
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
        """End a step: count its tokens and release the requests that are done."""
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
        """Find the rank with the fewest requests among those with room."""
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
        """Count one more request on a rank."""
        members, bit = self._members[rank], self._bit[rank]
        self._members[rank] = members + 1
        self._ranks_with[members] ^= bit
        self._ranks_with[members + 1] |= bit

    def _part(self, rank: int) -> None:
        """Count one request less on a rank."""
        members, bit = self._members[rank], self._bit[rank]
        self._members[rank] = members - 1
        self._ranks_with[members] ^= bit
        self._ranks_with[members - 1] |= bit
        if members <= self._fewest:
            self._fewest = members - 1

    def _chunks(self) -> list[tuple[int, int, int]]:
        """Choose the parts of prompts for the next step, in order of arrival on each rank."""
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
        """Record that a prompt is computed, which gives the first token."""
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
    """Refuse requests that would wait forever."""
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
