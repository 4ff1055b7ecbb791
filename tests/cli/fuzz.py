"""Randomly damaged files of every format: an answer or a message, never a crash or half a file.

    python -m tests.cli.fuzz --files 36000

runs them in processes of their own, and counts as a fault what ends such a process, takes longer
than ``SECONDS`` or more than ``MEBIBYTES``, prints a traceback or leaves something behind.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import json
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import yaml

from equipoise.cli import main
from equipoise.engines.registry import map_formats, trace_formats
from tests.cli.samples import MAPS, OPTIONS, TRACES, write_sample

SECONDS = 60  # for one file, on a machine that does other things too
MEBIBYTES = 2048  # of a process that read many
BATCH = 100  # files a process
PIECES = (
    *(b"0", b"-1", b"9" * 25, b"1e309", b"NaN", b"null", b"true", b'"', b"[", b"{", b"]", b"}"),
    *(b",", b":", b"\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[2J", b'"\\ud800"', b"../"),
    *(b"\xff" * 8, b"\x00" * 8, b"PK\x03\x04", b"\xff\xff\xff\x7f", b"*a", b"&a ", b"!!int "),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 1 << 31, 1 << 63, 10**25, 0.5, float("nan"), float("inf"), -1e308),
    *("", "3", "[/red]", "\ud800", "x" * 5000, [], {}, [[]], [None], {"": 0}, [[0, 1], [2]]),
)


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """One byte, piece or stretch changed, put in, left out or repeated, or the end cut off."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + random.choice((1, 8, 100)))
    digits = [i for i, byte in enumerate(data) if byte in b"0123456789"]
    match random.randrange(8):
        case 6 | 7 if digits:
            a = random.choice(digits)
            return data[:a] + random.choice((b"0", b"1", b"5", b"-", b"00")) + data[a + 1 :]
        case 0 | 6:
            return data[:a] + bytes([random.randrange(256)]) + data[a + 1 :]
        case 1:
            return data[:a] + random.choice(PIECES) + data[a:]
        case 2:
            return data[:a] + random.choice(PIECES) + data[b:]
        case 3:
            return data[:a] + data[b:]
        case 4:
            return data[:b] + data[a:]
        case _:
            return data[:a]


