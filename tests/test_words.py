"""One word, one idea: words and names that were retired, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("models", "src", "docs", "examples", "benchmarks", "tests")

WORDS = {
    r"\b[Aa]like\b": "the same, equal, similar",
    r"\b[Bb]eside\b": "next to, with",
    r"\b[Aa]s\s+many\b": "the same number of",
    r"\b[Ss]o\s+many\b": "this number of, or the number's name",
    r"\b[Aa]new\b": "again, from scratch",
    r"^( *)(?:[\w*]+(?:, [\w*]+)*\n\1    |-{3,}\n\1)Of\b": "a noun first: 'Number of the order'",
}
"""Words retired everywhere, as patterns, and what to write instead."""

NAMES = {
    r"\b(?:Robust|Survivable|Colocate)\((?:[^()]|\([^()]*\))*\bmoves=": "proposals",
    r"(?<![\w-])--moves\b": "--proposals",
    r"\bmoves_per_move\b": "counts_as",
    r"\bwork_of_move\b": "work_of_proposal",
    r"(?<!time_)\bbudget_seconds\b": "time_budget_seconds",
    r"(?<![\w-])--budget-seconds\b": "--time-budget-seconds",
    r"\bProblem\((?:[^()]|\([^()]*\))*\bgroups=": "traffic_groups",
    r"\bproblem\.groups\b": "traffic_groups",
    r"\bgroup_weights\b": "traffic_weights",
    r"\bnum_groups\b": "num_expert_groups, or the traffic groups' own name",
    r"\bcheck_groups\b": "check_expert_groups",
    r"(?<![\w-])--groups\b": "--expert-groups",
    r"\b(?:Survivable|Coverage|coverage|failover_maps)\((?:[^()]|\([^()]*\))*\bdomain=": (
        "failure_domain"
    ),
    r"\bdomains_of_ranks\b": "failure_domain_of_rank",
    r"\bnum_domains\b": "num_failure_domains",
    r"\blayer_groups\b": "layers_by_step",
}
"""Names retired everywhere, as patterns, and what they are now."""

SEARCH = (
    "src/equipoise/plan/search/",
    "src/equipoise/plan/planners/",
    "docs/explanation/robust.md",
)
ONLY_IN = {
    r"\b[Rr]ounds?\b(?![(.]|[ -]robin)": ("sweep, stage", SEARCH),
    r"(?<!ime\s)(?<!ove\s)(?<!emory\s)\bbudgets?\b": (
        "time budget, move budget, memory budget",
        (*SEARCH, "docs/howto/repair.md"),
    ),
    r"(?<!ailure\s)\bdomains?\b": (
        "failure domain",
        ("src/equipoise/plan/weigh/coverage.py", "src/equipoise/plan/planners/survivable.py"),
    ),
    r"(?<!raffic\s)\bgroups?\b": (
        "traffic group",
        (
            "src/equipoise/plan/planners/robust.py",
            "src/equipoise/plan/planners/repair.py",
            "docs/explanation/robust.md",
        ),
    ),
}
"""Words that mean something else in some files, what to write there, and in which."""

EXCEPTIONS = (
    ("tests/engines/vllm/test_load_stats.py", '"num_groups": 1', "a field of vLLM's own"),
    ("src/equipoise/engines/vllm/policy.py", "num_groups: int", "a parameter of vLLM's own"),
)
"""File, text that may stand there, and why."""


def read_texts() -> list[tuple[str, str]]:
    """Path and content of every file of code and prose, without what may stand there."""
    files = [ROOT / "README.md"]
    for place in PLACES:
        files += [p for kind in ("*.py", "*.md", "*.sh") for p in (ROOT / place).rglob(kind)]
    found = []
    for file in sorted(files):
        if file == Path(__file__):
            continue
        name, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        for where, allowed, _ in EXCEPTIONS:
            text = text.replace(allowed, "") if name == where else text
        found.append((name, text))
    return found


TEXTS = read_texts()


def unindented(text: str) -> str:
    """The same lines without indentation, so that one blank separates any two words."""
    return re.sub(r"[ \t]*\n[ \t#]*", "\n", text)


def lines(pattern: str, texts: list[tuple[str, str]]) -> list[str]:
    """Where a pattern stands, as ``file:line``."""
    compiled = re.compile(pattern, re.MULTILINE)
    return [
        f"{name}:{text.count(chr(10), 0, match.end()) + 1}"
        for name, text in texts
        for match in compiled.finditer(text)
    ]


@pytest.mark.parametrize(("pattern", "instead"), [*WORDS.items(), *NAMES.items()])
def test_retired_words_are_gone(pattern, instead):
    found = lines(pattern, TEXTS)
    assert not found, f"write {instead!r} in {', '.join(found)}"


@pytest.mark.parametrize("pattern", ONLY_IN)
def test_words_mean_one_thing_where_they_are_used(pattern):
    instead, places = ONLY_IN[pattern]
    here = [(name, unindented(text)) for name, text in TEXTS if name.startswith(places)]
    found = lines(pattern, here)
    assert not found, f"write {instead!r} in {', '.join(found)}"


@pytest.mark.parametrize(("where", "allowed", "why"), EXCEPTIONS)
def test_no_exception_is_left_over(where, allowed, why):
    assert why
    assert allowed in (ROOT / where).read_text(encoding="utf-8")
