"""Errors that a user can act on, and messages that name the arguments they advise on."""

from __future__ import annotations

from collections.abc import Mapping

_MARK = "\N{INFORMATION SEPARATOR ONE}"  # encloses an argument's name; never part of a text


def argument(name: str) -> str:
    """Mark a parameter's name for use in a ``Message``: ``f"give {argument('num_ranks')}"``."""
    return f"{_MARK}{name}{_MARK}"


class Message(str):
    """A text that mentions arguments, by their Python names or by names of the caller's choice.

    ``str()`` of it has the Python names; ``named`` replaces them, for instance by the options of
    the command.

    Parameters
    ----------
    text
        Text with ``argument(name)`` wherever it mentions an argument.
    """

    __slots__ = ("parts",)
    parts: tuple[str, ...]
    """Alternating texts and names of arguments; the first is a text."""

    def __new__(cls, text: str) -> Message:
        """Split a text at its marked arguments; return a message unchanged."""
        if isinstance(text, Message):
            return text
        parts = tuple(text.split(_MARK))
        message = super().__new__(cls, "".join(parts))
        message.parts = parts
        return message

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments that it mentions, in order."""
        return self.parts[1::2]

    @property
    def marked(self) -> str:
        """The text with its marks, for use as part of another message."""
        return _MARK.join(self.parts)

    def named(self, names: Mapping[str, str]) -> str:
        """Return the text with other names for its arguments, such as the command's options."""
        return "".join(
            names.get(part, part) if i % 2 else part for i, part in enumerate(self.parts)
        )


def named(text: str, names: Mapping[str, str]) -> str:
    """Replace the names of arguments in a ``Message``; return any other text unchanged."""
    return text.named(names) if isinstance(text, Message) else text


def marked(text: str) -> str:
    """Return a text with its marks, so that a message built from it knows the arguments."""
    return text.marked if isinstance(text, Message) else text


class EquipoiseError(ValueError):
    """A mistake of the caller. Its message says what came, what was expected and what to do.

    It is a ``ValueError``, so library users can catch it without an import. The command prints the
    message without a traceback and exits with status 2.

    Parameters
    ----------
    text
        One or two sentences, with ``argument(name)`` where they mention a parameter. ``str(error)``
        shows the Python name of the parameter; the command shows its option instead.
    """

    def __init__(self, text: str) -> None:
        self.message = Message(text)
        super().__init__(self.message)


class FormatError(EquipoiseError):
    """A file or document that breaks the rules of its format. The message names the file."""
