from __future__ import annotations

import json
from pathlib import Path

import pytest

from equipoise.engines.vllm.load_tail import Tail
from equipoise.errors import FormatError
from tests.engines.vllm.test_load_stats import META, stats


def add(path: Path, *records: object) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stats.jsonl"
    add(path, META, stats(100, [[10, 1, 5, 2], [2, 8, 1, 3]]))
    return path


def test_records_come_as_they_are_written(file):
    tail = Tail(file, None, clock=lambda: 5.0)
    (first,) = tail.look()
    assert (first.time, first.step, first.num_ranks, first.map_version) == (5.0, 100, 2, 0)
    assert first.loads.load_LR.tolist() == [[11, 7], [10, 4]]
    assert first.layer_imbalance == {0: pytest.approx(11 / 9), 1: pytest.approx(10 / 7)}
    assert tail.look() == []
    add(file, stats(200, [[1, 1, 1, 1], [0, 0, 0, 0]]))
    (second,) = tail.look()
    assert (second.step, second.imbalance) == (200, {"all": 1.0})
    assert second.layer_imbalance == {0: 1.0}


def test_another_map_is_counted_with_the_slots_that_changed(file):
    tail = Tail(file, None)
    tail.look()
    add(file, stats(200, [[1] * 4] * 2, [[1, 0, 2, 3], [0, 1, 2, 3]]))
    (seen,) = tail.look()
    assert (seen.map_version, seen.counts.moved_slots) == (1, 2)


def test_half_a_line_waits_for_its_other_half(file):
    tail = Tail(file, None)
    tail.look()
    line = json.dumps(stats(200, [[1] * 4] * 2)) + "\n"
    with file.open("a") as out:
        out.write(line[:30])
    assert tail.look() == []
    with file.open("a") as out:
        out.write(line[30:])
    assert [seen.step for seen in tail.look()] == [200]


def test_a_file_that_was_begun_again_is_read_from_its_start(file):
    tail = Tail(file, None)
    tail.look()
    file.write_text("")
    add(file, stats(7, [[1] * 2], num_ranks=1))
    assert [seen.step for seen in tail.look()] == [7]


def test_of_an_old_file_the_end_is_read_and_what_its_first_line_says(file, monkeypatch):
    monkeypatch.setattr("equipoise.engines.vllm.load_tail._MOST_BYTES", 1 << 10)
    add(file, *(stats(step, [[1] * 4] * 2) for step in range(200, 300)))
    seen = Tail(file, None).look()
    assert 1 < len(seen) < 20
    assert (seen[-1].step, seen[-1].num_ranks) == (299, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("junk", "not a JSON record"),
        (json.dumps(stats(1, [[1, 2, 3]], num_ranks=2)), "3 slots do not divide over 2 ranks"),
        (json.dumps(stats(1, [[1, 2]], [[0, 9]], num_ranks=2)), "p2l_map holds expert 9"),
        (json.dumps(stats(1, [[1, 2]])), "does not say how many ranks recorded it; give num_ranks"),
        (json.dumps(stats(1, [[1 << 60, 2]])), "expected a number from 0 to 2^48"),
        (json.dumps(stats(1, [["x"]])), "Expected `int`"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_junk_is_refused_in_a_sentence(tmp_path, line, message):
    path = tmp_path / "stats.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FormatError) as caught:
        Tail(path, None).look()
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_the_user_may_say_how_many_ranks_there_are(tmp_path):
    path = tmp_path / "stats.jsonl"
    add(path, stats(1, [[1, 2, 3, 2]]))
    assert Tail(path, 2).look()[0].rank_load == {0: 0.75, 1: 1.25}
