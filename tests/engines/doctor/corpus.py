"""Launches from documentation, issue threads and pull requests, with what the doctor says of each.

Structure and flags are theirs; names, paths and numbers that are no facts were replaced. A case
begins with a line on where it is from ("Planted" where the fault is ours; no source where it was
put together from several) and perhaps the options of the command, and ends with the findings
expected, in order.

``python -m tests.engines.doctor.corpus`` writes the table of ``docs/reference/doctor-findings.md``.
"""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from equipoise.engines.doctor.examine import Surroundings, examine
from equipoise.engines.doctor.findings import Diagnosis
from equipoise.engines.transformers.config import read_model_config

HERE = Path(__file__).parent
CASES = HERE / "cases"
MODELS = HERE.parent / "transformers" / "configs"
PAGE = HERE.parents[2] / "docs" / "reference" / "doctor-findings.md"
BEGIN = "<!-- Written by tests/engines/doctor/corpus.py; do not edit up to the end of it. -->"
END = "<!-- The end of what tests/engines/doctor/corpus.py writes. -->"


@dataclass(frozen=True)
class Case:
    """A launch in a file, and what is said of it."""

    path: Path
    about: str
    options: str
    expected: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(CASES).as_posix()

    @property
    def fails(self) -> bool:
        return any(line.startswith(("wrong ", "ignored ")) for line in self.expected)

    @property
    def surroundings(self) -> Surroundings:
        parser = argparse.ArgumentParser()
        for number in ("--devices", "--nodes"):
            parser.add_argument(number, type=int)
        for name in ("--model", "--engine-version"):
            parser.add_argument(name)
        given = parser.parse_args(shlex.split(self.options))
        return Surroundings(
            version=given.engine_version,
            devices=given.devices,
            nodes=given.nodes,
            model=given.model and read_model_config(MODELS / f"{given.model}.json"),
        )

    def diagnoses(self) -> list[Diagnosis]:
        return examine(str(self.path), self.surroundings)


def read_case(path: Path) -> Case:
    text = path.read_text(encoding="utf-8")
    options = re.findall(r"^# options: (.*)$", text, re.MULTILINE)
    return Case(
        path,
        text.partition("\n")[0].removeprefix("# "),
        options[0] if options else "",
        tuple(re.findall(r"^# expects: (.*)$", text, re.MULTILINE)),
    )


ALL = [read_case(path) for path in sorted(CASES.rglob("*")) if path.suffix in (".sh", ".yaml")]


def table() -> str:
    """What is said of every launch."""
    rows = ["| launch | release, options | says |\n|---|---|---|\n"]
    for case in ALL:
        for diagnosis in case.diagnoses():
            said = "<br>".join(
                f"**{f.kind.value}** {_cell(f.flag)}: {_cell(f.text)}" for f in diagnosis.findings
            )
            where = f"{diagnosis.engine} {diagnosis.version}"
            options = re.sub(r"--engine-version \S+", "", case.options).strip()
            name = f"{case.name} {diagnosis.name}".strip()
            rows.append(
                f"| `{name}` {_cell(case.about)} | {where} {_cell(options)} | "
                f"{said or 'nothing wrong found'} |\n"
            )
    return "".join(rows)


def page() -> str:
    """`docs/reference/doctor-findings.md` with the table between its marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}"


def _cell(words: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|~])", r"\\\1", " ".join(words.split()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