def changed(data: bytes, random: Random) -> bytes:
    """One byte of the second half changed: numbers, in a binary file."""
    i = random.randrange(len(data) // 2, len(data))
    return data[:i] + random.choice((b"\0", b"\1", b"\x7f", b"\xff")) + data[i + 1 :]


def damaged_document(document: Any, random: Random) -> Any:
    """One value of a tree of lists and mappings replaced, left out, repeated or put elsewhere."""
    document = copy.deepcopy(document)
    places = _places(document)
    if not places or random.random() < 0.05:
        return random.choice([*VALUES, [document], {"0": document}])
    parent, key = random.choice(places)
    match random.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case 2 if isinstance(parent, dict):
            parent[random.choice(("", "-1", "00", "x", "format", "9" * 12))] = parent.pop(key)
        case 3:
            parent[key] = random.choice(VALUES)
        case _:
            other, there = random.choice(places)
            parent[key] = copy.deepcopy(other[there])
    return document


def _places(node: Any) -> list[tuple[Any, Any]]:
    if not isinstance(node, list | dict):
        return []
    keys = list(range(len(node))) if isinstance(node, list) else list(node)
    return [(node, key) for key in keys] + [p for key in keys for p in _places(node[key])]


def damaged_json(data: bytes, random: Random) -> bytes:
    return json.dumps(damaged_document(json.loads(data), random)).encode()


def damaged_lines(data: bytes, random: Random) -> bytes:
    """One line of JSON damaged as a document."""
    lines = data.splitlines(keepends=True)
    i = random.randrange(len(lines))
    lines[i] = damaged_json(lines[i], random) + b"\n"
    return b"".join(lines)


def damaged_yaml(data: bytes, random: Random) -> bytes:
    document = damaged_document(yaml.safe_load(data), random)
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


def damaged_tensors(data: bytes, random: Random) -> bytes:
    """A safetensors header damaged, its length put right; or the data."""
    length = struct.unpack("<Q", data[:8])[0]
    if random.random() < 0.4:
        return data[: 8 + length] + changed(data[8 + length :], random)
    how = random.choice((damaged_json, damaged_bytes))
    head = how(data[8 : 8 + length], random)
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def damaged_zip(data: bytes, random: Random) -> bytes:
    """An entry of an archive damaged, its checksum put right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    broken = random.randrange(len(entries))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i, (info, content) in enumerate(entries):
            if i == broken:
                content = random.choice((damaged_bytes, changed))(content, random)
            archive.writestr(info.filename, content, info.compress_type)
    return stream.getvalue()


_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, yaml.YAMLError, EOFError, IndexError)
BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": damaged_json,
    ".jsonl": damaged_lines,
    ".yaml": damaged_yaml,
    ".safetensors": damaged_tensors,
    ".pt": damaged_zip,
    ".npz": damaged_zip,
}


def damage(path: Path, random: Random) -> None:
    """Damage a file, or one of a directory, once or several times."""
    file = random.choice(sorted(path.iterdir())) if path.is_dir() else path
    data = file.read_bytes()
    by_structure = BY_SUFFIX.get(file.suffix, damaged_bytes)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        try:
            data = random.choice((damaged_bytes, by_structure, by_structure))(data, random)
        except (ValueError, KeyError, NotImplementedError, *_UNREADABLE):
            data = damaged_bytes(data, random)  # too broken to be taken apart
    file.write_bytes(data)


def commands(name: str, random: Random) -> list[str]:
    """A command that reads the sample; ``old`` stands for an output that exists."""
    formats = map_formats() if name in MAPS else trace_formats()
    options = list(OPTIONS.get(name, ()))
    if "--format" not in options and random.random() < 0.2:
        options += ["--format", random.choice(formats).name]
    if name in MAPS:
        return random.choice(
            [
                ["validate", name, "--ranks", "2", *(o.replace("format", "for") for o in options)],
                ["convert", name, "--ranks", "2", "--to", "trtllm", "-o", "old.yaml", *options],
                ["convert", name, "--ranks", "2", "--to", "vllm-41141", "-o", "old.json", *options],
            ]
        )
    return random.choice(
        [
            ["report", name, "--ranks", "2", "--html", "old.html", *options],
            ["report", name, "--json", *options],
            ["plan", name, *PLAN, *options],
            ["forecast", name, *FORECAST, *options],
            ["forecast", name, *FORECAST, *ONLINE, *options],
            ["simulate", name, *FORECAST, *SIMULATE, *options],
            ["tune", name, *TUNE, *options],
            ["convert", name, "--to", "equipoise", "-o", "old.safetensors", *options],
        ]
    )


PLAN = ("--ranks", "2", "--for", "ascend", "-o", "old.json", "--even-if-worse")
FORECAST = ("--ranks", "2", "--planner", "greedy", "--rank-cost", "h100-deepep-ep8")
ONLINE = ("--online", "--expert-bytes", "9M", "--step-assignments", "40")
TUNE = (
    *("--ranks", "2", "--rank-cost", "h100-deepep-ep8", "--expert-bytes", "9M"),
    *("--step-tokens", "20", "--steps", "32", "--redundant", "2", "--dispatch", "even"),
    *("--try-window", "8", "--try-interval", "8", "--proposals", "16", "--plan-seconds", "1us"),
)
SIMULATE = ("--rate", "5", "--duration", "1", "--output-tokens", "3", "--chunked-prefill", "128")
OLD = ("old.yaml", "old.json", "old.html", "old.safetensors")


def check(name: str, number: int, folder: Path) -> int:
    """Damage a sample and read it; the exit status."""
    random = Random(f"{name} {number}")
    sample = write_sample(folder, name)
    damage(sample, random)
    for old in OLD:
        (folder / old).write_text("old")
    command = commands(name, random)
    where = f"{name} {number}: {' '.join(command)}"
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with redirect_stdout(out), redirect_stderr(io.StringIO()) as err:
        try:
            status = main(command)
        except BaseException as error:
            raise AssertionError(f"{where}: {type(error).__name__}") from error
    assert {p.name for p in folder.iterdir()} == {name, *OLD}, where
    changed = [old for old in OLD if (folder / old).read_bytes() != b"old"]
    if status == 0:
        assert changed == [c for c in command if c in OLD], where
        assert only_notes(err.getvalue()), where
    elif status == 1:
        assert command[0] == "validate", where
        assert only_notes(err.getvalue()), where
    else:
        assert (status, changed, out.buffer.getvalue()) == (2, [], b""), where
        assert err.getvalue().startswith("equipoise: "), where
        assert err.getvalue().count("\n") == 1, where
        assert len(err.getvalue()) < 1000, where
        assert err.getvalue().isprintable() or err.getvalue()[:-1].isprintable(), where
    return status


def only_notes(errors: str) -> bool:
    """Whether a command that has done its work said nothing but notes, in printable letters."""
    return all(
        line.startswith("equipoise: note: ") and line.isprintable()
        for line in errors.split("\n")[:-1]
    )


@dataclass
class Figures:
    """What many damaged files did."""

    files: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    most_mebibytes: int = 0
    slowest_seconds: float = 0.0
    slowest: str = ""
    faults: list[str] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        self.files += 1
        self.most_mebibytes = max(self.most_mebibytes, line["mebibytes"])
        if line["seconds"] > self.slowest_seconds:
            self.slowest_seconds, self.slowest = line["seconds"], line["name"]
        if line["fault"]:
            self.faults.append(line["fault"])
        else:
            self.statuses[line["status"]] += 1


def batch(names: list[str], numbers: range, report: TextIO) -> None:
    """Damage samples and read them, one after another, in this process; a line of JSON each.

    The name of a file is written before it is read, so that whoever reads the lines knows which
    one ended the process. Each has ``SECONDS``; then the alarm ends the process.
    """
    for number, name in itertools.product(numbers, names):
        report.write(json.dumps({"begin": f"{name} {number}"}) + "\n")
        report.flush()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        began, fault, status = time.monotonic(), "", 0
        with TemporaryDirectory() as folder, chdir(folder):
            try:
                status = check(name, number, Path(folder))
            except AssertionError as error:
                fault = "".join(traceback.format_exception(error))[-3000:]
        line = {"name": f"{name} {number}", "status": status, "fault": fault}
        line["seconds"] = time.monotonic() - began
        line["mebibytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        report.write(json.dumps(line) + "\n")
    signal.setitimer(signal.ITIMER_REAL, 0)


def in_child(names: list[str], numbers: range) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a batch in a process of its own, and the faults of that process."""
    code = "import sys; from tests.cli.fuzz import batch; "
    code += f"batch({names!r}, range({numbers.start}, {numbers.stop}), sys.__stdout__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    read = [line for line in lines if "begin" not in line]
    if child.returncode == 0 and len(read) == len(names) * len(numbers):
        return read, []
    begun = lines[-1].get("begin") if lines else None
    return read, [f"{begun or names}: exit {child.returncode}\n{child.stderr[-2000:]}"]


def fuzz(files: int, names: Sequence[str], processes: int = 2) -> Figures:
    """Read a number of damaged files of the samples named, in batches of one sample each."""
    rounds = -(-files // len(names))
    jobs = [
        ([name], range(start, min(start + BATCH, rounds)))
        for start in range(0, rounds, BATCH)
        for name in names
    ]
    figures = Figures()
    with ThreadPoolExecutor(processes) as pool:
        for done, answer in enumerate(pool.map(lambda job: in_child(*job), jobs), start=1):
            for line in answer[0]:
                figures.add(line)
            figures.faults += answer[1]
            print(f"{done} of {len(jobs)} batches, {len(figures.faults)} faults", file=sys.stderr)
    if figures.most_mebibytes > MEBIBYTES:
        figures.faults.append(f"a process of {figures.most_mebibytes} MiB")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=36_000)
    parser.add_argument("--names", nargs="*", default=[*TRACES, *MAPS])
    found = fuzz(parser.parse_args().files, parser.parse_args().names)
    for fault in found.faults:
        print(fault)
    print(
        f"{found.files} files; exit status {dict(sorted(found.statuses.items()))}; "
        f"{len(found.faults)} faults; most memory {found.most_mebibytes} MiB; "
        f"slowest {found.slowest_seconds:.1f} s ({found.slowest})"
    )
    sys.exit(bool(found.faults))
