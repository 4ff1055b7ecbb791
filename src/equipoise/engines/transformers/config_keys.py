"""The values of a ``config.json`` by key, each checked where it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.checks import MAX_COUNT, brief, check_whole
from equipoise.errors import FormatError

_LARGEST = 1 << 32  # of a width or a number of heads


class UnknownFactError(Exception):
    """A fact that a configuration does not state; the text says why, as the end of a sentence."""


class MissingKeyError(FormatError):
    """Keys that a configuration lacks; the message names them."""

    def __init__(self, where: str, names: Sequence[str]) -> None:
        super().__init__(
            f"{where}: misses {', '.join(names)}; give the config.json that came with the model."
        )
        self.names = tuple(names)


class Keys:
    """The object of a ``config.json`` that describes the language model.

    Parameters
    ----------
    values
        The object. A key whose value is ``null`` counts as missing.
    where
        File, and place of the object in it, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def get(self, name: str) -> Any:
        """Return the value of a key; ``None`` if it is missing."""
        return self._values.get(name)

    def has(self, *names: str) -> bool:
        """Return whether one of the keys is there."""
        return any(self.get(name) is not None for name in names)

    def need(self, *names: str | tuple[str, ...]) -> None:
        """Raise ``MissingKeyError`` with the names of all keys that are missing.

        A tuple holds alternative names of one key; one of them suffices.
        """
        spellings = [name if isinstance(name, tuple) else (name,) for name in names]
        missing = [" or ".join(some) for some in spellings if not self.has(*some)]
        if missing:
            raise MissingKeyError(self.where, missing)

    def whole(
        self, *names: str, default: int | None = None, low: int = 0, high: int = _LARGEST
    ) -> int:
        """Return the whole number of the first of these keys that is there.

        Raises
        ------
        FormatError
            There is neither key nor default, the value is of another kind, or keys disagree.
        """
        found = {name: self.get(name) for name in names if self.has(name)}
        if not found:
            if default is None:
                raise MissingKeyError(self.where, [" or ".join(names)])
            return default
        numbers = {name: self._number(name, value, low, high) for name, value in found.items()}
        if len(set(numbers.values())) > 1:
            said = " and ".join(f"{name} {number}" for name, number in numbers.items())
            raise FormatError(f"{self.where}: says {said}, which mean the same; keep one.")
        return next(iter(numbers.values()))

    def of_all_layers(self, *names: str) -> int:
        """Return the whole number of the first of these keys; a list must have equal entries.

        Raises
        ------
        UnknownFactError
            The layers differ.
        """
        name = next((name for name in names if self.has(name)), names[0])
        value = self.get(name)
        if not isinstance(value, list):
            return self.whole(name)
        numbers = {self._number(name, number, 0) for number in value}
        if len(numbers) != 1:
            raise UnknownFactError(f"{name} differs between the layers")
        return numbers.pop()

    def ids(self, name: str, limit: int) -> tuple[int, ...]:
        """Return the distinct layer ids in the list of a key, ascending; none if it is missing."""
        value = self._items(name)
        return tuple(sorted({self._number(name, one, 0, limit - 1) for one in value}))

    def words(self, name: str, length: int) -> tuple[str, ...]:
        """Return the list of a key with one word for each layer; none if it is missing."""
        value = self._items(name)
        if not all(isinstance(word, str) for word in value):
            raise FormatError(f"{self.where}: {name} is {brief(value)}; expected names.")
        if value and len(value) != length:
            raise FormatError(
                f"{self.where}: {name} has {len(value)} entries and the model {length} layers."
            )
        return tuple(value)

    def _items(self, name: str) -> list[Any]:
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise FormatError(f"{self.where}: {name} is {brief(value)}; expected a list.")
        if len(value or ()) > MAX_COUNT:
            raise FormatError(f"{self.where}: {name} has more than {MAX_COUNT:,} entries.")
        return value or []

    def _number(self, name: str, value: Any, low: int, high: int = _LARGEST) -> int:
        try:
            return check_whole(name, value, low=low, high=high)
        except ValueError as error:
            raise FormatError(f"{self.where}: {error}") from error
