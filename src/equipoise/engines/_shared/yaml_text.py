"""Safe reading of YAML from untrusted sources: tags, anchors, deep nesting are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from equipoise.errors import FormatError

if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MAX_DEPTH = 32
_MAX_DIGITS = 64


def parse_yaml(text: str, where: str) -> tuple[Any, list[Any]]:
    """Read the document in ``text``; also return keys that appear twice in one mapping.

    Parameters
    ----------
    where
        Name of the file, at the start of messages.

    Raises
    ------
    FormatError
        Text that is not YAML, or has several documents, anchors, tags, deep nesting, huge numbers.
    """
    try:
        _refuse_tricks(text, where)
        loader = _Loader(text)
        try:
            return loader.get_single_data(), loader.repeated
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "unknown" if mark is None else mark.line + 1
        raise FormatError(f"{where}: is not safe YAML, line {line}: {error.problem}.") from error
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise FormatError(f"{where}: is not safe YAML ({message}).") from error
    except FormatError:
        raise
    except ValueError as error:  # such as 2001-99-99, 0b_ or a huge number
        raise FormatError(f"{where}: holds a value that cannot be read ({error}).") from error


class _Loader(SafeLoader):
    """A safe loader that also records repeated keys, of which YAML keeps the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[Any] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    self.repeated.append(key)
                seen.add(key)
        return mapping


def _construct_int(loader: SafeLoader, node: yaml.ScalarNode) -> int:
    """Refuse numbers that are too long (0xfff...) for Python to print."""
    if len(node.value) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(node.value)} digits")
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _refuse_tricks(text: str, where: str) -> None:
    """Refuse aliases, tags and deep nesting, which only attacks need."""
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "a YAML anchor or alias; write every list out"
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
            problem = f"the YAML tag {event.tag}; write plain values"
        elif depth > _MAX_DEPTH:
            problem = f"more than {_MAX_DEPTH} levels of nesting"
        else:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            continue
        raise FormatError(f"{where}: line {_line(event)} has {problem}.")


def _line(event: yaml.Event) -> int | str:
    return "unknown" if event.start_mark is None else event.start_mark.line + 1
