"""Damaged files and wrong arguments, and what the command says to each.

``python -m tests.cli.bad_input`` runs this catalogue and writes ``tests/cli/bad-input.md``: the
answers,
word for word, which the tests compare.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shlex
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import equipoise as eq
from equipoise.cli import main
from equipoise.engines._shared import torch_archive
from tests.cli.samples import MAPS, SLOTS, TRACES, write_sample

PAGE = Path(__file__).with_name("bad-input.md")

Build = Callable[[Path], object]
"""Makes files in a folder."""


@dataclass(frozen=True)
class Case:
    """One mistake.

    Parameters
    ----------
    what
        The mistake, in a few words.
    command
        What is typed, in the folder of the files.
    build
        Make the files that are not valid ones of ``tests.cli.samples``.
    status
        Exit status: 2, or 1 for findings of ``validate``.
    """

    what: str
    command: str
    build: tuple[Build, ...]
    status: int

    def prepare(self, here: Path) -> None:
        """Make the files: those of ``build``, and the valid ones that the command names else."""
        for build in self.build:
            build(here)
        for word in shlex.split(self.command):
            if word in TRACES | MAPS and not os.path.lexists(here / word):
                write_sample(here, word)

    def run(self) -> Answer:
        """Type the command in the present folder."""
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = main(shlex.split(self.command))
        return Answer(status, out.getvalue(), err.getvalue())

    def row(self, answer: Answer) -> str:
        """The line of the page."""
        return f"| {_cell(self.what)} | {_code(self.command)} | {_cell(answer.message)} |"


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What is said of the mistake; of several findings the first.

        Progress, and a note on compiling, may come before it on a slow machine.
        """
        if self.status == 1:
            return self.out.partition("\n")[0]
        return f"\n{self.err}".rpartition("\nequipoise: ")[2].strip("\n")


def case(what: str, command: str, *build: Build, status: int = 2) -> Case:
    """A case, in the order in which it reads."""
    return Case(what, command, build, status)


def finding(what: str, command: str, *build: Build) -> Case:
    """A case of a file that can be read, and has defects."""
    return case(what, command, *build, status=1)


# Making files -------------------------------------------------------------------------------------


TUNE = "tune run.safetensors --ranks 2 --rank-cost h100-deepep-ep8"
SIMULATE = "simulate run.safetensors --ranks 2 --rank-cost h100-deepep-ep8"
FORECAST = "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8"
CHECKLIST = "checklist run.safetensors --ranks 2 --model config.json"
PRICED = "budget run.safetensors --ranks 2 --model"


def model(**values: object) -> Build:
    """The configuration of the model that the samples are of, with other values."""
    facts = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 5,
        "first_k_dense_replace": 3,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "hidden_size": 8,
        "moe_intermediate_size": 8,
        "torch_dtype": "bfloat16",
    }
    return text("config.json", json.dumps(facts | values))


def valid(*names: str) -> Build:
    """The valid files of these names."""

    def build(here: Path) -> None:
        for name in names:
            write_sample(here, name)

    return build


def text(name: str, content: str, encoding: str = "utf-8") -> Build:
    return lambda here: (here / name).write_text(content, encoding=encoding)


def raw(name: str, content: bytes) -> Build:
    return lambda here: (here / name).write_bytes(content)


_EXCHANGE = (
    "gpu,framework,version,kernel,op,dtype,hidden_size,num_experts,top_k,ep_size,num_nodes,sms,"
    "tokens_per_rank,time_us\nH100,e,1,deepep_ll,dispatch,fp8,7168,256,8,8,1,0,16,"
)


def _timed(content: str) -> Build:
    """A folder with the times of a run's steps."""

    def build(here: Path) -> None:
        (here / "run").mkdir()
        (here / "run" / "step_seconds.csv").write_text(content, encoding="utf-8")

    return build


def _table(content: str) -> Build:
    """A folder with one table of kernel times."""

    def build(here: Path) -> None:
        (here / "tables").mkdir()
        (here / "tables" / "alltoall.csv").write_text(content, encoding="utf-8")

    return build


def folder(name: str) -> Build:
    return lambda here: (here / name).mkdir()


def without(name: str) -> Build:
    return lambda here: (here / name).unlink()


def _changed(name: str, change: Callable[[bytes], bytes]) -> Build:
    """A file, written here if it is not there yet, with other bytes."""

    def build(here: Path) -> None:
        path = here / name
        if not path.exists():
            write_sample(here, Path(name).parts[0])
        path.write_bytes(change(path.read_bytes()))

    return build


def cut(name: str, size: int) -> Build:
    """The first bytes of a file; all but the last ones if negative."""
    return _changed(name, lambda data: data[:size])


def swapped(name: str, old: str, new: str) -> Build:
    """A file with one piece of text in the place of another."""

    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return _changed(name, change)


def edited(name: str, edit: Callable[[Any], object]) -> Build:
    """A JSON file whose document was changed in place."""

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    return _changed(name, change)


def tensors(name: str, **arrays: Any) -> Build:
    """A safetensors file."""
    return lambda here: save_file({k: np.asarray(v) for k, v in arrays.items()}, here / name)


def header(name: str, entries: dict[str, Any], data: bytes = b"") -> Build:
    """A safetensors file with a header made by hand."""
    head = json.dumps(entries).encode()
    return raw(name, struct.pack("<Q", len(head)) + head + data)


def torch_file(name: str, root: Any) -> Build:
    return lambda here: torch_archive.save(here / name, root)


def npz(name: str, **arrays: Any) -> Build:
    return lambda here: np.savez(here / name, **arrays)


