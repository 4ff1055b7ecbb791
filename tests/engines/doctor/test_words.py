"""Shell text is split into words as a shell does."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.doctor.words import plain_word, read_script
from equipoise.errors import EquipoiseError


def words(text: str) -> list[list[str]]:
    return [[word.text for word in command.words] for command in read_script(text).commands]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b  c", [["a", "b", "c"]]),
        ("a \\\n  b", [["a", "b"]]),
        ("a\\\n b", [["a", "b"]]),
        ("a\\\nb", [["ab"]]),
        ("a; b && c || d | e & f", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a # b\nc", [["a"], ["c"]]),
        ("a#b", [["a#b"]]),
        ("'a b' \"c d\" e\\ f", [["a b", "c d", "e f"]]),
        ("""--x='{"a": 1}'""", [['--x={"a": 1}']]),
        ('"a\\"b" \'c"d\'', [['a"b', 'c"d']]),
        ("a > log 2>&1", [["a"]]),
        ("(a b)", [["a", "b"]]),
        ("", []),
        ("''", [[""]]),
        ("a '' b", [["a", "", "b"]]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.lists(st.text("ab '\"\\$`;#|&<>()\n-={}é", max_size=8), min_size=1, max_size=5))
def test_quoted_words_come_back(texts):
    assert words(" ".join(map(shlex.quote, texts))) == [texts]
    assert words(" ".join(plain_word(text).raw for text in texts)) == [texts]


@given(st.lists(st.text("ab'\"\\{}:, \n", max_size=6), min_size=1, max_size=4))
def test_a_shell_agrees(pieces):
    text = " ".join(pieces)
    try:
        read = words(f"printf '%s|' {text}")
    except EquipoiseError:
        return
    done = subprocess.run(["sh", "-c", f"printf '%s|' {text}"], capture_output=True, text=True)
    broken = any(command.broken_lines for command in read_script(f"x {text}").commands)
    if len(read) == 1 and done.returncode == 0 and not broken:
        assert done.stdout == "".join(f"{word}|" for word in read[0][2:] or [""])


@pytest.mark.parametrize("text", ["$A", '"$A"', "a$A", "${A:-b c}", "$(echo a b)", "`echo a`"])
def test_what_only_the_shell_knows(text):
    ((word,),) = [command.words for command in read_script(text).commands]
    assert (word.known, word.raw) == (False, text)


@pytest.mark.parametrize("text", ["'$A'", "\\$A", '"\\$A"'])
def test_what_looks_like_a_variable(text):
    ((word,),) = [command.words for command in read_script(text).commands]
    assert (word.known, word.text) == (True, "$A")


@pytest.mark.parametrize("text", ["'a", 'b "c', "a\n'b"])
def test_what_is_never_closed(text):
    with pytest.raises(EquipoiseError, match="never closes"):
        read_script(text)


def test_texts_that_a_script_writes():
    script = read_script(
        "cat > a.yaml <<'EOF'\nx: 1\n  y: $B\nEOF\ntee b <<-E\n\tz\n\tE\nc d <<F\ne\n"
    )
    assert script.files == {"a.yaml": "x: 1\n  y: $B\n", "b": "\tz\n"}
    assert [command.words[0].text for command in script.commands] == ["cat", "tee", "c"]


def test_something_behind_a_backslash():
    first, second = read_script("a \\  # one\n  b \\\n c \\ \n d\ne").commands
    assert [word.text for word in first.words] == ["a", "b", "c", "d"]
    assert (first.broken_lines, second.broken_lines) == ((1, 3), ())
