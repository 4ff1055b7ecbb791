"""Division of shell text into words, without running or expanding it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from equipoise.errors import EquipoiseError

_PIECE = re.compile(
    r"""\\\r?\n(?=\S)                 # a word that goes on in the next line
      | \\(?:[^\r\n]|$)               # an escaped character
      | '[^']*'
      | "(?:[^"\\]|\\.)*"
      | \$\{[^}]{0,500}\}
      | \$\((?:[^()]|\([^()]*\))*\)    # the output of a command
      | `[^`]*`
      | [^\s'"\\;&|<>()`$]
      | \$""",
    re.DOTALL | re.VERBOSE,
)
_WORD = re.compile(rf"(?:{_PIECE.pattern})+", re.DOTALL | re.VERBOSE)
_BLANK = re.compile(r"(?:[ \t\r\f\v]|\\\r?\n)+")
_BROKEN = re.compile(r"\\[ \t]+(?:\#[^\n]*)?(?:\n|$)|\\\#[^\n]*(?:\n|$)")
_COMMENT = re.compile(r"#[^\n]*")
_REDIRECTION = re.compile(r"\d*(?:<<<|<<-?|<&|<|>>|>&|>\||>)|&>>?")
_END = re.compile(r"\n|&&|\|\||\|&|;;|[;&|()]|[^\S\n]")
_VARIABLE = re.compile(r"(?<!\\)[$`]")


_MOST_LINES = 10  # largest number of broken lines that are named


@dataclass(frozen=True)
class Word:
    """One word of a command.

    Parameters
    ----------
    text
        Text that the program receives, if known.
    raw
        Text as written, with quotes.
    known
        Flag that it contains no variable and no output of a command.
    """

    text: str
    raw: str
    known: bool = True


def plain_word(text: str) -> Word:
    """Make a word that is exactly this text."""
    return Word(text, shlex.quote(text))


@dataclass(frozen=True)
class ShellCommand:
    """A simple command.

    Parameters
    ----------
    words
        Words of the command.
    redirections
        Redirections of input and output: operator and name of the file.
    broken_lines
        Numbers of the first lines that end in a backslash followed by something, so that the shell
        ends the command there. The command is read as its author meant it.
    """

    words: tuple[Word, ...]
    redirections: tuple[tuple[str, Word], ...] = ()
    broken_lines: tuple[int, ...] = ()


@dataclass
class Script:
    """The commands of a shell text, in order.

    Parameters
    ----------
    commands
        Simple commands, whether or not they would run.
    files
        Texts that the script itself writes to files (``cat > FILE <<EOF``), by name.
    """

    commands: list[ShellCommand] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def read_script(text: str) -> Script:
    """Read shell text.

    Raises
    ------
    EquipoiseError
        A quote or a parenthesis that is never closed.
    """
    return _Scanner(text).script()


class _Scanner:
    """A scanner that goes through a text once, word by word."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._script = Script()
        self._words: list[Word] = []
        self._redirections: list[tuple[str, Word]] = []
        self._broken_lines: list[int] = []
        self._operator = ""  # redirection whose file name is still to come
        self._delimiters: list[str] = []  # delimiters of here-documents that start on the next line

    def script(self) -> Script:
        while self._at < len(self._text):
            if self._take(_BROKEN):
                self._note_broken_line()
            elif self._take(_BLANK) or self._take(_COMMENT):
                continue
            elif operator := self._take(_REDIRECTION):
                self._operator = operator
            elif word := self._take(_WORD):
                self._add(_read_word(word))
            elif separator := self._take(_END):
                self._end_of_command(separator)
            else:
                line = self._text.count("\n", 0, self._at) + 1
                raise EquipoiseError(
                    f"Line {line} of the command opens {self._text[self._at]!r} and never closes "
                    "it; close it, or put a backslash before it."
                )
        self._end_of_command("")
        return self._script

    def _note_broken_line(self) -> None:
        if len(self._broken_lines) < _MOST_LINES:
            self._broken_lines.append(self._text.count("\n", 0, self._at - 1) + 1)

    def _take(self, pattern: re.Pattern[str]) -> str:
        """Take the text at the current position if it matches the pattern."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _add(self, word: Word) -> None:
        if self._operator in ("<<", "<<-"):
            self._delimiters.append(word.text)
        elif self._operator:
            self._redirections.append((self._operator, word))
        else:
            self._words.append(word)
        self._operator = ""

    def _end_of_command(self, separator: str) -> None:
        if self._delimiters and separator == "\n":
            name = _written_file(self._words, self._redirections)
            for delimiter in self._delimiters:
                body = self._text_until(delimiter)
                if name is not None:
                    self._script.files[name] = body
            self._delimiters.clear()
        if self._words or self._redirections:
            self._script.commands.append(
                ShellCommand(
                    tuple(self._words), tuple(self._redirections), tuple(self._broken_lines)
                )
            )
        self._words.clear()
        self._redirections.clear()
        self._broken_lines.clear()
        self._operator = ""

    def _text_until(self, delimiter: str) -> str:
        """Take the lines up to one that is only the delimiter."""
        body = []
        while self._at < len(self._text):
            end = self._text.find("\n", self._at)
            end = len(self._text) if end < 0 else end
            line = self._text[self._at : end]
            self._at = end + 1
            if line.strip() == delimiter:
                break
            body.append(f"{line}\n")
        return "".join(body)


def _read_word(raw: str) -> Word:
    pieces = _PIECE.findall(raw)
    known = not any(_VARIABLE.search(piece) for piece in pieces if piece[0] not in "'\\")
    return Word("".join(map(_unquoted, pieces)), raw, known)


def _unquoted(piece: str) -> str:
    if piece[0] == "'":
        return piece[1:-1]
    if piece[0] == '"':
        return re.sub(r'\\([\\"$`])', r"\1", piece[1:-1].replace("\\\n", ""))
    if piece[0] == "\\" and len(piece) > 1:  # a single backslash at the end stands for itself
        return piece[1:].strip("\r\n")
    return piece


def _written_file(words: list[Word], redirections: list[tuple[str, Word]]) -> str | None:
    """Return the file that a command writes its input to."""
    if words and words[0].text == "cat":
        return next((name.text for operator, name in redirections if operator == ">"), None)
    if words and words[0].text == "tee":
        return next((word.text for word in words[1:] if not word.text.startswith("-")), None)
    return None
