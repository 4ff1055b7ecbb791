from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.report import pages as module
from equipoise.report.pages import KINDS, page, pages

DOCS = Path(__file__).parents[2] / "docs"


def test_every_page_is_known_by_its_name():
    files = [file for kind in KINDS for file in (DOCS / kind).rglob("*.md")]
    assert len(pages()) == len(files), "two pages have one name"
    assert {one.path for one in pages().values()} == set(files)


def test_every_page_has_a_title():
    assert [one.name for one in pages().values() if one.title == one.name] == []


def test_a_page_in_a_pipe_is_its_text(capsys):
    assert main(["explain", "concepts"]) == 0
    assert capsys.readouterr().out == (DOCS / "explanation/concepts.md").read_text()


def test_without_a_topic_all_are_listed(capsys):
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert all(heading in out for heading in KINDS.values())
    assert all(f"  {name} " in out for name in pages())
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_one_document(capsys):
    assert main(["explain", "lab", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["page"], told["kind"]) == ("lab", "tutorial")
    assert told["text"] == (DOCS / "tutorial/lab.md").read_text()
    assert main(["explain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pages"]) == len(pages())


def test_a_word_that_pages_say_leads_to_them(capsys):
    assert main(["explain", "spikes"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("equipoise: No page is called 'spikes'; the word is in ")
    assert main(err.rstrip(".\n").split("equipoise ")[-1].split()) == 0


def test_pages_whose_title_says_the_word_come_first(capsys):
    assert main(["explain", "vllm-ascend"]) == 2
    first, second, *_ = capsys.readouterr().err.split(" is in ")[1].split(", ")
    assert {first, second} == {"plugins", "traces-sglang-vllm"}


def test_a_word_that_is_nowhere_is_not_guessed_at(capsys):
    assert main(["explain", "q" * 9]) == 2
    assert capsys.readouterr().err.endswith("; equipoise explain lists all.\n")


def test_a_page_about_a_word_comes_before_pages_that_say_it_often(capsys):
    assert main(["explain", "TensorRT-LLM"]) == 2
    assert "; the word is in trtllm, " in capsys.readouterr().err


def test_a_name_that_is_nearly_right_is_told(capsys):
    assert main(["explain", "plannerz"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean planners?\n")


@pytest.mark.parametrize("topic", ["../../etc/passwd", "x" * 4000, "(", "\x1b[31m"])
def test_strange_topics_are_refused(topic, capsys):
    assert main(["explain", topic]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err) < 1000


def test_a_package_without_pages_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "a" / "b" / "c")
    with pytest.raises(module.EquipoiseError, match="install equipoise from its wheel"):
        page("lab")


def test_on_a_terminal_a_page_is_laid_out():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "equipoise", "explain", "concepts"]
    env = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[1m" in shown
    assert b"## " not in shown
