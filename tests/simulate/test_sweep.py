from __future__ import annotations

import json
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from equipoise.errors import EquipoiseError, FormatError
from equipoise.simulate.arrivals import poisson
from equipoise.simulate.batching import Pool
from equipoise.simulate.requests import Requests
from equipoise.simulate.serving import serve
from equipoise.simulate.step_time import LinearStepTime
from equipoise.simulate.sweep import sweep

CASES = [{"rate": rate, "sequences": n} for rate in (5, 20) for n in (2, 8)]


def simulate(case):
    requests = Requests(
        arrival_seconds=poisson(200, requests_per_second=case["rate"]),
        prompt_tokens=20,
        output_tokens=10,
    )
    pool = Pool(
        step_time=LinearStepTime(fixed_seconds=0.01),
        max_sequences=case["sequences"],
        max_tokens=64,
        kv_tokens=1000,
    )
    return serve(requests, pool).summary()


class Runs:
    """Runs cases and counts them; fails where it is told to."""

    def __init__(self, fails=()):
        self.seen, self.fails = [], fails
        self.lock = threading.Lock()

    def __call__(self, case):
        with self.lock:
            self.seen.append(case)
        if case["rate"] in self.fails:
            raise ArithmeticError("on purpose")
        return {"twice": 2 * case["rate"], "b": 0, "a": 1}


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_threads_and_processes_give_the_same(tmp_path, threads):
    by_threads = sweep(CASES, simulate, executor=threads, path=tmp_path / "threads.jsonl")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        path = tmp_path / "processes.jsonl"
        by_processes = sweep(CASES, simulate, executor=processes, path=path)
    assert by_threads == by_processes == [simulate(case) for case in CASES]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(map(str, (line["case"] for line in lines))) == sorted(map(str, CASES))


@pytest.mark.long
def test_a_local_dask_cluster_gives_the_same_and_goes_on(tmp_path, threads):
    distributed = pytest.importorskip("distributed", reason="Dask has an environment of its own")
    path = tmp_path / "dask.jsonl"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        first = sweep(CASES[:2], simulate, executor=executor, path=path)
        again = sweep(CASES, simulate, executor=executor, path=path)
    assert len(path.read_text().splitlines()) == len(CASES)
    assert again[:2] == first
    assert again == sweep(CASES, simulate, executor=threads, path=tmp_path / "threads.jsonl")


def test_finished_cases_are_not_run_again(tmp_path, threads):
    path = tmp_path / "s.jsonl"
    first = Runs()
    sweep(CASES[:2], first, executor=threads, path=path)
    assert len(first.seen) == 2
    again, told = Runs(), []
    results = sweep(
        CASES, again, executor=threads, path=path, progress=lambda *done: told.append(done)
    )
    assert sorted(map(str, again.seen)) == sorted(map(str, CASES[2:]))
    assert told == [(3, 4), (4, 4)]
    assert results == [{"twice": 2 * case["rate"], "b": 0, "a": 1} for case in CASES]


def test_the_order_of_a_case_does_not_matter_and_equal_cases_run_once(tmp_path, threads):
    path, runs = tmp_path / "s.jsonl", Runs()
    case, turned = {"rate": 1, "x": 2}, {"x": 2, "rate": 1}
    results = sweep([case, turned, case], runs, executor=threads, path=path)
    assert len(results) == 3
    assert len(runs.seen) == 1


def test_a_line_cut_in_the_middle_is_run_again(tmp_path, threads):
    path = tmp_path / "s.jsonl"
    sweep(CASES, Runs(), executor=threads, path=path)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in (1, 5, len(last) - 1):
        path.write_bytes(whole[: len(whole) - cut])
        runs = Runs()
        sweep(CASES, runs, executor=threads, path=path)
        assert len(runs.seen) == 1
        lines = path.read_text().splitlines()
        assert [json.loads(line)["result"]["a"] for line in lines] == [1, 1, 1, 1]


def test_a_case_that_fails_stops_no_other_and_is_tried_again(tmp_path, threads):
    path = tmp_path / "s.jsonl"
    with pytest.raises(ArithmeticError) as failed:
        sweep(CASES, Runs(fails=(5,)), executor=threads, path=path)
    assert '"rate": 5' in failed.value.__notes__[0]
    assert len(path.read_text().splitlines()) == 2
    again = Runs()
    sweep(CASES, again, executor=threads, path=path)
    assert [case["rate"] for case in again.seen] == [5, 5]


@pytest.mark.parametrize(
    "case", [{"a": float("nan")}, {"a": (1, 2)}, {1: 2}, {"a": {1, 2}}, {"a": {2: 1}}, "a", [1]]
)
def test_cases_that_json_does_not_have_are_refused(case, tmp_path, threads):
    with pytest.raises(EquipoiseError):
        sweep([case], Runs(), executor=threads, path=tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_results_that_json_does_not_have_are_refused(tmp_path, threads):
    path = tmp_path / "s.jsonl"
    with pytest.raises(EquipoiseError, match="The result is"):
        sweep(CASES[:1], lambda case: {1, 2}, executor=threads, path=path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"hello",
        b"\n",
        b"[1]\n",
        b'{"case": 3, "result": 4}\n',
        b'{"case": {"a": 1}}\n',
        b'{"case": {"a": 1}, "result": 1}\n\xff\n',
        b'{"case": {"a": 1}, "result": 1}\nfoo',
        b"[" * 99_999 + b"\n",
        b'{"case": {"a": 1}, "result": NaN' + b"9" * 5000 + b"}\n",
    ],
)
def test_files_that_are_no_sweep_are_refused_and_left_alone(content, tmp_path, threads):
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"s\.jsonl"):
        sweep(CASES, Runs(), executor=threads, path=path)
    assert path.read_bytes() == content


def test_places_that_cannot_be_written_are_refused(tmp_path, threads):
    for path in (tmp_path, tmp_path / "missing" / "s.jsonl"):
        with pytest.raises(EquipoiseError):
            sweep(CASES, Runs(), executor=threads, path=path)
