"""Launches in shell text, compose files and options files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from equipoise.checks import brief
from equipoise.engines._shared.yaml_text import parse_yaml
from equipoise.engines.doctor.arguments import read_arguments, read_options
from equipoise.engines.doctor.bounded import is_here, read_bounded
from equipoise.engines.doctor.command import Argument, LaunchCommand, Unknown
from equipoise.engines.doctor.knowledge import Knowledge
from equipoise.engines.doctor.words import ShellCommand, Word, plain_word, read_script
from equipoise.engines.map_io import is_map
from equipoise.errors import EquipoiseError, FormatError

_MAX_NESTING = 3  # largest depth of shells within shells
_DOCUMENTS = (".yaml", ".yml", ".json")
_KEYWORDS = frozenset({"then", "do", "else", "elif", "if", "while", "until", "{", "!", "time"})
_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_TAG = re.compile(r":v?(\d+\.\d+[\w.]*)")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch found in a text.

    Parameters
    ----------
    name
        Name of the service, if services have names.
    command
        Launch command.
    version
        Release, if the name of its image states it.
    devices
        Number of devices of its container, if known.
    broken_lines
        Numbers of lines at which the shell would end it early.
    missing
        Sentences on options files that it names but that are missing.
    repeated
        Keys that appear twice in one mapping of its options files.
    """

    name: str = ""
    command: LaunchCommand
    version: str | None = None
    devices: int | None = None
    broken_lines: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()


@dataclass
class _Options:
    """The entries of options files, the missing files, and the repeated keys."""

    entries: list[Argument] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


@dataclass
class _Reader:
    """A reader of launches in shell text, which records the variables and files that it sets."""

    engines: Sequence[Knowledge]
    folder: Path
    environment: dict[str, str | Unknown] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    image: str = ""

    def script(self, text: str, nesting: int = 0) -> Iterator[Launch]:
        """Yield the launches of a shell text."""
        script = read_script(text)
        self.files |= script.files
        for command in script.commands:
            yield from self.command(command, nesting)

    def command(self, command: ShellCommand, nesting: int = 0) -> Iterator[Launch]:
        """Yield the launches that a simple command is or contains."""
        start = next((i for i, w in enumerate(command.words) if w.text not in _KEYWORDS), 0)
        written = command.words[start:]
        environment = dict(self.environment)
        assigned = 0
        while assigned < len(written):
            found = _ASSIGNMENT.fullmatch(written[assigned].text)
            if found is None:
                break
            environment[found[1]] = _variable(found[2], written[assigned].known)
            assigned += 1
        words = written[assigned:]
        if not words:
            return
        if words[0].text in ("export", "declare", "unset"):
            self._set(words)
            return
        environment |= _of_wrapper(words)
        inner = _text_of_shell(words)
        if inner is not None and nesting < _MAX_NESTING:
            within = replace(self, environment=environment, image=self._image(words))
            yield from within.script(inner, nesting + 1)
            return
        launch = self._launch(written, assigned, environment)
        if launch is not None:
            after = tuple(f"{operator}{word.raw}" for operator, word in command.redirections)
            yield replace(
                launch,
                command=replace(launch.command, after=after),
                broken_lines=command.broken_lines,
            )

    def _set(self, words: Sequence[Word]) -> None:
        for word in words[1:]:
            found = _ASSIGNMENT.fullmatch(word.text)
            if words[0].text == "unset":
                self.environment.pop(word.text, None)
            elif found:
                self.environment[found[1]] = _variable(found[2], word.known)

    def _launch(
        self, written: Sequence[Word], assigned: int, environment: dict[str, str | Unknown]
    ) -> Launch | None:
        """Read a launch from words, of which the first are assignments."""
        words = written[assigned:]
        image = self._image(words)
        found = _program(words, image, self.engines)
        if found is None:
            return None
        known, start = found
        known = _same_start(known, self.engines, words, environment, image)
        own = list(read_arguments(words[start:], known))
        options = self._options(own, known)
        first, last = (own, options.entries) if known.file_wins else (options.entries, own)
        tag = _TAG.search(image)
        return Launch(
            command=LaunchCommand(
                known=known,
                program=tuple(word.raw for word in written[: assigned + start]),
                arguments=(*first, *last),
                environment=environment,
                files=dict(self.files),
            ),
            version=tag[1] if tag else None,
            missing=tuple(options.missing),
            repeated=tuple(options.repeated),
        )

    def _image(self, words: Sequence[Word]) -> str:
        """Find the container image that a command runs, if it is a known engine's."""
        for word in words:
            if any(known.image in word.text and "/" in word.text for known in self.engines):
                return word.text
        return self.image

    def _options(self, arguments: Sequence[Argument], known: Knowledge) -> _Options:
        """Read the options files that flags name."""
        found = _Options()
        for argument in arguments:
            if not argument.path or argument.path[0] not in known.options_flags:
                continue
            name = argument.value
            text = self._file(name) if isinstance(name, str) else None
            if text is None:
                found.missing.append(f"the options file {brief(str(name))} is not here")
                continue
            document, repeated = parse_yaml(text, str(name))
            if not isinstance(document, dict):
                raise FormatError(f"{name}: is not a mapping of options.")
            found.entries += read_options(document, known, str(name))
            found.repeated += map(str, repeated)
        return found

    def _file(self, name: str) -> str | None:
        """Return the text of a file that the script writes, or that is on this machine."""
        written = self.files.get(name, self.files.get(name.removeprefix("./")))
        if written is not None:
            return written
        path = self.folder / name
        return read_bounded(path) if is_here(path) else None


