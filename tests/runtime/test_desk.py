from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch.distributed as dist

from equipoise.control.metrics import Metrics
from equipoise.control.watchdog import Alarms
from equipoise.errors import EquipoiseError
from equipoise.runtime.serving.answers import Answer, Results
from equipoise.runtime.serving.desk import Desk
from equipoise.runtime.serving.door import Door
from equipoise.runtime.serving.requests import Ledger, Request
from equipoise.runtime.serving.trial import Told
from tests.runtime.same_answers import Plain

NEW = 3


@pytest.fixture(scope="module")
def plain() -> Any:
    return Plain()


class Office:
    """A desk with a ledger and a file of its own; requests below 100, those given are hostile."""

    def __init__(self, folder: Any, hostile: dict[int, Any], limit: int = 6, store: Any = None):
        self.store = store or dist.HashStore()
        self.metrics, self.alarms, self.folder = Metrics(), Alarms(), folder
        self.results = Results(folder, "p0")
        self.desk = Desk(
            Ledger(self.store, "me", limit),
            Door(
                lambda n: Request(n, hostile.get(n, (5, 6, n + 10))),
                vocab_size=2048, most_tokens=1024, new_tokens=NEW,
            ),
            self.results, batch_size=3, new_tokens=NEW, metrics=self.metrics, alarms=self.alarms,
        )  # fmt: skip

    def turn(self) -> None:
        self.desk.turn(("me",), leaving=False)

    def serve(self, model: Any) -> None:
        """Until there is nothing more to do."""
        self.turn()
        while self.desk.busy:
            self.finish(model)
            if not self.desk.busy and self.desk.next_group():
                self.turn()

    def finish(self, model: Any) -> None:
        """What is under way; the plain model cannot run without a request."""
        for _ in range(NEW if self.desk.tell().running else 0):
            self.desk.advance(model)
        self.turn()

    def answers(self) -> dict[int, dict[str, Any]]:
        told = [json.loads(line) for line in (self.folder / "p0.jsonl").read_text().splitlines()]
        numbers = [answer["number"] for answer in told]
        assert len(set(numbers)) == len(numbers)
        return {answer["number"]: answer for answer in told}


@pytest.fixture(scope="module")
def right(plain, tmp_path_factory) -> dict[int, dict[str, Any]]:
    """What is answered where nothing is wrong."""
    office = Office(tmp_path_factory.mktemp("right"), {})
    office.serve(plain)
    office.results.close()
    return office.answers()


@pytest.fixture
def opened(tmp_path) -> Iterator[Callable[..., Office]]:
    """Makes the desk of a test."""
    offices: list[Office] = []

    def make(hostile: dict[int, Any] | None = None, **named: Any) -> Office:
        offices.append(Office(tmp_path, hostile or {}, **named))
        return offices[-1]

    yield make
    for office in offices:
        office.results.close()


def test_hostile_requests_cost_only_themselves(plain, right, opened):
    office = opened({0: (), 2: (9999,), 5: "text"})
    office.serve(plain)
    told = office.answers()
    assert {n: a["status"] for n, a in told.items()} == {
        0: "failed", 1: "answered", 2: "failed", 3: "answered", 4: "answered", 5: "failed",
    }  # fmt: skip
    assert told[0]["reason"] == "The prompt is empty; expected at least one token id."
    assert told[2]["tokens"] == []
    assert all(told[number] == right[number] for number in (1, 3, 4))
    assert 'status="failed"} 3.0' in office.metrics.text()
    assert office.metrics.failed_requests == 3


def test_a_batch_of_hostile_requests_only_is_handed_in(plain, opened):
    office = opened(dict.fromkeys(range(6), ()))
    office.serve(plain)
    assert {answer["status"] for answer in office.answers().values()} == {"failed"}
    assert len(office.answers()) == 6


