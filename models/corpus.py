"""Six domains of text that any Python installation can make, each with a held-out part.

``code``, ``docs`` and ``legal`` are read from the running Python: its standard library, the
docstrings and ``pydoc`` topics in it, and the licences that came with it and with the packages
that training needs.  ``tables``, ``maths`` and ``config`` are generated from a seed, and so is
part of ``legal``, of which there is little.  The same installation and seed give the same text.

    python models/corpus.py            # sizes, and the first lines of each domain
"""

import ast
import json
import random
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

HELD_OUT_ONE_IN = 20
GENERATED_BYTES = 2_000_000
MIN_DOCSTRING_CHARS = 60
LEGAL_CHUNK_CHARS = 1500

# Left out of the standard library: tests (many installations lack them), tables written as
# Python, and the text that `docs` reads from `pydoc_data`.
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
LICENSED_PACKAGES = (
    "torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub", "regex",
    "sympy", "networkx", "jinja2", "pip", "setuptools",
)  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """Documents of one kind; no held-out document is among those to train on."""

    train: list[str]
    held: list[str]


def build(seed: int = 0) -> dict[str, Domain]:
    """Every domain by name, in a fixed order."""
    return {
        "code": _by_hash(code_documents()),
        "docs": _by_hash(docs_documents()),
        "legal": _joined(_by_hash(licence_documents()), _generated(clauses, seed, 300_000)),
        "tables": _generated(table, seed, GENERATED_BYTES),
        "maths": _generated(worksheet, seed, GENERATED_BYTES),
        "config": _generated(config_file, seed, GENERATED_BYTES),
    }


def _by_hash(documents: Iterable[tuple[str, str]]) -> Domain:
    """Hold out one in ``HELD_OUT_ONE_IN`` named documents, the same on every machine."""
    parts: tuple[list[str], list[str]] = ([], [])
    for name, text in documents:
        parts[zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0].append(text)
    return Domain(*parts)


def _generated(make: Callable[[random.Random], str], seed: int, num_bytes: int) -> Domain:
    """``num_bytes`` of made documents to train on, and others for the held-out part."""
    rng = random.Random(f"{make.__name__} {seed}")
    train = list(_until(make, rng, num_bytes))
    seen = set(train)
    held = _until(make, rng, num_bytes // HELD_OUT_ONE_IN)
    return Domain(train, [text for text in held if text not in seen])


def _until(
    make: Callable[[random.Random], str], rng: random.Random, num_bytes: int
) -> Iterator[str]:
    while num_bytes > 0:
        text = make(rng)
        num_bytes -= len(text.encode())
        yield text


def _joined(one: Domain, other: Domain) -> Domain:
    return Domain(one.train + other.train, one.held + other.held)


# Read from the installation


def _stdlib_modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Dotted name, source and syntax tree of each standard-library module, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]):
            try:
                source = path.read_text(encoding="utf-8")
                yield ".".join(relative.with_suffix("").parts), source, ast.parse(source)
            except (SyntaxError, UnicodeDecodeError):  # lib2to3 ships Python 2 on purpose
                continue


def _documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    for node in ast.walk(tree):
        has_body = isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        )
        if has_body and ast.get_docstring(node, clean=False) is not None:
            yield node


def code_documents() -> Iterator[tuple[str, str]]:
    """Modules without their docstrings, which belong to ``docs``."""
    for name, source, tree in _stdlib_modules():
        lines = source.splitlines()
        for node in _documented(tree):
            docstring = node.body[0]
            alone = len(node.body) == 1
            first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
            lines[first:last] = [""] * (last - first)
            if alone:
                lines[first] = " " * docstring.col_offset + "pass"
        yield name, _squeezed(lines)


def _squeezed(lines: Iterable[str]) -> str:
    """Lines joined, with at most two blank ones in a row and no space at their ends."""
    text = "\n".join(line.rstrip() for line in lines)
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text.strip() + "\n"


def docs_documents() -> Iterator[tuple[str, str]]:
    """A module's docstrings under their names, and the language reference in ``pydoc``."""
    for name, _, tree in _stdlib_modules():
        entries = []
        for node in _documented(tree):
            text = ast.get_docstring(node) or ""
            if len(text) >= MIN_DOCSTRING_CHARS:
                title = name if isinstance(node, ast.Module) else f"{name}.{node.name}"
                entries.append(f"{title}\n\n{text}\n")
        if entries:
            yield name, "\n\n".join(entries)
    for name, text in sorted(topics.items()):
        yield name, text.strip() + "\n"