def launches_of_text(text: str, engines: Sequence[Knowledge], folder: Path) -> list[Launch]:
    """Find the launches in a command line or shell script."""
    return list(_Reader(engines, folder).script(text))


def launches_of_file(path: Path, text: str, engines: Sequence[Knowledge]) -> list[Launch]:
    """Find the launches in a file: a script, a compose file or an options file.

    Raises
    ------
    EquipoiseError
        A damaged file, or entries that fit several engines or none.
    """
    document, repeated = _document(text, path)
    if document is None:
        return launches_of_text(text, engines, path.parent)
    services = document.get("services")
    if isinstance(services, dict):
        return list(_of_services(services, engines, path.parent))
    return [replace(_of_options(document, engines, path), repeated=repeated)]


def _document(text: str, path: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the mapping in a file, or ``None`` for shell text; also repeated keys."""
    named = path.suffix in _DOCUMENTS
    if not named and not re.match(r"\s*(?:\{|services:)", text):
        return None, ()
    try:
        document, repeated = parse_yaml(text, str(path))
    except FormatError:
        if named:
            raise
        return None, ()
    if isinstance(document, dict):
        entries = {str(key): value for key, value in document.items()}
        return entries, tuple(map(str, repeated))
    if named:
        raise FormatError(f"{path}: is not a mapping; expected a compose file or an options file.")
    return None, ()


def _of_services(
    services: Mapping[Any, Any], engines: Sequence[Knowledge], folder: Path
) -> Iterator[Launch]:
    """Yield the launches of a compose file."""
    for name, service in services.items():
        if not isinstance(service, dict):
            continue
        image = str(service.get("image", ""))
        reader = _Reader(engines, folder, _service_environment(service), image=image)
        words = [w for key in ("entrypoint", "command") for w in _service_words(service.get(key))]
        for launch in reader.command(ShellCommand(tuple(words))):
            yield replace(launch, name=str(name), devices=_service_devices(service))


def _service_words(command: Any) -> list[Word]:
    if isinstance(command, str):
        return [word for found in read_script(command).commands for word in found.words]
    if not isinstance(command, list):
        return []
    texts = [str(part) for part in command]
    return [replace(plain_word(text), known="$" not in text) for text in texts]


def _service_environment(service: Mapping[Any, Any]) -> dict[str, str | Unknown]:
    given = service.get("environment")
    if isinstance(given, list):
        given = dict(str(entry).partition("=")[::2] for entry in given)
    pairs = given.items() if isinstance(given, dict) else ()
    return {str(name): _variable(_as_text(value), "$" not in str(value)) for name, value in pairs}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _service_devices(service: Mapping[Any, Any]) -> int | None:
    """Count the devices that a service reserves."""
    found: Any = service
    for key in ("deploy", "resources", "reservations", "devices"):
        found = found.get(key) if isinstance(found, dict) else None
    entry = found[0] if isinstance(found, list) and found else None
    if not isinstance(entry, dict):
        return None
    ids, count = entry.get("device_ids"), entry.get("count")
    if isinstance(ids, list):
        return len(ids)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _of_options(document: Mapping[str, Any], engines: Sequence[Knowledge], path: Path) -> Launch:
    """Read an options file alone, as the engine that knows most of its entries."""
    scores = [_known_entries(document, known) for known in engines]
    best = max(scores, default=(0, 0))
    fitting = [known for known, score in zip(engines, scores, strict=True) if score == best]
    signed = [known for known in fitting if known.signs & document.keys()]
    fitting = signed or [known for known in fitting if not known.signs]
    if best == (0, 0) and is_map(path):
        raise FormatError(f"{path}: is a map, and no launch; equipoise validate checks it.")
    if best == (0, 0):
        raise FormatError(
            f"{path}: holds neither a launch, nor services, nor options of an engine that is known "
            "here. Give the launch command, a script, a compose file or an options file."
        )
    if len(fitting) > 1:
        names = " or ".join(known.title for known in fitting)
        raise EquipoiseError(
            f"{path}: may be an options file of {names}; give the launch command that names it."
        )
    known = fitting[0]
    arguments = tuple(read_options(document, known, path.name))
    return Launch(
        command=LaunchCommand(known=known, program=(), arguments=arguments),
    )


def _known_entries(document: Mapping[str, Any], known: Knowledge) -> tuple[int, int]:
    """Count the entries that an engine knows, and those among them with full names.

    In an options file, only the engine's own separator of words is valid.
    """
    other = "-" if known.underscores else "_"
    names = [key for key in document if other not in key]
    by_any_name = sum(known.full_name(name) in known.flags for name in names)
    return by_any_name, sum(name in known.flags for name in names)


def _variable(text: str, known: bool) -> str | Unknown:
    return text if known else Unknown(text)


def _of_wrapper(words: Sequence[Word]) -> dict[str, str | Unknown]:
    """Return the variables that ``env`` and ``docker run -e`` set for the program they start."""
    found: dict[str, str | Unknown] = {}
    for before, word in zip([Word("", ""), *words], words, strict=False):
        text = word.text.removeprefix("--env=")
        if before.text in ("-e", "--env") or text != word.text or words[0].text == "env":
            assignment = _ASSIGNMENT.fullmatch(text)
            if assignment:
                found[assignment[1]] = _variable(assignment[2], word.known)
    return found


def _text_of_shell(words: Sequence[Word]) -> str | None:
    """Return the text that a shell runs: ``bash -c TEXT``."""
    for before, option, text in zip(words, words[1:], words[2:], strict=False):
        shell = before.text.rpartition("/")[2]
        if shell in _SHELLS and re.fullmatch(r"-[a-z]*c", option.text):
            return text.text
    return None


def _program(
    words: Sequence[Word], image: str, engines: Sequence[Knowledge]
) -> tuple[Knowledge, int] | None:
    """Find the engine that words start, and the position of its first flag."""
    texts = [word.text.rpartition("/")[2] for word in words]
    for known in engines:
        for program in known.programs:
            size = len(program)
            for at in range(len(texts) - size + 1):
                if tuple(texts[at : at + size]) == program:
                    return known, at + size
    for known in engines:
        if known.image_starts and known.image in image:
            own = next((i + 1 for i, word in enumerate(words) if word.text == image), 0)
            return known, own
    return None


def _same_start(
    known: Knowledge,
    engines: Sequence[Knowledge],
    words: Sequence[Word],
    environment: Mapping[str, Any],
    image: str,
) -> Knowledge:
    """Choose among engines that start the same way by their signs."""
    names = {known.full_name(w.text.partition("=")[0]) for w in words if w.text.startswith("-")}
    for other in engines:
        if other.signs and other.programs == known.programs:
            given = names | environment.keys()
            if given & other.signs or (image and other.image in image):
                return other
    return known
