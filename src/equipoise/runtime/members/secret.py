"""A secret that processes share, and the signatures they make with it.

The store in which they meet lets in whoever reaches it. So the entries that decide who serves are
signed, and the members ignore entries that are not signed with their secret.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from equipoise.errors import EquipoiseError

VARIABLE, FILE_VARIABLE = "EQUIPOISE_SECRET", "EQUIPOISE_SECRET_FILE"
_LEAST = 16  # characters: whoever reads the store can try short ones
_UNSIGNED = "-"


class Seal:
    """Signs entries of a store with HMAC-SHA256, and checks signatures.

    Parameters
    ----------
    secret
        Secret of at least 16 characters; ``None``: entries are not signed, and signed ones are
        ignored.

    Raises
    ------
    EquipoiseError
        A secret that is too short.
    """

    def __init__(self, secret: str | None) -> None:
        if secret is not None and len(secret) < _LEAST:
            raise EquipoiseError(
                f"The secret has {len(secret)} characters; expected at least {_LEAST}, such as "
                "what `openssl rand -hex 32` prints."
            )
        self._secret = None if secret is None else secret.encode()

    def close(self, key: str, text: str) -> str:
        """Sign the entry of a key."""
        return f"{self._mac(key, text)} {text}"

    def open(self, key: str, entry: bytes) -> str | None:
        """The text of an entry; ``None`` if it is not signed, or not for this key."""
        mac, _, text = entry.decode(errors="replace").partition(" ")
        mine = self._mac(key, text)
        return text if hmac.compare_digest(mac.encode(), mine.encode()) else None

    def _mac(self, key: str, text: str) -> str:
        if self._secret is None:
            return _UNSIGNED
        return hmac.new(self._secret, f"{key}\0{text}".encode(), "sha256").hexdigest()


def secret_of(given: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The secret given, or else the one in the environment: a value, or the first line of a file.

    Raises
    ------
    EquipoiseError
        Both variables are set, or the file cannot be read.
    """
    if given is not None:
        return given
    if VARIABLE in environment and FILE_VARIABLE in environment:
        raise EquipoiseError(f"{VARIABLE} and {FILE_VARIABLE} are both set; set one of them.")
    if FILE_VARIABLE not in environment:
        return environment.get(VARIABLE)
    path = Path(environment[FILE_VARIABLE])
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EquipoiseError(
            f"{FILE_VARIABLE} is {path}, which cannot be read: {error}."
        ) from error
