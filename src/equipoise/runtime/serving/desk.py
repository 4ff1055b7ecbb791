"""The requests of a process: taken from the ledger, admitted, decoded, answered, handed in."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from equipoise.control.metrics import Metrics
from equipoise.control.watchdog import UNWRITTEN, Alarms
from equipoise.runtime.moe.model import ExpertParallelModel
from equipoise.runtime.serving.answers import Answer, Results
from equipoise.runtime.serving.decoding import Batch, idle_step
from equipoise.runtime.serving.door import Door
from equipoise.runtime.serving.request_times import RequestTimes
from equipoise.runtime.serving.requests import Ledger, Request
from equipoise.runtime.serving.trial import Told, judge


class Desk:
    """One process's part in answering requests.

    Parameters
    ----------
    ledger
        Ledger that gives out request numbers and takes them back once answered.
    door
        Door that turns numbers into requests.
    results
        File of the answers. While it cannot be written to, no more requests are taken.
    batch_size, new_tokens
        See ``Options``.
    metrics, alarms
        Observers that are told what becomes of requests.
    """

    def __init__(
        self,
        ledger: Ledger,
        door: Door,
        results: Results,
        *,
        batch_size: int,
        new_tokens: int,
        metrics: Metrics,
        alarms: Alarms,
    ) -> None:
        self._ledger, self._door, self._results = ledger, door, results
        self._batch_size, self._new_tokens = batch_size, new_tokens
        self._metrics, self._alarms = metrics, alarms
        self._times = RequestTimes(metrics)
        self._batch: Batch | None = None
        self._answers: list[Answer] = []  # to be written and handed in
        self._broke, self._heard = "", 0
        self._groups: tuple[tuple[int, ...], ...] = ()  # of the trial under way
        self._held: dict[int, Request] = {}  # this process's requests during a trial

    @property
    def busy(self) -> bool:
        """Whether there is something to serve or to hand in."""
        return self._batch is not None or bool(self._answers)

    @property
    def domain(self) -> str:
        """Domain of the requests that are served; empty if there are none."""
        return "" if self._batch is None else self._batch.requests[0].domain

    def turn(self, members: Collection[str], *, leaving: bool) -> None:
        """Write and hand in the answers once the batch is done, and take new requests."""
        if self._batch is not None:
            if not self._batch.done:
                return
            self._answer(self._batch)
            self._batch = None
        if not self._written():
            return
        finished = [answer.number for answer in self._answers]
        wanted = 0 if leaving or self._groups else self._batch_size
        numbers = self._ledger.exchange(finished, wanted, members)
        self._times.take(numbers)
        self._answers = []
        self._batch = self._batch_of(self._let_in(numbers))

    def advance(self, model: ExpertParallelModel) -> int:
        """Run one forward pass with all ranks; return how many tokens it has generated."""
        if self._batch is None or self._batch.done:
            idle_step(model)
            return 0
        tokens = self._batch.advance(model)
        self._times.see(self._batch)
        return tokens

    # --- when the ranks change -------------------------------------------------------------------

    def reclaim(self) -> None:
        """Drop what was given to others while this process was away."""
        running = [] if self._batch is None else list(self._batch.requests)
        numbers = [r.number for r in running] + [a.number for a in self._answers] + [*self._held]
        if not numbers:
            return
        ours = set(self._ledger.keep_only(numbers))
        self._times.forget(number for number in numbers if number not in ours)
        self._answers = [answer for answer in self._answers if answer.number in ours]
        self._held = {n: request for n, request in self._held.items() if n in ours}
        kept = [request for request in running if request.number in ours]
        if kept != running:
            self._batch = self._batch_of(kept)

    def blame(self, text: str) -> None:
        """Note the error of the last pass, which no other rank has caused."""
        self._broke = text

    def tell(self) -> Told:
        """Return what this rank tells the others."""
        running = () if self._batch is None else tuple(r.number for r in self._batch.requests)
        return Told(running, self._groups, self._broke, self._heard)

    def hear(self, told: Sequence[Told]) -> bool:
        """Take in what all ranks have told; begin a trial if a request has broken a pass.

        Returns
        -------
        Whether some requests are under suspicion.
        """
        verdict = judge(told)
        self._broke, self._heard = "", verdict.heard
        if not verdict.blamed and not verdict.groups:
            return False
        if self._batch is not None:
            self._held |= {request.number: request for request in self._batch.requests}
        if verdict.culprit in self._held:
            self._answers.append(Answer(verdict.culprit, reason=verdict.reason))
            del self._held[verdict.culprit]
        self._groups = verdict.groups
        self._batch = self._part()
        return verdict.blamed

    def next_group(self) -> bool:
        """Go on to the next group of a trial; called when all ranks are done with the last.

        Returns
        -------
        Whether there was a trial.
        """
        if not self._groups:
            return False
        self._groups = self._groups[1:]
        self._batch = self._part()
        return True

    def _part(self) -> Batch | None:
        """The requests of the present group on this process; of none after the last group."""
        numbers = self._groups[0] if self._groups else tuple(self._held)
        return self._batch_of([self._held[n] for n in numbers if n in self._held])

    # --- answers ---------------------------------------------------------------------------------

    def _answer(self, batch: Batch) -> None:
        for request, tokens in zip(batch.requests, batch.tokens, strict=True):
            self._answers.append(Answer(request.number, tuple(tokens)))
            self._held.pop(request.number, None)

    def _written(self) -> bool:
        """Write the answers before the ledger forgets whose they were; return whether it worked."""
        try:
            self._results.write(self._answers)
        except OSError as error:
            why = f"Answers cannot be written, so no requests are taken: {error}"
            self._alarms.say(UNWRITTEN, True, why)
            return False
        self._alarms.say(UNWRITTEN, False)
        for answer in self._answers:
            self._metrics.take_answered(answer.status)
        self._times.forget(answer.number for answer in self._answers)
        return True

    def _let_in(self, numbers: Sequence[int]) -> list[Request]:
        """The requests that can be served; others are answered as failed."""
        requests = []
        for number in numbers:
            request = self._door.admit(number)
            if isinstance(request, Request):
                requests.append(request)
            else:
                self._answers.append(Answer(number, reason=request))
        return requests

    def _batch_of(self, requests: Sequence[Request]) -> Batch | None:
        return Batch(requests, self._new_tokens) if requests else None