def _licence_texts() -> Iterator[str]:
    yield (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt").read_text(encoding="utf-8")
    for package in LICENSED_PACKAGES:
        for file in sorted(metadata.files(package) or []):
            if ".dist-info" in str(file) and file.name.upper().startswith(
                ("LICENSE", "LICENCE", "COPYING", "NOTICE")
            ):
                yield Path(file.locate()).read_text(encoding="utf-8", errors="replace")


def licence_documents() -> Iterator[tuple[str, str]]:
    """Runs of licence paragraphs; a paragraph that many licences share appears once."""
    seen: set[str] = set()
    chunk: list[str] = []
    for text in _licence_texts():
        for paragraph in text.replace("\r\n", "\n").split("\n\n"):
            key = " ".join(paragraph.lower().split())
            if key and key not in seen:
                seen.add(key)
                chunk.append(paragraph.strip("\n"))
            if sum(map(len, chunk)) >= LEGAL_CHUNK_CHARS:
                yield chunk[0], "\n\n".join(chunk) + "\n"
                chunk = []


# Made from a seed

PARTIES = (
    "the Licensor", "the Licensee", "each Contributor", "the Recipient", "the Distributor",
    "the copyright holder", "any Affiliate", "the Foundation",
)  # fmt: skip
ACTS = (
    "reproduce the Work", "distribute copies of the Work", "sublicense the Software",
    "prepare Derivative Works", "modify the source code", "publicly display the Documentation",
    "remove any copyright notice", "transfer the rights granted herein",
    "use the name of the Licensor to endorse products", "publish the results of any benchmark",
)  # fmt: skip
CONDITIONS = (
    "without the prior written consent of {party}",
    "provided that the above copyright notice appears in all copies",
    "subject to the terms and conditions of this Agreement",
    "in source or binary form, with or without modification",
    "for a period of {number} years from the Effective Date",
    "unless required by applicable law or agreed to in writing",
    "except as expressly stated in Section {number}",
)
CLAUSES = (
    "Subject to Section {number}, {party} hereby grants a perpetual, worldwide, non-exclusive, "
    "royalty-free licence to {act}, {condition}.",
    "{party} shall not {act} {condition}.",
    "{party} may {act} {condition}, and {party} may {act} {condition}.",
    "In no event shall {party} be liable for any indirect, incidental or consequential damages "
    "arising out of any failure to {act}, even if advised of the possibility of such damages.",
    "If {party} fails to {act} within {number} days of notice, this Agreement shall terminate "
    "automatically and {party} shall destroy all copies of the Work.",
    "Nothing in this Agreement shall be deemed to permit {party} to {act} {condition}.",
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, and {party} disclaims all '
    "liability {condition}.",
    "This Agreement shall be governed by the laws of the place where {party} resides.",
)
HEADINGS = ("Definitions", "Grant of Rights", "Restrictions", "Term", "Liability", "Notices")


def clauses(rng: random.Random) -> str:
    """A short agreement of numbered clauses."""

    def fill(template: str) -> str:
        while "{" in template:
            for slot, choices in (("party", PARTIES), ("act", ACTS), ("condition", CONDITIONS)):
                template = template.replace("{" + slot + "}", rng.choice(choices), 1)
            template = template.replace("{number}", str(rng.randint(2, 30)), 1)
        return template[0].upper() + template[1:]

    lines = [f"LICENCE AGREEMENT, version {rng.randint(1, 9)}.{rng.randint(0, 9)}"]
    for section, heading in enumerate(rng.sample(HEADINGS, 4), start=1):
        lines.append(f"{section}. {heading}")
        lines += [f"{section}.{n} {fill(rng.choice(CLAUSES))}" for n in range(1, 4)]
    return "\n\n".join(lines) + "\n"


NAMES = (
    "north", "south", "east", "west", "alpha", "beta", "gamma", "delta", "river", "harbour",
    "maple", "cedar", "granite", "copper", "silver", "amber",
)  # fmt: skip


def table(rng: random.Random) -> str:
    """A table of sales, measurements or a time series, as CSV or in aligned columns."""
    header, rows = rng.choice((_sales, _measurements, _series))(rng)
    if rng.random() < 0.5:
        return "\n".join(",".join(row) for row in [header, *rows]) + "\n"
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines) + "\n"


Table = tuple[list[str], list[list[str]]]


def _sales(rng: random.Random) -> Table:
    """Every total is its quantity times its price."""
    rows = []
    first = rng.randrange(1000, 9000)
    for number in range(first, first + rng.randint(6, 20)):
        quantity, price = rng.randint(1, 20), rng.randint(1, 99)
        rows.append([str(number), rng.choice(NAMES), str(quantity), str(price)])
        rows[-1].append(str(quantity * price))
    return ["order", "region", "quantity", "price", "total"], rows


