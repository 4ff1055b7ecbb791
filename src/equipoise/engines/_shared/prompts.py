"""Prompts whose routing is recorded, from a file or from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from equipoise.errors import EquipoiseError, FormatError


class _Prompt(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    domain: str = ""


def read_prompts(path: str | Path) -> dict[str, list[str]]:
    """Read prompts by domain, for a capture.

    A file whose first line starts with ``{`` is JSON lines: ``{"prompt": ..., "domain": ...}``,
    where ``domain`` is optional. Any other file has one prompt per line. Blank lines are skipped.

    Raises
    ------
    FormatError
        A file that cannot be read, a line that is not such an object, or no prompt at all.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    numbered = [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise FormatError(f"{path}: no prompts; expected one a line.")
    is_json = numbered[0][1].startswith("{")
    prompts: dict[str, list[str]] = {}
    for number, line in numbered:
        entry = _read_prompt(path, number, line) if is_json else _Prompt(line)
        prompts.setdefault(entry.domain, []).append(entry.prompt)
    return prompts


def _read_prompt(path: Path, number: int, line: str) -> _Prompt:
    try:
        return msgspec.json.decode(line, type=_Prompt)
    except msgspec.DecodeError as error:
        raise FormatError(
            f'{path}, line {number}: {error}; expected {{"prompt": "...", "domain": "..."}}.'
        ) from error


def check_prompts(
    prompts: Mapping[str, Sequence[str]] | Sequence[str],
) -> dict[str, list[str]]:
    """Return the prompts by domain; raise ``EquipoiseError`` if there are none, or empty ones."""
    if isinstance(prompts, str):
        raise EquipoiseError("The prompts are one string; expected a sequence of strings.")
    given = prompts if isinstance(prompts, Mapping) else {"": prompts}
    by_domain = {domain: list(texts) for domain, texts in given.items()}
    if not any(by_domain.values()):
        raise EquipoiseError("No prompts; give at least one.")
    for domain, texts in by_domain.items():
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                where = f" of domain {domain!r}" if domain else ""
                raise EquipoiseError(f"Prompt {index}{where} is {text!r}; expected text.")
    return by_domain
