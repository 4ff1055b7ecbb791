"""Errors that a user can act on."""

from __future__ import annotations


class EquipoiseError(ValueError):
    """The caller's mistake, told in one or two sentences: what came, what was expected, what to do.

    A ``ValueError``, so that library users need no import to catch it. The command prints the
    message without a traceback and exits with status 2.
    """


class FormatError(EquipoiseError):
    """A file or document that is not what its format promises. The message names the file."""