def test_the_culprit_is_found_among_those_that_are_served_together(plain, right, opened):
    office = opened()
    office.turn()  # it is at 0, 1 and 2, of which 1 breaks every pass
    assert hear(office, "it broke")  # 0 | 1 2
    finish_group(office, plain)
    assert office.desk.tell().running == (1, 2)
    assert hear(office, "it broke")  # 1 | 2
    assert hear(office, "it broke")  # 1 alone
    assert office.desk.tell().groups == ((2,),)
    office.serve(plain)
    told = office.answers()
    assert told[1] == {
        "number": 1,
        "status": "failed",
        "tokens": [],
        "reason": "A forward pass that served nothing else broke off: it broke",
    }
    assert all(told[number] == right[number] for number in (0, 2, 3, 4, 5))


def hear(office: Office, broke: str) -> bool:
    office.desk.blame(broke)
    return office.desk.hear([office.desk.tell()])


def finish_group(office: Office, model: Any) -> None:
    office.finish(model)
    assert not office.desk.busy
    assert office.desk.next_group()


def test_what_was_in_no_group_is_served_after_the_trial_of_others(plain, right, opened):
    """As of a rank that was away when the trial began."""
    office = opened(limit=3)
    office.turn()
    others = Told((70,), ((70,), (71,)))
    assert not office.desk.hear([others, office.desk.tell()])
    assert not office.desk.busy
    assert office.desk.next_group()
    assert not office.desk.busy
    assert office.desk.next_group()
    assert office.desk.tell().running == (0, 1, 2)
    office.serve(plain)
    assert office.answers() == {number: right[number] for number in range(3)}


def test_what_others_have_taken_meanwhile_is_dropped(opened):
    office = opened()
    office.turn()
    assert Ledger(office.store, "other", 6).exchange([], 2, ("other",)) == [0, 1]
    office.desk.reclaim()
    assert office.desk.tell().running == (2,)


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process grows beyond this number of bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_answers_that_find_the_disk_full_wait_whole_and_take_no_more(
    plain, right, opened, tmp_path
):
    office = opened()
    office.turn()
    for _ in range(NEW):
        office.desk.advance(plain)
    with full_disk(20):  # in the middle of a line
        office.turn()
        office.turn()
        assert office.alarms.names == {"answers_not_written"}
        assert office.desk.busy
        assert office.desk.tell().running == ()
        assert (tmp_path / "p0.jsonl").read_bytes() == b""
    office.serve(plain)
    assert office.alarms.names == frozenset()
    assert office.answers() == right


def test_a_line_is_what_the_page_says():
    assert json.loads(Answer(7, (1, 2)).line) == {
        "number": 7, "status": "answered", "tokens": [1, 2],
    }  # fmt: skip
    assert json.loads(Answer(7, reason="It is empty.").line) == {
        "number": 7, "status": "failed", "tokens": [], "reason": "It is empty.",
    }  # fmt: skip


def test_results_go_nowhere_without_a_folder(tmp_path):
    nowhere = Results(None, "p0")
    nowhere.write([Answer(1)])
    nowhere.close()
    with pytest.raises(EquipoiseError, match=r"There is no folder .*missing for results; create"):
        Results(tmp_path / "missing", "p0")
    (tmp_path / "file").touch()
    with pytest.raises(EquipoiseError, match="There is no folder"):
        Results(tmp_path / "file", "p0")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_results_are_added_to_regular_files_only(tmp_path, make):
    make(tmp_path / "p0.jsonl")
    with pytest.raises(EquipoiseError, match=r"p0\.jsonl is not a regular file"):
        Results(tmp_path, "p0")


def test_results_are_added_through_a_link(tmp_path):
    (tmp_path / "p0.jsonl").symlink_to(tmp_path / "elsewhere")
    results = Results(tmp_path, "p0")
    results.write([Answer(1, (2,))])
    results.close()
    assert (tmp_path / "p0.jsonl").is_symlink()
    assert json.loads((tmp_path / "elsewhere").read_text())["number"] == 1
