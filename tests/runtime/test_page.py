from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM, *_ = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "docs" / "howto" / "runtime.md").read_text(encoding="utf-8"),
    re.DOTALL,
)


def run(group):
    names = {}
    exec(compile(PROGRAM, "docs/howto/runtime.md", "exec"), names)
    outcome, new = names["moving"].outcome, names["new"]
    return (
        outcome.failures,
        len(outcome.moved),
        names["model"].placement == new,
        names["start"] == new,
    )


def test_the_example_of_the_page_runs(pool):
    for failures, moved, is_there, was_there in pool.run(run):
        assert failures == ()
        assert moved == 5
        assert is_there
        assert not was_there
