"""Errors that a user can act on, and messages that name the arguments they are about."""

from __future__ import annotations

from collections.abc import Mapping

_MARK = "\N{INFORMATION SEPARATOR ONE}"  # on either side of an argument; text has no use for it


def argument(name: str) -> str:
    """A parameter as a ``Message`` names it, for f-strings: ``f"give {argument('num_ranks')}"``."""
    return f"{_MARK}{name}{_MARK}"


class Message(str):
    """Text about arguments: it names them as Python does, and can name them as a caller does.

    Parameters
    ----------
    text
        The text, with ``argument(name)`` wherever it names one.
    """

    __slots__ = ("parts",)
    parts: tuple[str, ...]
    """Text and names of arguments in turn, text first."""

    def __new__(cls, text: str) -> Message:
        """Take a text, or a message as it is."""
        if isinstance(text, Message):
            return text
        parts = tuple(text.split(_MARK))
        message = super().__new__(cls, "".join(parts))
        message.parts = parts
        return message

    @property
    def arguments(self) -> tuple[str, ...]:
        """The parameters it names, in order."""
        return self.parts[1::2]

    @property
    def marked(self) -> str:
        """The text as it was given, to be part of another message."""
        return _MARK.join(self.parts)

    def named(self, names: Mapping[str, str]) -> str:
        """The text with other names for the arguments, such as the command's options."""
        return "".join(
            names.get(part, part) if i % 2 else part for i, part in enumerate(self.parts)
        )


def named(text: str, names: Mapping[str, str]) -> str:
    """A text with other names for the arguments it is about, if it is a ``Message``."""
    return text.named(names) if isinstance(text, Message) else text


def marked(text: str) -> str:
    """A text to be part of another message, which is then about the same arguments."""
    return text.marked if isinstance(text, Message) else text


class EquipoiseError(ValueError):
    """The caller's mistake, told in one or two sentences: what came, what was expected, what to do.

    A ``ValueError``, so that library users need no import to catch it. The command prints the
    message without a traceback and exits with status 2.

    Parameters
    ----------
    text
        The sentences, with ``argument(name)`` where they name a parameter: ``str(error)`` has
        Python's name of it, and the command puts its option there.
    """

    def __init__(self, text: str) -> None:
        self.message = Message(text)
        super().__init__(self.message)


class FormatError(EquipoiseError):
    """A file or document that is not what its format promises. The message names the file."""
