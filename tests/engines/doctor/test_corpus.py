"""What is said of launches from the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.engines.doctor.examine import diagnose
from equipoise.engines.doctor.sources import Launch, launches_of_text
from equipoise.engines.registry import all_knowledge
from tests.engines.doctor.corpus import ALL, PAGE, page

EACH = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


@EACH
def test_the_findings_are_those_expected(case):
    found = [f"{f.kind.value} {f.flag}" for d in case.diagnoses() for f in d.findings]
    assert tuple(found) == case.expected


def test_there_are_launches_of_every_engine_with_and_without_faults():
    engines = {case.name.partition("/")[0] for case in ALL}
    assert engines == {known.engine for known in all_knowledge()}
    sound = [case for case in ALL if not case.fails]
    assert len(ALL) >= 70
    assert 30 <= len(sound) <= len(ALL) - 30
    assert not any(case.about.startswith("Planted") for case in sound)


@EACH
def test_a_corrected_launch_has_nothing_left_to_correct(case):
    for diagnosis in case.diagnoses():
        if diagnosis.corrected is not None:
            fixed = Launch(command=diagnosis.corrected, version=case.surroundings.version)
            again = diagnose(fixed, case.surroundings, case.path.parent)
            assert again.corrected is None
            assert [f for f in again.findings if f.fix] == []


@EACH
def test_a_corrected_command_reads_as_it_was_meant(case, tmp_path):
    for diagnosis in case.diagnoses():
        fixed = diagnosis.corrected
        if fixed is None or not fixed.program:
            continue
        files = "".join(
            f"cat > {name} <<EOF\n{fixed.file_text(name)}EOF\n" for name in fixed.changed_files
        )
        (again,) = launches_of_text(files + fixed.text(), all_knowledge(), Path(tmp_path))
        assert again.command.known.programs == fixed.known.programs
        if not fixed.changed_files and not again.missing:
            assert again.command.settings == fixed.settings
        for name in fixed.changed_files:
            assert again.command.file_text(name) == fixed.file_text(name)


def test_the_table_of_the_page_is_current():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), "run: python -m tests.engines.doctor.corpus"