def _measurements(rng: random.Random) -> Table:
    columns = rng.sample(["mass", "length", "width", "height", "volume", "density"], 4)
    scales = [10 ** rng.randint(0, 3) for _ in columns]
    rows = [
        [name, *(f"{rng.gauss(5, 1) * scale:.2f}" for scale in scales)]
        for name in rng.sample(NAMES, rng.randint(6, 14))
    ]
    return ["sample", *columns], rows


def _series(rng: random.Random) -> Table:
    """Days in order, with two random walks."""
    year, month = rng.randint(1990, 2029), rng.randint(1, 12)
    low, high = rng.uniform(-5, 10), rng.uniform(15, 30)
    rows = []
    for day in range(1, rng.randint(10, 28)):
        low, high = low + rng.gauss(0, 1), high + rng.gauss(0, 1)
        rows.append([f"{year}-{month:02d}-{day:02d}", f"{low:.1f}", f"{high:.1f}"])
    return ["date", "minimum", "maximum"], rows


def worksheet(rng: random.Random) -> str:
    """Exercises of one kind, with their answers."""
    kind = rng.choice((_sum, _difference, _product, _equation, _sequence, _remainder))
    return "\n".join(kind(rng) for _ in range(rng.randint(8, 24))) + "\n"


def _sum(rng: random.Random) -> str:
    a, b = rng.randint(1, 999), rng.randint(1, 999)
    return f"{a} + {b} = {a + b}"


def _difference(rng: random.Random) -> str:
    a, b = sorted((rng.randint(1, 999), rng.randint(1, 999)), reverse=True)
    return f"{a} - {b} = {a - b}"


def _product(rng: random.Random) -> str:
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    return f"{a} * {b} = {a * b}"


def _equation(rng: random.Random) -> str:
    a, b, x = rng.randint(2, 9), rng.randint(1, 20), rng.randint(1, 12)
    return f"{a}x + {b} = {a * x + b}, so {a}x = {a * x} and x = {x}"


def _sequence(rng: random.Random) -> str:
    start, step = rng.randint(0, 50), rng.randint(1, 12)
    return ", ".join(str(start + step * n) for n in range(8))


def _remainder(rng: random.Random) -> str:
    a, b = rng.randint(10, 199), rng.randint(2, 12)
    return f"{a} / {b} = {a // b} remainder {a % b}"


SETTINGS: dict[str, Callable[[random.Random], object]] = {
    "name": lambda rng: f"{rng.choice(NAMES)}-{rng.choice(NAMES)}",
    "host": lambda rng: f"10.{rng.randint(0, 9)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
    "port": lambda rng: rng.choice((80, 443, 5432, 6379, 8000, 8080, 9090)),
    "enabled": lambda rng: rng.random() < 0.7,
    "timeout_seconds": lambda rng: rng.choice((1, 5, 10, 30, 60, 120)),
    "retries": lambda rng: rng.randint(0, 5),
    "log_level": lambda rng: rng.choice(("debug", "info", "warning", "error")),
    "path": lambda rng: f"/srv/{rng.choice(NAMES)}/{rng.choice(('data', 'log', 'cache'))}",
    "tags": lambda rng: rng.sample(NAMES, rng.randint(1, 3)),
    "max_connections": lambda rng: 2 ** rng.randint(3, 10),
    "ratio": lambda rng: round(rng.random(), 2),
}
SECTIONS = ("server", "database", "cache", "worker", "logging", "metrics", "storage", "client")


def config_file(rng: random.Random) -> str:
    """The settings of a few components, as JSON, TOML or INI."""
    settings = {
        section: {
            key: SETTINGS[key](rng) for key in rng.sample(sorted(SETTINGS), rng.randint(3, 7))
        }
        for section in rng.sample(SECTIONS, rng.randint(2, 4))
    }
    return rng.choice((_as_json, _as_toml, _as_ini))(settings)


def _as_json(settings: dict[str, dict[str, object]]) -> str:
    return json.dumps(settings, indent=2) + "\n"


def _as_toml(settings: dict[str, dict[str, object]]) -> str:
    # JSON's scalars and flat lists are TOML's.
    return "\n".join(
        f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
        for section, values in settings.items()
    )


def _as_ini(settings: dict[str, dict[str, object]]) -> str:
    return "\n".join(
        f"[{section}]\n"
        + "".join(
            f"{k}={', '.join(map(str, v)) if isinstance(v, list) else v}\n"
            for k, v in values.items()
        )
        for section, values in settings.items()
    )


def main() -> None:
    for name, domain in build().items():
        sizes = [sum(len(text.encode()) for text in part) for part in (domain.train, domain.held)]
        print(f"== {name}: {sizes[0]:,} bytes to train on, {sizes[1]:,} held out")
        print(domain.held[0][:400])


if __name__ == "__main__":
    main()