def zipped(name: str, entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Build:
    def build(here: Path) -> None:
        with zipfile.ZipFile(here / name, "w", kind) as archive:
            for entry, data in entries.items():
                archive.writestr(entry, data)

    return build


def npy(shape: tuple[int, ...], body: bytes = b"", dtype: str = "<i8") -> bytes:
    """An array that claims a shape."""
    stream = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue() + body


class _Exploit:
    """Unpickled without care, this makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploited",)


def _torch_entries(program: bytes) -> dict[str, bytes]:
    """The entries of a torch archive with this pickle."""
    return {"archive/data.pkl": program, "archive/byteorder": b"little", "archive/version": b"3\n"}


def _set(*path: Any) -> Callable[[Any], object]:
    """Set what a path of keys leads to; the last of ``path`` is the value."""

    def edit(document: Any) -> None:
        *keys, last, value = path
        for key in keys:
            document = document[key]
        document[last] = value

    return edit


def _drop(*path: Any) -> Callable[[Any], object]:
    """Delete what a path of keys leads to."""

    def edit(document: Any) -> None:
        *keys, last = path
        for key in keys:
            document = document[key]
        del document[last]

    return edit


_RANK0 = "dump/rank0.safetensors"
_RANK1 = "dump/rank1.safetensors"
_YAML = "initial_global_assignments:\n  3: [0, 1, 2, 3, 0, 1]\n  4: {row}\nnum_slots: {slots}\n"


def yaml(row: str = "[3, 2, 1, 0, 2, 3]", slots: Any = 6, more: str = "") -> Build:
    """A TensorRT-LLM map whose second layer and slot count are given."""
    return text("map.yaml", _YAML.format(row=row, slots=slots) + more)


def _maps_by_model(here: Path) -> None:
    """A file of HYGON's plug-in for vLLM."""
    maps = {name: {"physical_to_logical_map": [[0, 1, 2, 0]]} for name in ("A", "B")}
    name = "vllm_offline_eplb_physical_to_logical_by_model"
    document = {"version": 2, "format": name, "model_maps": maps}
    (here / "models.json").write_text(json.dumps(document))


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def _expanded(path: Path) -> None:
    """A tensor of 2^40 numbers that all are one stored number."""
    torch_archive.save(path, {"logical_count": np.ones((1, 1, 1), np.int64)})
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    shape = b"(K\x01K\x01K\x01t"
    program = entries["archive/data.pkl"].replace(shape, b"(K\x01K\x01J\xff\xff\xff\x7ft", 1)
    assert program != entries["archive/data.pkl"]
    zipped(path.name, entries | {"archive/data.pkl": program})(path.parent)


def _npz_bomb(path: Path) -> None:
    """An array of 8 GiB of zeros, which takes 8 MB in the archive; only its start is written."""
    body = npy((1 << 30, 1), bytes(1 << 20))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("counts.npy", body)


def _npz_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in (1, 2):
            archive.writestr("counts.npy", npy((1, 1), struct.pack("<q", count)))


def _without_counts(here: Path) -> None:
    head = '{"layer_ids":[3],"top_k":null,"labels":{},"provenance":{"format":"a","source":"b"}}'
    metadata = {"format": "equipoise.trace", "version": "1", "trace": head}
    save_file({"steps": np.arange(4)}, here / "run.safetensors", metadata)


def _renumbered(path: Path) -> None:
    write_sample(path.parent, path.name)
    record = json.loads(path.read_text())
    rows = record["initial_global_assignments"]
    record["initial_global_assignments"] = {"3": rows["0"], "4": rows["1"]}
    path.write_text(json.dumps(record))


def _other_map(path: Path, num_experts: int, layer_ids: tuple[int, ...]) -> None:
    slots = np.tile(np.arange(num_experts), (len(layer_ids), 1))
    placement = eq.Placement(slots, num_ranks=2, num_experts=num_experts, layer_ids=layer_ids)
    eq.write_map(placement, path, format="equipoise")


_NESTED = b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."
"""A dict whose key is a tuple in a tuple, 100,000 deep: to hash it would end the process."""

_PRICES = (
    "--rank-cost h100-deepep-ep8 --expert-bytes 9 --dwell-steps 9 --stall-seconds 1 "
    "--interference 1 --delay-steps 1"
)
"""What a decision to move needs."""

# The catalogue ------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[Case, ...]] = {
    "Arguments": (
        case("no such command", "balance run.safetensors"),
        case("a forgotten argument", "report"),
        case("an unknown option", "report run.safetensors --rank 2"),
        case("a word that is no number", "report run.safetensors --ranks two"),
        case("an option given twice", "plan run.safetensors --ranks 2 --ranks 4"),
        case("one argument too many", "report run.safetensors other.safetensors"),
        case("an unknown planner", "plan run.safetensors --ranks 2 --planner best"),
        case("an unknown format to read", "report run.safetensors --format trt"),
        case("an unknown engine", "plan run.safetensors --ranks 2 --for tgi -o m.json"),
        case("an unknown map format", "validate map.yaml --for trt"),
        case("an unknown format to write", "convert map.json --to tgi -o x.json"),
        case("--for without --output", "plan run.safetensors --ranks 2 --for trtllm"),
        case("no ranks", "plan run.safetensors --ranks 0"),
        case("negative ranks", "report run.safetensors --ranks -2"),
        case("a table of text in JSON", "report dump --per-expert --json"),
        case(
            "slots that do not divide over the ranks",
            "plan run.safetensors --ranks 2 --redundant 1",
        ),
        case("fewer slots than experts", "plan run.safetensors --ranks 2 --redundant -2"),
        case("more copies than ranks", "plan run.safetensors --ranks 2 --redundant 8"),
        case("absurdly many slots", "plan run.safetensors --ranks 2 --redundant 200000000000"),
        case(
            "absurdly many ranks",
            "plan run.safetensors --ranks 1000000000000 --redundant 999999999996",
        ),
        case("a number beyond 64 bits", "plan run.safetensors --ranks 99999999999999999999"),
        case(
            "nodes that do not divide the ranks",
            "plan run.safetensors --ranks 4 --ranks-per-node 3",
        ),
        case(
            "groups that do not divide the experts",
            "plan run.safetensors --ranks 2 --planner hierarchical --expert-groups 3",
        ),
        case(
            "a hierarchical plan without groups",
            "plan run.safetensors --ranks 2 --planner hierarchical",
        ),
        case(
            "groups for a planner without any", "plan run.safetensors --ranks 2 --expert-groups 2"
        ),
        case(
            "same-rank copies for a planner that makes none",
            "plan run.safetensors --ranks 2 --planner contiguous --allow-same-rank-copies",
        ),
        case("nothing left to plan on", "plan run.safetensors --ranks 2 --hold-out 1"),
        case("a negative share", "plan run.safetensors --ranks 2 --hold-out -0.5"),
        case("no share to score a budget on", "budget run.safetensors --ranks 2 --hold-out 0"),
        case("one held-out step", "budget run.safetensors --ranks 2 --domain code"),
        case("a budget of one step", "budget hotness.json --ranks 2"),
        case("a budget for one rank", "budget run.safetensors --ranks 1"),
        case("less than one slot a rank", "budget run.safetensors --ranks 2 --up-to 1"),
        case("a budget of more copies than ranks", "budget run.safetensors --ranks 2 --up-to 6"),
        case("experts of no bytes", "budget run.safetensors --ranks 2 --expert-bytes 0"),
        case(
            "tokens without the bytes of an expert",
            "budget run.safetensors --ranks 2 --kv-bytes-per-token 70272",
        ),
        case(
            "an option that the budget's planner ignores",
            "budget run.safetensors --ranks 2 --planner greedy --proposals 100",
        ),
        case("an unknown dispatcher", "plan run.safetensors --ranks 2 --dispatch best"),
        case("an unknown rank cost", "plan run.safetensors --ranks 2 --rank-cost h200"),
        case(
            "a dispatcher by time without a cost", "plan run.safetensors --ranks 2 --dispatch auto"
        ),
        case(
            "times of a dispatcher that knows none",
            "plan run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --dispatch vllm",
        ),
        case(
            "the size of a step without a cost",
            "plan run.safetensors --ranks 2 --step-assignments 100",
        ),
        case(
            "a step without assignments",
            "plan run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --step-assignments 0",
        ),
        case(
            "an endless step",
            "plan run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --step-assignments inf",
        ),
        case(
            "another size of step for a budget",
            "budget run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --step-assignments 100",
        ),
        case(
            "a checklist of a model that the recording is not of",
            f"{CHECKLIST} --hardware h100",
            model(n_routed_experts=8),
        ),
        case("a GPU that nobody knows", f"{CHECKLIST} --hardware h1000", model()),
        case(
            "an engine whose options are not known",
            f"{CHECKLIST} --hardware h100 --for ascend",
            model(),
        ),
        case(
            "more ranks than experts",
            "checklist run.safetensors --ranks 5 --model config.json --hardware h100",
            model(),
        ),
        case("times of other ranks", "report run.safetensors --ranks 2 --rank-seconds 1,1,1"),
        case("a forecast for ranks nobody timed", "forecast run.safetensors --ranks 2"),
        case("a GPU without a profile", "forecast run.safetensors --ranks 2 --hardware h1000"),
        case(
            "steps that nobody says what they do",
            "forecast run.safetensors --ranks 2 --hardware h100",
        ),
        case(
            "times by the hardware and by hand",
            "plan run.safetensors --ranks 2 --hardware h100 --rank-cost h100-deepep-ep8",
        ),
        case("a link without hardware", "budget run.safetensors --ranks 2 --link aws-efa"),
        case("a time for bytes", "budget run.safetensors --ranks 2 --expert-bytes 20ms"),
        case(
            "bytes for a time", "diff map.json map.yaml --trace run.safetensors --stall-seconds 3MB"
        ),
        case(
            "a forecast of one step",
            "forecast hotness.json --ranks 2 --rank-cost h100-deepep-ep8",
        ),
        case(
            "a rank cost that no forecast knows",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8,h200",
        ),
        case(
            "slots to try that are no numbers",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --redundant 0,few",
        ),
        case(
            "slots to try that ranks cannot share",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --redundant 3",
        ),
        case(
            "more slots to try than experts and ranks have",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --redundant 6",
        ),
        case(
            "a dispatcher that no forecast knows",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --dispatch even,best",
        ),
        case(
            "an engine whose rule is left out",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --dispatch even "
            "--for trtllm",
        ),
        case(
            "an engine that no forecast knows",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --for llama",
        ),
        case(
            "an option of an engine without the engine",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --use-async",
        ),
        case(
            "the price of a move without a map in force",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --stall-seconds 1",
        ),
        case(
            "a map in force with half of the prices",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --from map.json "
            "--stall-seconds 1",
        ),
        case("no share to forecast on", "forecast run.safetensors --ranks 2 --hold-out 0"),
        case(
            "costs without any certainty",
            "forecast run.safetensors --ranks 2 --rank-cost h100-deepep-ep8 --cost-error 2",
        ),
        case("a forecast of nothing", "forecast --ranks 2 --rank-cost h100-deepep-ep8"),
        case("a recording and a prior", f"{FORECAST} --prior glm-5.2 --batch-tokens 64"),
        case(
            "a prior without the size of a step",
            "forecast --prior glm-5.2 --ranks 8 --rank-cost h100-deepep-ep8",
        ),
        case(
            "a prior that nobody fitted",
            "forecast --prior glm-9 --batch-tokens 64 --ranks 8 --rank-cost h100-deepep-ep8",
        ),
        case(
            "a way to read a prior",
            "forecast --prior glm-5.2 --batch-tokens 64 --ranks 8 --phase decode",
        ),
        case("a controller whose moves have no bytes", f"{FORECAST} --online"),
        case(
            "a controller on a few steps",
            f"{FORECAST} --planner greedy --online --expert-bytes 9M",
        ),
        case("the time of a plan without a controller", f"{FORECAST} --plan-seconds 1"),
        case(
            "a controller that costs more than time",
            f"{FORECAST} --online --expert-bytes 9M --interference 2",
        ),
        case("settings for nothing", "tune --ranks 2 --rank-cost h100-deepep-ep8 --expert-bytes 9"),
        case("settings without the bytes of an expert", TUNE),
        case("settings on a few steps", f"{TUNE} --expert-bytes 9"),
        case("settings for ranks nobody timed", "tune run.safetensors --ranks 2 --expert-bytes 9"),
        case(
            "settings timed by the hardware and by hand",
            f"{TUNE} --expert-bytes 9 --hardware h100",
        ),
        case("steps to draw of no size", f"{TUNE} --expert-bytes 9 --steps 64"),
        case(
            "a window longer than its interval",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --try-window 64 --try-interval 8",
        ),
        case(
            "windows that are no numbers",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --try-window few",
        ),
        case(
            "an alarm below nothing",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --try-excess -0.1",
        ),
        case(
            "a way to balance that there is not",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --kinds static,dynamic",
        ),
        case(
            "settings of slots that ranks cannot share",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --redundant 1",
        ),
        case(
            "another dispatcher than the engine has",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --for vllm --dispatch even",
        ),
        case("a stall in bytes", f"{TUNE} --expert-bytes 9 --stall-seconds 3MB"),
        case("interference above all", f"{TUNE} --expert-bytes 9 --interference 2"),
        case("results over the recording", f"{TUNE} --expert-bytes 9 --results run.safetensors"),
        case(
            "results in a file of something else",
            f"{TUNE} --expert-bytes 9 --step-tokens 16 --results notes.txt",
            text("notes.txt", "bread, milk\n"),
        ),
        case("a simulation without requests", SIMULATE),
        case("a simulation of nothing", "simulate --ranks 2 --rate 5"),
        case("a simulation without times", "simulate run.safetensors --ranks 2 --rate 5"),
        case("requests at no rate", f"{SIMULATE} --rate 0"),
        case("several rates without a sweep", f"{SIMULATE} --rate 5,10"),
        case("a simulation by the hardware and by hand", f"{SIMULATE} --rate 5 --hardware h100"),
        case("slots of a map that is given", f"{SIMULATE} --rate 5 --map map.json --redundant 2"),
        case(
            "slots that simulated ranks cannot share",
            f"{SIMULATE} --rate 5 --duration 1 --redundant 1",
        ),
        case("a cache too small for a request", f"{SIMULATE} --rate 5 --kv-tokens 100"),
        case(
            "requests of a file that is none",
            f"{SIMULATE} --requests notes.txt",
            text("notes.txt", "bread, milk\n"),
        ),
        case(
            "requests that arrive before the first",
            f"{SIMULATE} --requests requests.csv",
            text("requests.csv", "arrival_seconds,prompt_tokens,output_tokens\n0,5,5\n-1,5,5\n"),
        ),
        case("a sweep over the recording", f"{SIMULATE} --rate 5 --sweep run.safetensors"),
        case(
            "losses for a planner that counts on none", "plan run.safetensors --ranks 2 --losses 2"
        ),
        case("all ranks lost", "plan run.safetensors --ranks 2 --planner survivable --losses 2"),
        case(
            "the loss of the only node",
            "plan run.safetensors --ranks 2 --planner survivable --loss-of node",
        ),
        case(
            "too few slots for a mirror",
            "plan run.safetensors --ranks 2 --planner survivable --mirrored",
        ),
        case(
            "a mirror of times",
            "plan run.safetensors --ranks 2 --planner survivable --mirrored "
            "--rank-cost h100-deepep-ep8",
        ),
        case(
            "a fixed graph without its name", "plan run.safetensors --ranks 2 --planner fixed-graph"
        ),
        case(
            "an unknown graph", "plan run.safetensors --ranks 2 --planner fixed-graph --graph star"
        ),
        case(
            "ranks that are not the graph",
            "plan run.safetensors --ranks 2 --planner fixed-graph --graph cube",
        ),
        case("a graph for a planner without any", "plan run.safetensors --ranks 2 --graph ring"),
        case(
            "LPLB without its graph",
            "plan run.safetensors --ranks 4 --redundant 8 --planner greedy --dispatch lplb",
        ),
        case("too few speeds", "plan run.safetensors --ranks 2 --speed 1"),
        case("a speed that is no number", "plan run.safetensors --ranks 2 --speed 1,fast"),
        case("no speed", "plan run.safetensors --ranks 2 --speed 1,0"),
        case("room for half an expert", "plan run.safetensors --ranks 2 --room 1.5,3"),
        case("room for too few experts", "plan run.safetensors --ranks 2 --room 1,2"),
        case(
            "room for a planner that does not look at it",
            "plan run.safetensors --ranks 2 --planner greedy --room 2,2",
        ),
        case(
            "a budget of moves without a map in force",
            "plan run.safetensors --ranks 2 --max-moves 5",
        ),
        case("a plan from the map in force", "plan run.safetensors --ranks 2 --from map.json"),
        case("repair as a planner", "plan run.safetensors --ranks 2 --planner repair"),
        case("a repair by a planner", "repair map.json run.safetensors --planner greedy"),
        case("a repair without a recording", "repair map.json"),
        case("a repair of a recording", "repair run.safetensors run.safetensors"),
        case("a repair with redundant slots", "repair map.json run.safetensors --redundant 2"),
        case(
            "bytes of moves without those of an expert",
            "repair map.json run.safetensors --max-bytes 100",
        ),
        case("fewer moves than none", "repair map.json run.safetensors --max-moves -1"),
        case(
            "moves in no time",
            "repair map.json run.safetensors --expert-bytes 1 --max-seconds 0",
        ),
        case(
            "a repaired map with a name of no format",
            "repair map.json run.safetensors -o map.txt",
        ),
        case(
            "steps of a repair without times",
            "repair map.json run.safetensors --step-assignments 100",
        ),
        case(
            "a map whose name may be of several formats",
            "plan run.safetensors --ranks 2 -o new.json",
        ),
        case("a map whose name is of no format", "plan run.safetensors --ranks 2 -o new.map"),
        case("a price of locality alone", "plan run.safetensors --ranks 2 --locality-price 0.01"),
        case(
            "a negative price of locality",
            "plan run.safetensors --ranks 2 --planner colocate --locality-price -1",
        ),
        case(
            "an endless price of locality",
            "plan run.safetensors --ranks 2 --planner colocate --locality-price inf",
        ),
        case(
            "locality for a dispatcher that follows the load",
            "plan run.safetensors --ranks 2 --planner colocate --dispatch minmax",
        ),
        case(
            "locality for copies that must stay",
            "plan run.safetensors --ranks 2 --redundant 4 --planner colocate --start survivable",
        ),
        case("a start without locality", "plan run.safetensors --ranks 2 --start greedy"),
        case(
            "locality from locality",
            "plan run.safetensors --ranks 2 --planner colocate --start colocate",
        ),
        case("locality without tokens", "plan table.csv --ranks 2 --planner colocate"),
        case(
            "a forecast of locality",
            f"{FORECAST} --planner colocate",
        ),
        case(
            "locality from an expert twice on a rank",
            "plan run.safetensors --ranks 2 --redundant 4 --planner colocate --start greedy "
            "--allow-same-rank-copies",
        ),
        case("neither a loss nor other ranks", "failover map.json run.safetensors"),
        case(
            "a loss and other ranks", "failover map.json run.safetensors --lost rank --to-ranks 3"
        ),
        case("the loss of what is unknown", "failover map.json run.safetensors --lost rack"),
        case(
            "the loss of nodes without their size", "failover map.json run.safetensors --lost node"
        ),
        case(
            "nodes for the loss of ranks",
            "failover map.json run.safetensors --lost rank --ranks-per-node 1",
        ),
        case(
            "the loss of the only node with its maps",
            "failover map.json run.safetensors --lost node --ranks-per-node 2",
        ),
        case("no ranks left", "failover map.json run.safetensors --to-ranks 0"),
        case("absurdly many ranks", "failover map.json run.safetensors --to-ranks 1000000"),
        case("survivors without room", "failover map.json run.safetensors --lost rank --room 3,3"),
        case(
            "failover maps without a folder",
            "failover map.json run.safetensors --lost rank --for trtllm",
        ),
        case(
            "decoder layers without failover maps",
            "failover map.json run.safetensors --lost rank --hidden-layers 5",
        ),
        case(
            "decoder layers for failover maps without them",
            "failover map.json run.safetensors --lost rank --for trtllm -o maps --hidden-layers 5",
        ),
        case(
            "failover maps for SGLang without decoder layers",
            "failover map.json run.safetensors --lost rank --for sglang -o maps",
        ),
        case(
            "another ending than the engine's",
            "failover map.json run.safetensors --to-ranks 3 --for trtllm -o map.txt",
        ),
        case("prices without a decision", "diff map.json map.yaml --ranks 2 --interference 0.1"),
        case(
            "a decision without prices", "diff map.json map.yaml --ranks 2 --trace run.safetensors"
        ),
        case("speeds that nothing uses", "diff map.json map.yaml --ranks 2 --speed 1,2"),
        case("room that nothing uses", "diff map.json map.yaml --ranks 2 --room 3,3"),
        case(
            "a map to write, and none that is new", "diff map.json map.yaml --for trtllm -o x.yaml"
        ),
        case("a renamed map without a file", "diff map.json map.yaml --match --for trtllm"),
        case(
            "an unknown engine for failover maps",
            "failover map.json run.safetensors --lost rank --for tgi -o x",
        ),
        case(
            "a negative stall",
            "diff map.json map.yaml --ranks 2 --trace run.safetensors --stall-seconds -1",
        ),
        case("a share that is no number", "plan run.safetensors --ranks 2 --hold-out nan"),
        case("one step, none to hold out", "plan hotness.json --ranks 2"),
        case("a domain of one step", "plan run.safetensors --ranks 2 --window 2"),
        case("layers in no order", "report run.safetensors --only-layers 4,3"),
        case("layers that are no numbers", "report run.safetensors --only-layers three"),
        case("a range of layers backwards", "report run.safetensors --only-layers 4-3"),
        case("a layer the recording lacks", "report run.safetensors --only-layers 5"),
        case("a label the recording lacks", "report run.safetensors --phase decode"),
        case("a value the label lacks", "report run.safetensors --domain math"),
        case("a window of no step", "report run.safetensors --window 0"),
        case("iterations that are not a range", "report dump --iterations 10"),
        case("iterations backwards", "report dump --iterations 12-10"),
        case("iterations the recording lacks", "report dump --iterations 100-200"),
        case("an option the format does not use", "report run.safetensors --window-tokens 4"),
        case(
            "an engine version that is not known",
            "plan run.safetensors --ranks 2 --for trtllm -o m.yaml --engine-version next",
        ),
        case(
            "SGLang's map without the number of decoder layers",
            "plan run.safetensors --ranks 2 --for sglang -o m.json",
        ),
        case(
            "fewer decoder layers than the recording has",
            "plan run.safetensors --ranks 2 --for sglang -o m.json --hidden-layers 4",
        ),
        case(
            "absurdly many decoder layers",
            "plan run.safetensors --ranks 2 --for sglang -o m.json --hidden-layers 100000000000",
        ),
        case(
            "decoder layers for a map that has no use for them",
            "plan run.safetensors --ranks 2 --for trtllm -o m.yaml --hidden-layers 5",
        ),
        case(
            "an engine option without an engine",
            "plan run.safetensors --ranks 2 --engine-version 0.5.23",
        ),
        case(
            "a backend for an engine without one",
            "plan run.safetensors --ranks 2 --for ascend -o m.json --backend CUTLASS",
        ),
        case(
            "a backend that cannot balance",
            "plan run.safetensors --ranks 2 --for trtllm -o m.yaml --backend TRITON",
        ),
        case(
            "an architecture the engine does not balance",
            "plan run.safetensors --ranks 2 --for trtllm -o m.yaml --architecture LlamaForCausalLM",
        ),
        case("a map for one rank", "plan run.safetensors --ranks 1 --for trtllm -o m.yaml"),
        case(
            "a dispatch that gives wrong text",
            "plan run.safetensors --ranks 2 --for sglang --hidden-layers 5 -o m.json "
            "--ep-dispatch static",
        ),
        case(
            "a vLLM release that reads no map",
            "plan run.safetensors --ranks 2 --for vllm-49572 -o m.json --engine-version 0.33.0",
        ),
        case(
            "same-rank copies on vllm-ascend",
            "plan run.safetensors --ranks 2 --redundant 6 --planner greedy "
            "--allow-same-rank-copies --for ascend -o m.json",
        ),
    ),
    "The model's configuration": (
        case("no such configuration", f"{PRICED} config.json"),
        case("a folder without one", f"{PRICED} model", folder("model")),
        case("another document", f"{PRICED} config.json", text("config.json", '{"weights": 1}')),
        case("half a document", f"{PRICED} config.json", text("config.json", '{"model_type": "')),
        case(
            "a model without experts",
            f"{PRICED} config.json",
            text("config.json", '{"model_type": "llama", "num_hidden_layers": 5}'),
        ),
        case("keys that are missing", f"{PRICED} config.json", model(hidden_size=None)),
        case("keys that contradict", f"{PRICED} config.json", model(num_experts=8)),
        case("layers without end", f"{PRICED} config.json", model(num_hidden_layers=10**9)),
        case("text for a number", f"{PRICED} config.json", model(num_experts_per_tok="two")),
        case("a model of other experts", f"{PRICED} config.json", model(n_routed_experts=8)),
        case("a model of other layers", f"{PRICED} config.json", model(first_k_dense_replace=4)),
        case(
            "a quantisation that is not known",
            f"{PRICED} config.json",
            model(quantization_config={"quant_method": "new"}),
        ),
        case(
            "bytes by the model and by hand",
            f"{PRICED} config.json --expert-bytes 9",
            model(),
        ),
        case(
            "decoder layers by the model and by hand",
            "plan run.safetensors --ranks 2 --for sglang -o m.json --hidden-layers 9 "
            "--model config.json",
            model(),
        ),
        case(
            "a typo in an all-to-all backend",
            "plan run.safetensors --ranks 2 --for sglang --hidden-layers 5 -o m.json "
            "--a2a-backend depep",
        ),
        case(
            "an all-to-all backend that came later",
            "plan run.safetensors --ranks 2 --for sglang --hidden-layers 5 -o m.json "
            "--a2a-backend nixl --engine-version 0.5.6",
        ),
    ),
    "Files and folders": (
        case("no such recording", "report missing.safetensors"),
        case("no such map", "validate missing.yaml"),
        case("an empty file", "report run.safetensors", raw("run.safetensors", b"")),
        case("an empty map", "validate map.yaml --for trtllm", raw("map.yaml", b"")),
        case("an empty folder", "report dump", folder("dump")),
        case("a folder for a map", "validate dump", folder("dump")),
        case(
            "a folder for a file of its format",
            "report table.csv --format csv",
            folder("table.csv"),
        ),
        case("a file for a folder of its format", "report dump --format trtllm", text("dump", "x")),
        case("a path through a file", "report table.csv/rank0", valid("table.csv")),
        case("a link in a circle", "report loop", lambda here: (here / "loop").symlink_to("loop")),
        case("a pipe", "report pipe", lambda here: os.mkfifo(here / "pipe")),
        case("a pipe for a map", "validate pipe", lambda here: os.mkfifo(here / "pipe")),
        case(
            "a file of another kind",
            "report photo.png",
            raw("photo.png", b"\x89PNG\r\n\x1a\n" + bytes(64)),
        ),
        case("a map for a recording", "report map.yaml"),
        case("a recording for a map", "validate run.safetensors"),
        case("SGLang's load for a map", "validate stat.json --for sglang"),
        case("two formats of the same form", "validate moe_rows.json"),
        case(
            "output into a missing folder",
            "plan run.safetensors --ranks 2 --for trtllm -o missing/map.yaml",
        ),
        case(
            "failover maps into a missing folder",
            "failover map.json run.safetensors --lost rank --for trtllm -o missing/maps",
        ),
        case(
            "failover maps onto a file",
            "failover map.json run.safetensors --lost rank --for trtllm -o old",
            text("old", "x"),
        ),
        case(
            "failover maps among others",
            "failover map.json run.safetensors --lost rank --for trtllm -o maps",
            folder("maps"),
            text("maps/without-rank-7.yaml", "x"),
        ),
        case(
            "a failover map onto the map in force",
            "failover map.json run.safetensors --to-ranks 3 --for ascend -o map.json",
        ),
        case(
            "a repair onto the map in force",
            "repair map.json run.safetensors --for equipoise -o map.json",
        ),
        case(
            "output onto a folder",
            "plan run.safetensors --ranks 2 --for trtllm -o map.yaml",
            valid("run.safetensors"),
            folder("map.yaml"),
        ),
        case(
            "output with a suffix the engine does not take",
            "plan run.safetensors --ranks 2 --for sglang --hidden-layers 5 -o map.JSON",
        ),
        case(
            "a page into a missing folder",
            "report run.safetensors --ranks 2 --html missing/page.html",
        ),
        case(
            "a page onto a folder",
            "report run.safetensors --ranks 2 --html page.html",
            valid("run.safetensors"),
            folder("page.html"),
        ),
        case(
            "a page onto a pipe",
            "report run.safetensors --ranks 2 --html pipe",
            lambda here: os.mkfifo(here / "pipe"),
        ),
        case(
            "a page to standard output",
            "report run.safetensors --ranks 2 --html -",
        ),
        case(
            "a page onto the recording", "report run.safetensors --ranks 2 --html run.safetensors"
        ),
        case("a page onto the map", "report run.safetensors --map map.json --html map.json"),
        case(
            "a plan onto the recording",
            "plan history.json --ranks 2 --for sglang --hidden-layers 5 -o history.json",
        ),
        case(
            "a recording into a missing folder",
            "convert counts.npz --to equipoise -o missing/run.safetensors",
        ),
        case(
            "a recording onto a folder",
            "convert counts.npz --to equipoise -o dump",
            valid("counts.npz"),
            folder("dump"),
        ),
        case("a dump onto a folder with content", "convert counts.npz --to trtllm -o dump"),
        case(
            "a dump onto a file",
            "convert counts.npz --to trtllm -o dump",
            valid("counts.npz"),
            text("dump", "x"),
        ),
        case("a dump into a missing folder", "convert counts.npz --to trtllm -o missing/dump"),
        case("a converted recording onto itself", "convert table.csv --to equipoise -o table.csv"),
        case(
            "a converted dump onto one of its files",
            "convert dump --to equipoise -o dump/rank0.safetensors",
        ),
        case("a converted map onto itself", "convert map.json --to ascend -o map.json"),
        case("a recording as a map", "convert run.safetensors --to ascend -o map.json"),
        case(
            "a map as a recording",
            "convert map.yaml --ranks 2 --to equipoise --domain code -o x.json",
        ),
        case(
            "a recording in a format only its engine writes",
            "convert run.safetensors --to sglang -o x.pt",
        ),
        case("a dump of a recording without top-k", "convert table.csv --to trtllm -o new-dump"),
        case(
            "ranks for a recording",
            "convert run.safetensors --ranks 2 --to equipoise -o x.safetensors",
        ),
        case(
            "decoder layers for a recording",
            "convert run.safetensors --hidden-layers 5 --to equipoise -o x.safetensors",
        ),
        case(
            "a map onto an SGLang file without decoder layers",
            "convert map.json --to sglang -o x.json",
        ),
    ),
    "TensorRT-LLM dumps": (
        case("rank file cut off", "report dump", cut(_RANK0, -9)),
        case("rank file cut off in its header", "report dump", cut(_RANK0, 100)),
        case("rank file cut off in its first number", "report dump", cut(_RANK0, 5)),
        case("rank file empty", "report dump", raw("x", b""), cut(_RANK0, 0)),
        case(
            "header of 2^63 bytes",
            "report dump",
            valid("dump"),
            raw(_RANK0, struct.pack("<Q", 1 << 63) + b"{}"),
        ),
        case(
            "header that is no JSON",
            "report dump",
            valid("dump"),
            raw(_RANK0, struct.pack("<Q", 9) + b'{"10_3": '),
        ),
        case(
            "huge declared shape",
            "report dump",
            valid("dump"),
            header(
                _RANK0,
                {"10_3": {"dtype": "I64", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}},
                bytes(8),
            ),
        ),
        case(
            "negative shape",
            "report dump",
            valid("dump"),
            header(
                _RANK0,
                {"10_3": {"dtype": "I64", "shape": [-1, -1], "data_offsets": [0, 8]}},
                bytes(8),
            ),
        ),
        case(
            "tensors that overlap",
            "report dump",
            valid("dump"),
            header(
                _RANK0,
                {
                    k: {"dtype": "I64", "shape": [4], "data_offsets": [0, 32]}
                    for k in ("10_3", "10_4")
                },
                bytes(32),
            ),
        ),
        case(
            "a number type that counts nothing",
            "report dump",
            valid("dump"),
            header(
                _RANK0,
                {"10_3": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
                bytes(8),
            ),
        ),
        case(
            "a key that is no iteration and layer",
            "report dump",
            valid("dump"),
            tensors(_RANK0, layer3=[1, 2, 3, 4]),
        ),
        case(
            "the same key twice, once with a zero in front",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": [1, 2, 3, 4], "010_3": [1, 2, 3, 4]}),
        ),
        case(
            "vectors shorter than the experts",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": [1, 2, 3]}),
        ),
        case(
            "matrices in the place of vectors",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": [[1, 2], [3, 4]]}),
        ),
        case(
            "two number types in one file",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": np.arange(4), "10_4": np.ones(4)}),
        ),
        case(
            "negative counts",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": [1, -2, 3, 4]}),
        ),
        case(
            "counts whose sums would not fit into 64 bits",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": [1 << 62] * 4}),
        ),
        case(
            "NaN counts",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": np.array([1, np.nan, 3, 4], np.float32)}),
        ),
        case(
            "half a token",
            "report dump",
            valid("dump"),
            tensors(_RANK0, **{"10_3": np.array([1, 0.5, 3, 4], np.float32)}),
        ),
        case(
            "a stray key far away",
            "report dump",
            valid("dump"),
            tensors("dump/rank1000.safetensors", **{f"{i}_{i}": [1, 2, 3, 4] for i in range(200)}),
        ),
        case(
            "a rank number beyond any deployment",
            "report dump",
            valid("dump"),
            tensors("dump/rank999999.safetensors", **{"10_3": [1, 2, 3, 4]}),
        ),
        case(
            "no rank file at all",
            "report dump --format trtllm",
            folder("dump"),
            text("dump/meta_info.json", "{}"),
        ),
        case(
            "a rank file one folder up by its name",
            "report dump",
            folder("dump"),
            tensors("dump/rank...safetensors", **{"10_3": [1, 2, 3, 4]}),
        ),
        case(
            "rank files without a key",
            "report dump",
            folder("dump"),
            header("dump/rank0.safetensors", {}),
        ),
        case(
            "a rank file that is a folder",
            "report dump",
            folder("dump"),
            folder("dump/rank0.safetensors"),
        ),
        case(
            "meta_info.json damaged",
            "report dump",
            valid("dump"),
            text("dump/meta_info.json", '{"num_experts": 4,'),
        ),
        case(
            "meta_info.json with other experts",
            "report dump",
            valid("dump"),
            text("dump/meta_info.json", '{"num_experts": 8}'),
        ),
        case(
            "meta_info.json with absurd experts",
            "report dump",
            valid("dump"),
            text("dump/meta_info.json", '{"num_experts": 99999999999}'),
        ),
        case(
            "meta_info.json with negative experts",
            "report dump",
            valid("dump"),
            text("dump/meta_info.json", '{"num_experts": -4}'),
        ),
        case(
            "meta_info.json with a string",
            "report dump",
            valid("dump"),
            text("dump/meta_info.json", '{"num_experts": "4"}'),
        ),
        case(
            "token counts damaged",
            "report dump",
            valid("dump"),
            text("dump/rank0_numtokens.json", "["),
        ),
        case(
            "token counts under a strange key",
            "report dump",
            valid("dump"),
            text("dump/rank0_numtokens.json", '{"../10_3": 1}'),
        ),
        case("choices cut off", "report raw", cut("raw/rank0_raw.safetensors", -1)),
        case(
            "choices that are no table",
            "report raw",
            valid("raw"),
            tensors("raw/rank0_raw.safetensors", **{"10_3": [1, 2]}),
        ),
        case(
            "choices without a number of experts",
            "report raw",
            valid("raw"),
            without("raw/meta_info.json"),
        ),
        case("other experts than the user says", "report dump --experts 2"),
        case(
            "a pickle, not asked for",
            "report dump",
            folder("dump"),
            raw("dump/rank_0.pkl", pickle.dumps({(1, 3): _Exploit()})),
        ),
        case(
            "a pickle that runs a program",
            "report dump --allow-pickle",
            folder("dump"),
            raw("dump/rank_0.pkl", pickle.dumps({(1, 3): _Exploit()})),
        ),
        case(
            "a pickle of numbers",
            "report dump --allow-pickle",
            folder("dump"),
            raw("dump/rank_0.pkl", pickle.dumps({"10_3": 5})),
        ),
        case(
            "a pickle cut off",
            "report dump --allow-pickle",
            folder("dump"),
            raw("dump/rank_0.pkl", pickle.dumps({(1, 3): 5})[:-4]),
        ),
        case(
            "a pickle that asks for memory without end",
            "report dump --allow-pickle",
            folder("dump"),
            raw("dump/rank_0.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60)),
        ),
        case(
            "a pickle of tuples in tuples in tuples",
            "report dump --allow-pickle",
            folder("dump"),
            raw("dump/rank_0.pkl", _NESTED),
        ),
        case(
            "pickles next to safetensors",
            "report dump --allow-pickle",
            valid("dump"),
            raw("dump/rank_0.pkl", pickle.dumps({})),
        ),
        case("pickles asked for where there are none", "report dump --allow-pickle"),
        case("the map of another run", "report dump --run-map map.yaml --ranks 2"),
        case("a run's map without its ranks", "report dump --run-map map.yaml"),
        case("slots without the map of the run", "report dump --experts 2"),
    ),
    "Our own recordings": (
        case("cut off", "report run.safetensors", cut("run.safetensors", -8)),
        case("cut off in its header", "report run.safetensors", cut("run.safetensors", 60)),
        case(
            "of a newer version",
            "report run.safetensors",
            swapped("run.safetensors", '"version":"1"', '"version":"7"'),
        ),
        case("without its counts", "report run.safetensors", _without_counts),
        case(
            "with a damaged head",
            "report run.safetensors",
            swapped("run.safetensors", "layer_ids", "layer_odd"),
        ),
        case(
            "layer ids that do not ascend",
            "report run.safetensors",
            swapped("run.safetensors", "[3,4]", "[4,3]"),
        ),
        case(
            "a safetensors file of something else",
            "report model.safetensors",
            tensors("model.safetensors", weight=np.ones(4, np.float32)),
        ),
    ),
    "SGLang dumps": (
        case("archive cut off", "report stat.pt --format sglang", cut("stat.pt", -30)),
        case("archive cut off, format not named", "report stat.pt", cut("stat.pt", -30)),
        case(
            "a file in torch's older format",
            "report stat.pt --format sglang",
            raw("stat.pt", pickle.dumps({"logical_count": 1}, protocol=2)),
        ),
        case(
            "a zip of something else",
            "report stat.pt --format sglang",
            zipped("stat.pt", {"../evil.txt": b"x"}),
        ),
        case(
            "a pickle that runs a program",
            "report stat.pt --format sglang",
            zipped(
                "stat.pt", _torch_entries(pickle.dumps({"logical_count": _Exploit()}, protocol=2))
            ),
        ),
        case(
            "a pickle of tuples in tuples in tuples",
            "report stat.pt --format sglang",
            zipped("stat.pt", _torch_entries(_NESTED)),
        ),
        case(
            "entries that lead out of the archive",
            "report stat.pt --format sglang",
            zipped("stat.pt", {"../data.pkl": b"\x80\x02}."}),
        ),
        case(
            "a zip bomb",
            "report stat.pt --format sglang",
            zipped("stat.pt", _torch_entries(b"\x80\x02}." + bytes(1 << 20)), zipfile.ZIP_DEFLATED),
        ),
        case(
            "an expanded tensor",
            "report stat.pt --format sglang",
            lambda here: _expanded(here / "stat.pt"),
        ),
        case(
            "a whole model",
            "report stat.pt --format sglang",
            torch_file("stat.pt", {"model.layers.0.weight": np.ones((2, 2), np.float32)}),
        ),
        case("a map", "report location.pt --format sglang"),
        case(
            "no load",
            "report stat.pt",
            torch_file("stat.pt", {"rank": 0, "logical_count": np.zeros((4, 5, 4), np.int32)}),
        ),
        case(
            "four axes",
            "report stat.pt",
            torch_file("stat.pt", {"rank": 0, "logical_count": np.ones((1, 4, 5, 4), np.int32)}),
        ),
        case(
            "negative counts",
            "report stat.pt",
            torch_file("stat.pt", {"rank": 0, "logical_count": np.full((4, 5, 4), -1)}),
        ),
        case(
            "half a token",
            "report stat.pt",
            torch_file(
                "stat.pt", {"rank": 0, "logical_count": np.full((4, 5, 4), 0.5, np.float32)}
            ),
        ),
        case(
            "NaN",
            "report stat.pt",
            torch_file(
                "stat.pt", {"rank": 0, "logical_count": np.full((4, 5, 4), np.nan, np.float32)}
            ),
        ),
        case(
            "ragged rows",
            "report stat.json",
            text("stat.json", '{"logical_count": [[[1, 2], [3]]]}'),
        ),
        case(
            "words for counts",
            "report stat.json",
            text("stat.json", '{"logical_count": [["many", "few"]]}'),
        ),
        case("NaN in JSON", "report stat.json", text("stat.json", '{"logical_count": [[NaN, 1]]}')),
        case("iterations of a dump without any", "report stat.pt --iterations 10-12"),
        case("other layers than the dump has", "report stat.pt --layers 3-9"),
        case(
            "two modes in one folder",
            "report passes",
            valid("passes"),
            torch_file(
                "passes/expert_distribution_recorder_1.5.pt",
                {"rank": 0, "logical_count": np.ones((4, 5, 4), np.int32)},
            ),
        ),
        case(
            "two models in one folder",
            "report dumps",
            folder("dumps"),
            torch_file(
                "dumps/expert_distribution_recorder_1.5.pt",
                {"rank": 0, "logical_count": np.ones((4, 5, 4), np.int32)},
            ),
            torch_file(
                "dumps/expert_distribution_recorder_2.5.pt",
                {"rank": 0, "logical_count": np.ones((4, 5, 8), np.int32)},
            ),
        ),
        case(
            "two dumps mixed",
            "report passes",
            valid("passes"),
            lambda here: (here / "passes/expert_distribution_recorder_1.5_0.pt").write_bytes(
                (here / "passes/expert_distribution_recorder_1700000000.5_0.pt").read_bytes()
            ),
        ),
        case("passes without their map", "report p.pt", torch_file("p.pt", {"records": []})),
        case(
            "a map with an expert out of range",
            "report p.pt",
            torch_file("p.pt", {"records": [], "last_physical_to_logical_map": np.array([[0, 9]])}),
        ),
        case(
            "passes without records",
            "report p.pt",
            torch_file("p.pt", {"records": [], "last_physical_to_logical_map": SLOTS}),
        ),
        case(
            "a record without counts",
            "report p.pt",
            torch_file(
                "p.pt",
                {
                    "records": [{"forward_pass_id": 1, "rank": 0}],
                    "last_physical_to_logical_map": SLOTS,
                },
            ),
        ),
        case(
            "a record of another shape",
            "report p.pt",
            torch_file(
                "p.pt",
                {
                    "records": [
                        {
                            "forward_pass_id": 1,
                            "rank": 0,
                            "global_physical_count": np.ones((9, 6), np.int32),
                        }
                    ],
                    "last_physical_to_logical_map": SLOTS,
                },
            ),
        ),
        case(
            "a record without a rank",
            "report p.pt",
            torch_file(
                "p.pt",
                {
                    "records": [
                        {"forward_pass_id": 1, "global_physical_count": np.ones((2, 6), np.int32)}
                    ],
                    "last_physical_to_logical_map": SLOTS,
                },
            ),
        ),
    ),
    "Other recordings": (
        case("vLLM: cut off in its first record", "report stats.jsonl", cut("stats.jsonl", 40)),
        case(
            "vLLM: a broken line in the middle",
            "report stats.jsonl",
            swapped("stats.jsonl", '"step": 11', '"step": '),
        ),
        case(
            "vLLM: an unknown version",
            "report stats.jsonl",
            swapped("stats.jsonl", '"version": 1, "step": 11', '"version": 2, "step": 11'),
        ),
        case(
            "vLLM: a map of another shape",
            "report stats.jsonl",
            swapped("stats.jsonl", '"p2l_map": [[0, 1, 2, 3, 0, 1]', '"p2l_map": [[0, 1, 2, 3, 0]'),
        ),
        case(
            "vLLM: an expert out of range",
            "report stats.jsonl",
            swapped("stats.jsonl", '"p2l_map": [[0, 1', '"p2l_map": [[0, 77'),
        ),
        case(
            "vLLM: negative load",
            "report stats.jsonl",
            swapped("stats.jsonl", '"expert_load": [[', '"expert_load": [[-'),
        ),
        case(
            "vLLM: two recordings in one file",
            "report stats.jsonl",
            _changed("stats.jsonl", lambda data: data * 2),
        ),
        case(
            "vLLM: no statistics",
            "report stats.jsonl",
            _changed("stats.jsonl", lambda data: data.splitlines()[0]),
        ),
        case("vLLM: iterations it lacks", "report stats.jsonl --iterations 90-99"),
        case("vLLM: one layer number for two layers", "report stats.jsonl --layers 3"),
        case("ADRS: cut off", "report history.json", cut("history.json", -20)),
        case(
            "ADRS: ragged steps",
            "report history.json",
            edited("history.json", _drop("load_history", 1, "logical_expert_load", 0)),
        ),
        case(
            "ADRS: ragged layers",
            "report history.json",
            edited("history.json", _drop("load_history", 1, "logical_expert_load", 0, 0)),
        ),
        case(
            "ADRS: a step without loads",
            "report history.json",
            edited("history.json", _set("load_history", 2, {})),
        ),
        case(
            "ADRS: NaN",
            "report history.json",
            edited(
                "history.json", _set("load_history", 1, "logical_expert_load", 0, 0, float("nan"))
            ),
        ),
        case(
            "ADRS: a negative load",
            "report history.json",
            edited("history.json", _set("load_history", 1, "logical_expert_load", 0, 0, -3)),
        ),
        case(
            "ADRS: true for a number",
            "report history.json",
            edited("history.json", _set("load_history", 1, "logical_expert_load", 0, [True] * 4)),
        ),
        case("ADRS: no step", "report history.json", text("history.json", '{"load_history": []}')),
        case("ADRS: iterations beyond the end", "report history.json --iterations 90-99"),
        case(
            "MindSpeed: an expert without a number",
            "report hotness.json",
            text("hotness.json", '{"0": {"0": 5, "one": 3}}'),
        ),
        case("MindSpeed: cut off", "report hotness.json", cut("hotness.json", -3)),
        case(
            "MindSpeed: half a token",
            "report hotness.json",
            text("hotness.json", '{"0": {"0": 5.5, "1": 3}}'),
        ),
        case(
            "MindSpeed: Infinity",
            "report hotness.json --format mindspeed",
            text("hotness.json", '{"0": {"0": Infinity}}'),
        ),
        case(
            "MindSpeed: an absurd expert id",
            "report hotness.json",
            text("hotness.json", '{"0": {"4000000000": 5}}'),
        ),
        case(
            "MindSpeed: the same layer twice",
            "report hotness.json",
            text("hotness.json", '{"0": {"0": 5}, "0": {"1": 5}}'),
        ),
        case(
            "MindSpeed: the same layer twice, once with a zero in front",
            "report hotness.json",
            text("hotness.json", '{"0": {"0": 5}, "00": {"1": 5}}'),
        ),
        case(
            "a tensor of fractions",
            "report load.pt",
            torch_file("load.pt", np.full((2, 4), 0.5, np.float32)),
        ),
        case(
            "a tensor of three axes",
            "report load.pt --format pt-load",
            torch_file("load.pt", np.ones((2, 2, 4), np.int64)),
        ),
        case(
            "a tensor with NaN",
            "report load.pt",
            torch_file("load.pt", np.full((2, 4), np.nan, np.float32)),
        ),
    ),
    "Routing of tokens": (
        case("SGLang: an answer without its shape", "report sglang.jsonl"),
        case("SGLang: another number of choices", "report sglang.jsonl --top-k 7"),
        case(
            "an answer without routing",
            "report answers.json",
            text("answers.json", '{"choices": [{"index": 0, "text": "Hello"}]}\n'),
        ),
        case(
            "routing that is not base64",
            "report answers.json",
            text("answers.json", '{"choices": [{"routed_experts": "?"}]}\n'),
        ),
        case(
            "answers of two models",
            "report answers.jsonl",
            text(
                "answers.jsonl",
                '{"choices": [{"routed_experts": [[[0, 1]]]}]}\n'
                '{"choices": [{"routed_experts": [[[0, 1], [2, 3]]]}]}\n',
            ),
        ),
        case("a window that sums nothing", "report stream.txt --window 2"),
        case("columns that are no pairs", "report tokens.csv --columns experts"),
        case("a column that we do not know", "report tokens.csv --columns weights=topk_ids"),
        case("a column that is not there", "report tokens.csv --columns experts=chosen"),
        case(
            "a route without its layer",
            "report routes.jsonl",
            swapped("routes.jsonl", '"layer"', '"block"'),
        ),
        case(
            "a router trace whose tokens differ in experts",
            "report router_traces",
            swapped(
                "router_traces/router_trace_rank0.jsonl",
                '"top_indices": [[',
                '"top_indices": [[1], [',
            ),
        ),
    ),
    "Tables and archives": (
        case("npz: cut off", "report counts.npz --format npz", cut("counts.npz", -40)),
        case("npz: cut off, format not named", "report counts.npz", cut("counts.npz", -40)),
        case(
            "npz: a huge declared shape",
            "report counts.npz",
            zipped("counts.npz", {"counts.npy": npy((1 << 40, 1 << 20, 256), bytes(64))}),
        ),
        case("npz: a zip bomb", "report counts.npz", lambda here: _npz_bomb(here / "counts.npz")),
        case(
            "npz: Python objects",
            "report counts.npz",
            zipped("counts.npz", {"counts.npy": npy((1,), pickle.dumps(_Exploit()), "|O")}),
        ),
        case(
            "npz: a header that is a program",
            "report counts.npz",
            zipped("counts.npz", {"counts.npy": b"\x93NUMPY\x01\x00\x10\x00__import__('os')"}),
        ),
        case(
            "npz: entries that lead out of the archive",
            "report counts.npz --format npz",
            zipped("counts.npz", {"../counts.npy": npy((1, 2), bytes(16))}),
        ),
        case(
            "npz: two arrays of one name",
            "report counts.npz",
            lambda here: _npz_twice(here / "counts.npz"),
        ),
        case(
            "npz: arrays of other names",
            "report counts.npz --format npz",
            npz("counts.npz", loads=np.ones((2, 4))),
        ),
        case(
            "npz: negative counts",
            "report counts.npz",
            npz("counts.npz", counts=np.array([[1, -1]])),
        ),
        case(
            "npz: half a token", "report counts.npz", npz("counts.npz", counts=np.array([[0.5, 1]]))
        ),
        case("npz: words", "report counts.npz", npz("counts.npz", counts=np.array([["a", "b"]]))),
        case(
            "npz: no step", "report counts.npz", npz("counts.npz", counts=np.ones((0, 2, 4), int))
        ),
        case(
            "npz: layers that do not fit",
            "report counts.npz",
            npz("counts.npz", counts=np.ones((2, 4), int), layers=np.arange(3)),
        ),
        case(
            "npz: choices without lengths",
            "report choices.npz",
            npz("choices.npz", topk_ids=np.tile([0, 1], (4, 2, 1))),
        ),
        case(
            "npz: a kernel that recorded nothing",
            "report choices.npz",
            npz("choices.npz", topk_ids=np.zeros((4, 2, 2), int), seq_lens=np.array([4])),
        ),
        case(
            "npz: lengths that do not add up",
            "report choices.npz",
            npz("choices.npz", topk_ids=np.zeros((4, 2, 2), int), seq_lens=np.array([3])),
        ),
        case(
            "npz: labels that are no text",
            "report counts.npz",
            npz(
                "counts.npz",
                counts=np.ones((1, 2, 4), int),
                domains=np.array([0x110000], np.uint32).view("U1"),
            ),
        ),
        case("npz: an expert out of range", "report choices.npz --experts 2"),
        case(
            "npz: an absurd expert id",
            "report choices.npz",
            npz("choices.npz", topk_ids=np.full((1, 1, 1), 1 << 40), seq_lens=np.array([1])),
        ),
        case("npz: tokens per window for counts", "report counts.npz --window-tokens 4"),
        case("npz: no token per window", "report choices.npz --window-tokens 0"),
        case(
            "npz: two archives in one folder",
            "report runs",
            folder("runs"),
            npz("runs/a.npz", counts=np.ones((2, 4), int)),
            npz("runs/b.npz", counts=np.ones((2, 4), int)),
        ),
        case("csv: no header", "report table.csv --format csv", text("table.csv", "3,0,5\n")),
        case("csv: only a header", "report table.csv", text("table.csv", "layer,expert,tokens\n")),
        case(
            "csv: a short line",
            "report table.csv",
            text("table.csv", "layer,expert,tokens\n3,0,5\n3,1\n"),
        ),
        case("csv: NaN", "report table.csv", text("table.csv", "layer,expert,tokens\n3,0,NaN\n")),
        case(
            "csv: infinity", "report table.csv", text("table.csv", "layer,expert,tokens\n3,0,inf\n")
        ),
        case(
            "csv: half a token",
            "report table.csv",
            text("table.csv", "layer,expert,tokens\n3,0,0.5\n"),
        ),
        case(
            "csv: a negative count",
            "report table.csv",
            text("table.csv", "layer,expert,tokens\n3,0,-5\n"),
        ),
        case(
            "csv: an absurd expert id",
            "report table.csv",
            text("table.csv", "layer,expert,tokens\n3,4000000000,5\n"),
        ),
        case(
            "csv: a number of 5000 digits",
            "report table.csv",
            text("table.csv", f"layer,expert,tokens\n3,0,{'9' * 5000}\n"),
        ),
        case(
            "csv: a stray step far away",
            "report table.csv",
            text(
                "table.csv",
                "".join(
                    [
                        "step,source_rank,layer,expert,tokens\n",
                        *(f"{i},{i},{i},{i},1\n" for i in range(400)),
                    ]
                ),
            ),
        ),
        case(
            "csv: a column twice",
            "report table.csv",
            text("table.csv", "layer,expert,tokens,tokens\n3,0,5,5\n"),
        ),
        case(
            "csv: tokens and count",
            "report table.csv",
            text("table.csv", "layer,expert,tokens,count\n3,0,5,5\n"),
        ),
        case(
            "csv: UTF-16",
            "report table.csv --format csv",
            text("table.csv", "layer,expert,tokens\n3,0,5\n", "utf-16"),
        ),
        case(
            "csv: bytes that are no text",
            "report table.csv",
            raw("table.csv", b"layer,expert,tokens\n3,0,\xff\n"),
        ),
        case(
            "csv: NUL bytes",
            "report table.csv",
            raw("table.csv", b"layer,expert,tokens\n3,0,\x00\n"),
        ),
        case(
            "csv: a quote that never ends",
            "report table.csv",
            text("table.csv", 'layer,expert,tokens\n3,0,"5\n' + "3,0,5\n" * 30000),
        ),
        case("json: cut off", "report table.json", cut("table.json", -10)),
        case("json: an empty list", "report table.json --format json", text("table.json", "[]")),
        case(
            "json: a record without tokens",
            "report table.json",
            edited("table.json", _drop(3, "tokens")),
        ),
        case(
            "json: a word for a number",
            "report table.json",
            edited("table.json", _set(3, "tokens", "many")),
        ),
        case(
            "json: a negative count",
            "report table.json",
            edited("table.json", _set(3, "tokens", -1)),
        ),
        case(
            "json: a count beyond 64 bits",
            "report table.json",
            edited("table.json", _set(3, "tokens", 1 << 70)),
        ),
        case(
            "json: Infinity",
            "report table.json",
            edited("table.json", _set(3, "tokens", float("inf"))),
        ),
        case("json: an expert out of range", "report table.json --experts 2"),
        case(
            "json: 100,000 brackets",
            "report table.json --format json",
            text("table.json", "[" * 100_000),
        ),
        case(
            "json: one key twice in a record",
            "report table.json",
            text("table.json", '[{"layer": 3, "expert": 0, "tokens": 5, "tokens": 7}]'),
        ),
        case(
            "no load at all",
            "plan table.csv --ranks 1 --hold-out 0",
            text("table.csv", "layer,expert,tokens\n3,0,0\n"),
        ),
        case(
            "no load at all, in a report",
            "report table.csv --ranks 1",
            text("table.csv", "layer,expert,tokens\n3,0,0\n"),
        ),
    ),
    "Maps": (
        finding("yaml: an expert missing", "validate map.yaml", yaml("[3, 2, 1, 3, 2, 3]")),
        case(
            "yaml: an expert missing, planned with",
            "report dump --map map.yaml --ranks 2",
            valid("dump"),
            yaml("[3, 2, 1, 3, 2, 3]"),
        ),
        finding(
            "yaml: a layer twice",
            "validate map.yaml",
            yaml(more="initial_global_assignments:\n  3: [0, 1]\n"),
        ),
        finding(
            "yaml: two lists for a layer",
            "validate map.yaml",
            text(
                "map.yaml", "initial_global_assignments:\n  3: [0, 1]\n  3: [1, 0]\nnum_slots: 2\n"
            ),
        ),
        finding("yaml: wrong num_slots", "validate map.yaml", yaml(slots=8)),
        finding("yaml: num_slots as text", "validate map.yaml", yaml(slots="six")),
        finding("yaml: no num_slots", "validate map.yaml", yaml(slots="null")),
        finding("yaml: num_slots absurd", "validate map.yaml", yaml(slots=10**15)),
        finding(
            "yaml: an id out of range", "validate map.yaml --experts 4", yaml("[3, 2, 1, 0, 2, 9]")
        ),
        finding("yaml: a negative id", "validate map.yaml", yaml("[3, 2, 1, 0, 2, -1]")),
        finding(
            "yaml: ids that are no integers", "validate map.yaml", yaml("[3, 2, 1, 0, 2.0, true]")
        ),
        finding("yaml: NaN", "validate map.yaml", yaml("[3, 2, 1, 0, .nan, .inf]")),
        finding("yaml: a layer without a list", "validate map.yaml", yaml("null")),
        finding("yaml: a ragged layer", "validate map.yaml", yaml("[3, 2, 1, 0]")),
        finding(
            "yaml: a layer without a number",
            "validate map.yaml",
            text("map.yaml", "initial_global_assignments:\n  third: [0, 1]\nnum_slots: 2\n"),
        ),
        finding("yaml: an unknown key", "validate map.yaml", yaml(more="ep_size: 2\n")),
        finding(
            "yaml: updates without a number",
            "validate map.yaml",
            yaml(more="layer_updates_per_iter: often\n"),
        ),
        case(
            "yaml: no layers",
            "validate map.yaml",
            text("map.yaml", "num_slots: 6\ninitial_global_assignments: {}\n"),
        ),
        finding(
            "yaml: online, ranks that do not divide",
            "validate map.yaml --ranks 4",
            text("map.yaml", "num_slots: 6\nlayer_updates_per_iter: 2\n"),
        ),
        case(
            "yaml: online, no map to convert",
            "convert map.yaml --ranks 2 --to equipoise -o x.json",
            text("map.yaml", "num_slots: 6\nlayer_updates_per_iter: 2\n"),
        ),
        case("yaml: of another program", "validate map.yaml", yaml(more="format: acme\n")),
        case(
            "yaml: a layer of a million slots",
            "validate map.yaml",
            yaml(f"[{', '.join(['0'] * 1_000_000)}]"),
        ),
        finding("yaml: layers without a row", "validate map.yaml --layers 3-5", yaml()),
        finding("yaml: ranks that do not divide", "validate map.yaml --ranks 4", yaml()),
        finding(
            "yaml: other redundancy than configured",
            "validate map.yaml --experts 4 --redundant 4",
            yaml(),
        ),
        finding("yaml: more experts than slots", "validate map.yaml --experts 8", yaml()),
        case("yaml: no experts", "validate map.yaml --experts 0", yaml()),
        case("yaml: a bomb of aliases", "validate map.yaml --for trtllm", text("map.yaml", _BOMB)),
        case(
            "yaml: a tag that makes an object",
            "validate map.yaml --for trtllm",
            text("map.yaml", "num_slots: !!python/object/apply:os.mkdir [exploited]\n"),
        ),
        case(
            "yaml: deep nesting",
            "validate map.yaml --for trtllm",
            text("map.yaml", "num_slots: " + "[" * 5000),
        ),
        case("yaml: broken off", "validate map.yaml --for trtllm", cut("map.yaml", 40)),
        case("yaml: tabs", "validate map.yaml --for trtllm", text("map.yaml", "num_slots:\n\t6\n")),
        case(
            "yaml: a key that is a list",
            "validate map.yaml --for trtllm",
            text("map.yaml", "num_slots: 6\n? [3, 4]\n: [0, 1]\n"),
        ),
        case(
            "yaml: a date",
            "validate map.yaml --for trtllm",
            text("map.yaml", "num_slots: 2026-99-99\n"),
        ),
        case(
            "yaml: two documents",
            "validate map.yaml --for trtllm",
            yaml(more="---\nnum_slots: 4\n"),
        ),
        case(
            "yaml: names another file",
            "validate map.yaml --for trtllm",
            text("map.yaml", "moe_config:\n  load_balancer: ../other.yaml\n"),
        ),
        case(
            "yaml: bytes that are no text",
            "validate map.yaml --for trtllm",
            raw("map.yaml", b"num_slots: \xff\n"),
        ),
        case(
            "yaml: UTF-16",
            "validate map.yaml --for trtllm",
            lambda here: (here / "map.yaml").write_text("num_slots: 6\n", encoding="utf-16"),
        ),
        case("equipoise: cut off", "validate map.json --for equipoise", cut("map.json", -20)),
        case("equipoise: cut off, format not named", "validate map.json", cut("map.json", -20)),
        finding(
            "equipoise: changed by hand",
            "validate map.json",
            swapped("map.json", "[0, 1, 2, 3, 0, 1]", "[1, 0, 2, 3, 0, 1]"),
        ),
        finding(
            "equipoise: a newer version",
            "validate map.json",
            swapped("map.json", '"version": 1', '"version": 2'),
        ),
        finding(
            "equipoise: a layer twice",
            "validate map.json",
            swapped("map.json", '"id": 4', '"id": 3'),
        ),
        finding(
            "equipoise: a key twice",
            "validate map.json",
            swapped("map.json", '"num_ranks": 2', '"num_ranks": 3, "num_ranks": 2'),
        ),
        finding(
            "equipoise: NaN",
            "validate map.json",
            swapped("map.json", "[0, 1, 2, 3, 0, 1]", "[NaN, 1, 2, 3, 0, 1]"),
        ),
        finding(
            "equipoise: absurd sizes",
            "validate map.json",
            swapped("map.json", '"num_ranks": 2', '"num_ranks": 200000000000000000000'),
        ),
        case("equipoise: no layers", "validate map.json", edited("map.json", _set("layers", []))),
        finding(
            "sglang: a second key",
            "validate location.json",
            edited("location.json", _set("logical_count", [])),
        ),
        finding("sglang: rows missing", "validate location.json --hidden-layers 61"),
        finding(
            "sglang: an expert missing",
            "validate location.json --experts 4",
            edited("location.json", _set("physical_to_logical_map", 4, [3, 2, 1, 1, 2, 3])),
        ),
        finding(
            "sglang: booleans",
            "validate location.json",
            edited("location.json", _set("physical_to_logical_map", 4, 0, True)),
        ),
        case(
            "sglang: a number for the rows",
            "validate location.json --for sglang",
            text("location.json", '{"physical_to_logical_map": 5}'),
        ),
        finding(
            "sglang: a suffix in capitals",
            "validate map.JSON",
            valid("location.json"),
            lambda here: (here / "location.json").rename(here / "map.JSON"),
        ),
        case("sglang: a .pt cut off", "validate location.pt --for sglang", cut("location.pt", -30)),
        case(
            "sglang: a .pt that runs a program",
            "validate location.pt --for sglang",
            zipped(
                "location.pt",
                _torch_entries(pickle.dumps({"physical_to_logical_map": _Exploit()}, protocol=2)),
            ),
        ),
        finding(
            "sglang: a .pt of fractions",
            "validate location.pt",
            torch_file(
                "location.pt", {"physical_to_logical_map": np.full((5, 6), 0.5, np.float32)}
            ),
        ),
        finding(
            "vllm-41141: counts that disagree",
            "validate record.jsonl",
            edited("record.jsonl", _set("num_redundant_experts", 1)),
        ),
        finding(
            "vllm-41141: an unknown version",
            "validate record.jsonl",
            edited("record.jsonl", _set("version", 2)),
        ),
        finding(
            "vllm-41141: the model's layer numbers",
            "validate record.jsonl",
            lambda here: _renumbered(here / "record.jsonl"),
        ),
        finding(
            "vllm-41141: two records",
            "validate record.jsonl",
            _changed("record.jsonl", lambda data: data * 2),
        ),
        case(
            "vllm-41141: cut off", "validate record.jsonl --for vllm-41141", cut("record.jsonl", 60)
        ),
        finding(
            "vllm-49572: ragged",
            "validate moe_rows.json --for vllm-49572",
            edited("moe_rows.json", _drop(0, 0)),
        ),
        finding(
            "vllm-49572: rows missing", "validate moe_rows.json --for vllm-49572 --layers 3-60"
        ),
        case(
            "vllm-49572: an empty list",
            "validate moe_rows.json --for vllm-49572",
            text("moe_rows.json", "[]"),
        ),
        finding(
            "vllm-53022: an id out of range",
            "validate decoder_rows.json --for vllm-53022 --experts 4",
            edited("decoder_rows.json", _set(0, 0, 4)),
        ),
        finding(
            "ascend: a device missing",
            "validate expert_map.json",
            edited("expert_map.json", _drop("layer_list", 1, "device_list", 1)),
        ),
        finding(
            "ascend: an expert twice on a device",
            "validate expert_map.json",
            edited(
                "expert_map.json",
                _set("layer_list", 0, "device_list", 0, "device_expert", [0, 0, 2]),
            ),
        ),
        finding(
            "ascend: no count of layers",
            "validate expert_map.json",
            edited("expert_map.json", _drop("moe_layer_count")),
        ),
        finding(
            "ascend: wrong counts",
            "validate expert_map.json",
            edited("expert_map.json", _set("moe_layer_count", 58)),
        ),
        case(
            "ascend: no list of layers",
            "validate expert_map.json --for ascend",
            text("expert_map.json", '{"moe_layer_count": 2}'),
        ),
        case(
            "a JSON file of another program",
            "validate map.json",
            edited("map.json", _set("format", "acme.placement")),
        ),
        case(
            "another program's file for SGLang's",
            "validate location.json --for sglang",
            edited("location.json", _set("format", "acme.placement")),
        ),
        case("maps of two models", "validate models.json --ranks 2", _maps_by_model),
        case(
            "a model that has no map",
            "convert models.json --ranks 2 --model-key C --to trtllm -o x.yaml",
            _maps_by_model,
        ),
        case("a model for a map of one", "validate map.json --model-key A"),
        case(
            "a model for a recording",
            "convert run.safetensors --model-key A --to trtllm -o dump",
        ),
        case(
            "vllm-hygon: an unknown version of the format",
            "validate models.json",
            text("models.json", '{"format": "vllm_offline_eplb_by_stage", "version": 3}'),
        ),
        case(
            "a format that is only read",
            "convert map.json --to vllm-hygon -o x.json",
        ),
        case(
            "neither a map nor a recording, validated",
            "validate notes.txt",
            text("notes.txt", "hello\n"),
        ),
        case(
            "neither a map nor a recording, converted",
            "convert notes.txt --to equipoise -o x.json",
            text("notes.txt", "hello\n"),
        ),
        case(
            "a tensor that says nothing",
            "validate load.pt --ranks 2",
            torch_file("load.pt", np.zeros((2, 2, 2, 2), np.int64)),
        ),
        case(
            "a table of ranks and experts that lost a slot",
            "validate table.pt",
            torch_file("table.pt", np.array([[[0, -1, 1], [2, 0, -1]]])),
        ),
        case("a map without its ranks", "convert map.yaml --to equipoise -o x.json"),
        case("other ranks than the map's", "convert map.json --ranks 3 --to ascend -o x.json"),
        case("absurd ranks", "convert map.yaml --ranks 6000000000000 --to equipoise -o x.json"),
        case(
            "one row for all layers, and no layers given",
            "convert one.json --format vllm-49572 --ranks 2 --to trtllm -o x.yaml",
            text("one.json", "[0, 1, 2, 3]"),
        ),
        finding(
            "ids beyond 64 bits",
            "validate one.json --for vllm-49572",
            text("one.json", "[0, 1, 99999999999999999999999]"),
        ),
        case(
            "a number of 5000 digits",
            "validate one.json --for vllm-49572",
            text("one.json", f"[0, {'9' * 5000}]"),
        ),
        case(
            "100,000 brackets",
            "validate one.json --for vllm-49572",
            text("one.json", "[" * 100_000),
        ),
    ),
    "Maps and recordings together": (
        case(
            "a map of other experts",
            "report run.safetensors --map big.json",
            valid("run.safetensors"),
            lambda here: _other_map(here / "big.json", 8, (3, 4)),
        ),
        case(
            "a map of other layers",
            "report run.safetensors --map far.json",
            valid("run.safetensors"),
            lambda here: _other_map(here / "far.json", 4, (5, 6)),
        ),
        case("a map of other ranks", "report run.safetensors --map map.json --ranks 3"),
        case("a map without ranks", "report run.safetensors --map map.yaml"),
        case("a missing map", "report run.safetensors --map missing.yaml --ranks 2"),
        case("a recording for the map", "report run.safetensors --map run.safetensors --ranks 2"),
        case(
            "maps of other experts",
            "diff map.json big.json",
            valid("map.json"),
            lambda here: _other_map(here / "big.json", 8, (3, 4)),
        ),
        case(
            "maps of other layers",
            "diff map.json far.json",
            valid("map.json"),
            lambda here: _other_map(here / "far.json", 4, (5, 6)),
        ),
        case(
            "maps of other slots",
            "diff map.json far.json",
            valid("map.json"),
            lambda here: _other_map(here / "far.json", 4, (3, 4)),
        ),
        case("a map and no second", "diff map.json"),
        case(
            "a renamed map onto the old one",
            "diff map.json map.yaml --ranks 2 --match --for equipoise -o map.json",
        ),
        case("a missing map in force", "repair missing.json run.safetensors"),
        case("a map in force of other ranks", "repair map.json run.safetensors --ranks 4"),
        case("a map in force whose ranks nobody says", "repair map.yaml run.safetensors"),
        case(
            "a map in force of other experts",
            "failover big.json run.safetensors --lost rank",
            valid("run.safetensors"),
            lambda here: _other_map(here / "big.json", 8, (3, 4)),
        ),
        case("a map in force without ranks", "failover map.yaml run.safetensors --lost rank"),
        case(
            "failover for other ranks than the map has",
            "failover map.json run.safetensors --ranks 3 --lost rank",
        ),
        case(
            "a decision on a missing recording",
            f"diff map.json map.json --trace missing.npz {_PRICES}",
        ),
        case(
            "a decision on other layers",
            f"diff map.json map.json --trace hotness.json {_PRICES}",
        ),
        case(
            "a decision on one step",
            f"diff one.json one.json --trace hotness.json {_PRICES}",
            lambda here: _other_map(here / "one.json", 4, (0, 1)),
        ),
        case(
            "a decision for an unknown dispatcher",
            f"diff map.json map.json --trace run.safetensors --dispatch best {_PRICES}",
        ),
        case(
            "a decision by an unknown cost",
            f"diff map.json map.json --trace run.safetensors {_PRICES}".replace(
                "h100-deepep-ep8", "h200"
            ),
        ),
        case(
            "loads that last for ever",
            f"diff map.json map.json --trace run.safetensors {_PRICES}".replace(
                "--dwell-steps 9", "--dwell-steps inf"
            ),
        ),
        case("nodes that do not divide the ranks", "diff map.json map.json --ranks-per-node 3"),
        case("an expert of negative size", "diff map.json map.json --expert-bytes -1"),
    ),
    "Capturing": (
        case(
            "no such model",
            "capture model --prompts prompts.txt -o run.safetensors",
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "a folder without a model",
            "capture model --prompts prompts.txt -o run.safetensors",
            folder("model"),
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "a damaged model",
            "capture model --prompts prompts.txt -o run.safetensors",
            folder("model"),
            text("model/config.json", "{"),
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "no such prompts",
            "capture model --prompts prompts.txt -o run.safetensors",
            folder("model"),
        ),
        case(
            "no prompt in the file",
            "capture model --prompts prompts.txt -o run.safetensors",
            folder("model"),
            text("prompts.txt", "\n\n"),
        ),
        case(
            "prompts that are not JSON lines throughout",
            "capture model --prompts prompts.jsonl -o run.safetensors",
            folder("model"),
            text("prompts.jsonl", '{"prompt": "Hello"}\nHello\n'),
        ),
        case(
            "prompts in UTF-16",
            "capture model --prompts prompts.txt -o run.safetensors",
            folder("model"),
            text("prompts.txt", "Hello\n", "utf-16"),
        ),
        case(
            "no batch",
            "capture model --prompts prompts.txt -o run.safetensors --batch-size 0",
            folder("model"),
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "iterations backwards",
            "capture model --prompts prompts.txt -o run.safetensors --iterations 9-3",
            folder("model"),
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "neither a model nor a server",
            "capture --prompts prompts.txt -o run.safetensors",
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "an address that is none",
            "capture --url localhost:8000 --prompts prompts.txt -o run.safetensors",
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "nobody at the address",
            "capture --url http://127.0.0.1:9 --prompts prompts.txt -o run.safetensors",
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "output into a missing folder",
            "capture model --prompts prompts.txt -o missing/run.safetensors",
            folder("model"),
            text("prompts.txt", "Hello\n"),
        ),
        case(
            "output onto the prompts",
            "capture model --prompts prompts.txt -o prompts.txt",
            folder("model"),
            text("prompts.txt", "Hello\n"),
        ),
    ),
    "Kernel tables": (
        case("no such folder", "calibrate tables -o p.json"),
        case("a folder without tables", "calibrate tables -o p.json", folder("tables")),
        case(
            "a table without its columns",
            "calibrate tables -o p.json",
            _table("gpu,time_us\nH100,3\n"),
        ),
        case(
            "a time that is no number",
            "calibrate tables -o p.json",
            _table(_EXCHANGE + "soon\n"),
        ),
        case(
            "a time of nothing",
            "calibrate tables -o p.json",
            _table(_EXCHANGE + "0\n"),
        ),
    ),
    "Timed runs": (
        case("without the ranks", "calibrate run -o p.json", _timed("seconds\n1\n")),
        case(
            "a run without its recording",
            "calibrate run -o p.json --ranks 2",
            _timed("seconds\n1\n"),
        ),
        case(
            "ranks for a table",
            "calibrate tables -o p.json --ranks 2",
            _table(_EXCHANGE + "0\n"),
        ),
        case(
            "two folders of tables",
            "calibrate tables tables -o p.json",
            _table(_EXCHANGE + "0\n"),
        ),
        case(
            "a rank cost that is another file",
            "forecast run.safetensors --ranks 2 --rank-cost mine.json",
            text("mine.json", "{}"),
        ),
    ),
    "Launches": (
        case("neither a file nor a command", "doctor launch.sh"),
        case("a command that starts no engine", "doctor 'ls -la'"),
        case("a quote that is never closed", 'doctor "vllm serve \'m"'),
        case("a release that is none", "doctor 'vllm serve m' --engine-version newest"),
        case("no devices at all", "doctor 'vllm serve m' --devices 0"),
        case("a link of no bytes", "doctor 'vllm serve m' --link-bytes-per-second 0"),
        case(
            "a model that is none",
            "doctor 'vllm serve m' --model config.json",
            text("config.json", "{}"),
        ),
        case("a script that is empty", "doctor launch.sh", text("launch.sh", "")),
        case("a script in Latin-1", "doctor launch.sh", text("launch.sh", "# caf\xe9", "latin-1")),
        case(
            "a file too long for a launch",
            "doctor launch.sh",
            text("launch.sh", "vllm serve m " + "x" * (1 << 18)),
        ),
        case("a map in place of options", "doctor map.yaml"),
        case("options of no engine", "doctor options.yaml", text("options.yaml", "threads: 4\n")),
        case("options in a list", "doctor options.yaml", text("options.yaml", "- tp-size\n")),
        case(
            "options with an anchor",
            "doctor options.yaml",
            text("options.yaml", "tp-size: &a 8\nep-size: *a\n"),
        ),
        case(
            "options that fit two engines",
            "doctor options.yaml",
            text("options.yaml", "config: x\n"),
        ),
        case(
            "services that start no engine",
            "doctor compose.yaml",
            text("compose.yaml", "services: {web: {image: nginx}}\n"),
        ),
    ),
    "Comparing, drawing, watching and learning": (
        case("a comparison of nothing", "compare"),
        case("a comparison without a recording", "compare map.json"),
        case("a comparison on a map", "compare map.json map.json"),
        case("a recording among the maps", "compare run.safetensors map.json"),
        case("a comparison with a missing map", "compare missing.json run.safetensors"),
        case(
            "a comparison by an unknown dispatcher",
            "compare map.json run.safetensors --dispatch fair",
        ),
        case(
            "a comparison of maps of other experts",
            "compare big.json run.safetensors",
            valid("run.safetensors"),
            lambda here: _other_map(here / "big.json", 8, (3, 4)),
        ),
        case("a compared page onto a map", "compare map.json run.safetensors --html map.json"),
        case("a figure that is no picture", "report run.safetensors --ranks 2 --figure heat-0.txt"),
        case("a figure that the page lacks", "report run.safetensors --ranks 2 --figure moon.svg"),
        case(
            "a figure twice",
            "report run.safetensors --ranks 2 --figure layers.svg --figure layers.svg",
        ),
        case(
            "a figure into a missing folder",
            "report run.safetensors --ranks 2 --figure missing/layers.svg",
        ),
        case("a table of the engine by node", "report run.safetensors --engine-table node"),
        case("a table of the engine without ranks", "report table.csv --engine-table rank"),
        case(
            "a table of the engine as JSON",
            "report run.safetensors --ranks 2 --engine-table rank --json",
        ),
        case("a lab without its folder", "lab"),
        case("a lab onto a file", "lab -o notes.txt", text("notes.txt", "mine")),
        case(
            "a lab onto a folder of others",
            "lab -o mine",
            folder("mine"),
            text("mine/notes.txt", ""),
        ),
        case("a lab on standard output", "lab -o -"),
        case("a dashboard for Grafana without its folder", "grafana"),
        case("a dashboard for Grafana in a missing folder", "grafana -o missing/monitoring"),
        case("a dashboard for Grafana onto a file", "grafana -o notes", text("notes", "mine")),
        case("a dashboard of a missing recording", "dashboard missing.json"),
        case("a dashboard of a map", "dashboard map.json"),
        case("a dashboard at no port", "dashboard --port 65536"),
        case("a dashboard that reads no recording", "dashboard --phase decode"),
        case("a dashboard of metrics at no address", "dashboard --metrics ftp://127.0.0.1/metrics"),
        case("nothing to watch", "monitor"),
        case("a missing file to watch", "monitor missing.jsonl"),
        case("a map to watch", "monitor map.json --looks 1"),
        case("files to watch, several", "monitor table.csv table.csv"),
        case("an address to watch with ranks", "monitor 127.0.0.1:9400 --ranks 2"),
        case("looks without a pause", "monitor table.csv --interval 0"),
        case("no look at all", "monitor table.csv --looks 0"),
        case("a request for figures at no address", "monitor table.csv --ask ftp://localhost"),
        case("a bridge from nothing", "bridge --for vllm"),
        case("a bridge without an engine", "bridge stats.jsonl"),
        case("a bridge from an unknown engine", "bridge stats.jsonl --for tgi"),
        case("a bridge from an engine that is not understood", "bridge stats.jsonl --for trtllm"),
        case("a bridge from a missing file", "bridge missing.log --for sglang"),
        case(
            "a bridge from no log of the engine",
            "bridge notes.txt --for sglang --once",
            text("notes.txt", "nothing of an engine"),
        ),
        case("a bridge at no port", "bridge stats.jsonl --for vllm --port 0"),
    ),
}


# The page -----------------------------------------------------------------------------------------

_INTRODUCTION = """\
<!-- Written by `python -m tests.cli.bad_input`; do not edit. -->
# Bad input

What is typed after `equipoise`, in a folder with the file described, and what it answers. Exit
status is 2, nothing is written, and an output that exists keeps its content. For `validate` of a
file that can be read it is 1, and the first finding is shown. A test runs every row; another feeds
randomly damaged files of every format to the commands.
"""


def page() -> str:
    """The documentation of the catalogue."""
    parts = [_INTRODUCTION]
    for title, cases in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| mistake | command | answer |\n|---|---|---|\n")
        for mistake in cases:
            with TemporaryDirectory() as here, chdir(here):
                mistake.prepare(Path(here))
                parts.append(f"{mistake.row(mistake.run())}\n")
    return "".join(parts)


def _cell(words: str) -> str:
    """Words as they are, in a table of Markdown."""
    return re.sub(r"([\\`*_<>\[\]|~])", r"\\\1", words)


def _code(words: str) -> str:
    return f"`{words}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
