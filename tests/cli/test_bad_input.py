"""Every damaged file and wrong argument of the catalogue gets the answer its page shows."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.cli import main
from tests.cli.bad_input import PAGE, SECTIONS, Answer
from tests.cli.samples import write_sample

CASES = [c for cases in SECTIONS.values() for c in cases]
ROWS = [r for r in PAGE.read_text("utf-8").splitlines() if r.startswith("| ")]
ROWS = [r for r in ROWS if r != "| mistake | command | answer |"]

COMMAND = (sys.executable, "-m", "equipoise")


def content(folder: Path) -> dict[str, bytes | int]:
    """Every file of a folder; of what is none, the kind."""

    def look(path: Path) -> bytes | int:
        mode = path.lstat().st_mode
        return path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)

    return {str(path.relative_to(folder)): look(path) for path in folder.rglob("*")}


def test_the_page_has_one_row_for_every_mistake():
    assert len(CASES) == len(ROWS) > 300
    assert len({(c.what, c.command) for c in CASES}) == len(CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: CASES[i].what)
def test_a_mistake_is_explained_and_leaves_nothing_behind(number, tmp_path, monkeypatch):
    mistake = CASES[number]
    monkeypatch.chdir(tmp_path)
    mistake.prepare(tmp_path)
    before = content(tmp_path)
    answer = mistake.run()
    assert answer.status == mistake.status
    assert mistake.row(answer) == ROWS[number], "see what changed: python -m tests.cli.bad_input"
    assert content(tmp_path) == before
    if mistake.status == 2:
        assert answer.out == ""
        assert answer.err.endswith(f"equipoise: {answer.message}\n")
        assert answer.message.endswith((".", "?"))
        assert len(answer.message) < 600
    else:
        assert answer.err == ""
        assert " error: " in answer.message


@pytest.mark.parametrize(
    "what",
    ["an unknown option", "rank file cut off", "a pickle that runs a program", "a layer twice"],
)
def test_a_process_answers_the_same(what, tmp_path):
    number = next(i for i, c in enumerate(CASES) if c.what.endswith(what))
    mistake = CASES[number]
    mistake.prepare(tmp_path)
    done = subprocess.run(
        [*COMMAND, *mistake.command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.status == mistake.status
    assert mistake.row(answer) == ROWS[number]


@pytest.mark.parametrize(
    "command",
    [
        "plan run.safetensors --ranks 1{x}",
        "report run.safetensors --format {x}",
        "report run.safetensors --iterations {x}",
        "report run.safetensors --only-layers {x}",
        "plan run.safetensors --ranks 2 --speed {x}",
        "plan run.safetensors --ranks 2 --dispatch {x}",
        "plan run.safetensors --ranks 2 --rank-cost {x}",
        "plan run.safetensors --ranks 2 --for {x} -o m.json",
        "report run.safetensors {many}",
        "{x}",
    ],
)
def test_a_message_quotes_a_line_of_what_came(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path, "run.safetensors")
    assert main(command.format(x="x" * 100_000, many="a " * 5000).split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 1000


# What a table of commands cannot say --------------------------------------------------------------


def test_permissions(tmp_path, capsys):
    recording = write_sample(tmp_path, "table.csv")
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("the superuser may read and write everything")
    target = tmp_path / "locked" / "map.yaml"
    arguments = ["plan", str(recording), "--ranks", "2", "--for", "trtllm", "-o", str(target)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"equipoise: {target} cannot be written: Permission denied.\n"
    )
    recording.chmod(0)
    assert main(["report", str(recording)]) == 2
    assert capsys.readouterr().err == (
        f"equipoise: {recording} cannot be read: Permission denied.\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        "report run.safetensors --ranks 2 --html old",
        "convert table.csv --to equipoise -o old",
        "convert run.safetensors --to trtllm -o new",
        "convert location.json --ranks 2 --to ascend -o old.json",
        "convert location.json --ranks 2 --hidden-layers 5 --to sglang -o old.pt",
        "plan run.safetensors --ranks 2 --planner contiguous --for ascend -o old.json",
    ],
)
def test_a_full_disk_leaves_the_old_file(command, tmp_path):
    """A limit on the size of files stands for the disk."""
    for name in ("run.safetensors", "table.csv", "location.json"):
        write_sample(tmp_path, name)
    for name in ("old", "old.json", "old.pt"):
        (tmp_path / name).write_text("old")
    before = content(tmp_path)
    done = subprocess.run(
        [*COMMAND, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    output = command.split()[-1]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"equipoise: {output}")
    assert done.stderr.count("\n") == 1
    assert content(tmp_path) == before


def test_a_reader_that_has_seen_enough(tmp_path):
    write_sample(tmp_path, "run.safetensors")
    command = [*COMMAND, "report", "run.safetensors"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_words_of_a_file_are_no_orders_to_the_terminal(tmp_path, capsys):
    recording = tmp_path / "[red]table[green].csv"
    recording.write_text("layer,expert,tokens,\x1b[2J,[/red]\n3,0,5,0,0\n3,1,7,0,0\n")
    target = tmp_path / "map[blink].json"
    where = ["--for", "equipoise", "--output", str(target), "--even-if-worse"]
    assert main(["plan", str(recording), "--ranks", "2", "--hold-out", "0", *where]) == 0
    assert main(["report", str(recording), "--ranks", "2"]) == 0
    assert main(["validate", str(target)]) == 0
    assert main(["convert", str(target), "--to", "ascend", "-o", str(tmp_path / "x.json")]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    shown = ("[/red]", "[red]table[green].csv", "map[blink].json")
    assert all((out + err).count(words) for words in shown)
    assert {line.partition(": note: ")[0] for line in err.splitlines()} == {"equipoise"}


def test_a_terminal_of_few_letters(tmp_path):
    write_sample(tmp_path, "run.safetensors")
    done = subprocess.run(
        [*COMMAND, "report", "run.safetensors", "--ranks", "2"],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_that_are_no_text(capsys):
    assert main(["report", "caf\udce9.csv"]) == 2
    assert "is not UTF-8 text; rename the file" in capsys.readouterr().err


def test_a_name_longer_than_any_file_has(tmp_path, capsys):
    recording, long = str(write_sample(tmp_path, "table.csv")), str(tmp_path / ("x" * 300))
    assert main(["report", long]) == 2
    assert main(["convert", recording, "--to", "equipoise", "--output", long]) == 2
    assert capsys.readouterr().err.count("File name too long") == 2
    assert len(list(tmp_path.iterdir())) == 1
