"""Small files that ask for much: made here, read by the command in a process of its own.

The process may take one gibibyte of address space, so a reader that believes such a file ends
with an error of its own words, a traceback or a signal, and a test sees which.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import equipoise as eq


def _long_number(path: Path) -> Path:
    path /= "digits.json"
    path.write_text('{"a": ' + "1" * 4301 + "}")
    return path


def _nested(path: Path) -> Path:
    path /= "nested.json"
    path.write_text('{"4": ' + "[" * 65_530)
    return path


def _nested_history(path: Path) -> Path:
    path /= "history.json"
    path.write_text('{"load_history": [' + "[" * 1_000_000)
    return path


def _long_key_over_many(path: Path) -> Path:
    """Whoever joins a path of keys copies the long one for each of the short ones."""
    path /= "keys.json"
    short = ",".join(f'"{i}":1' for i in range(100_000))
    path.write_text('{"load_history": [], "' + "k" * 1_000_000 + '": {' + short + "}}")
    return path


def _text_in_history(path: Path) -> Path:
    path /= "text.json"
    row = ["A" * 200_000] + ["b"] * 9000
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": [row]}]}))
    return path


def _text_in_counts(path: Path) -> Path:
    path /= "text.json"
    path.write_text(json.dumps({"logical_count": ["A" * 200_000] + ["b"] * 9000}))
    return path


def _long_label(path: Path) -> Path:
    path /= "label.csv"
    rows = "".join(f"{step},0,{step % 4},1,b\n" for step in range(1, 15_000))
    path.write_text(f"step,layer,expert,tokens,domain\n0,0,0,1,{'x' * 100_000}\n{rows}")
    return path


def _long_label_in_native(path: Path) -> Path:
    path /= "label.safetensors"
    labels = np.array(["a", "b"] * 7500)
    trace = eq.Trace(counts=np.ones((15_000, 1, 4), np.int64), labels={"domain": labels})
    eq.write_trace(trace, path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["trace"])
    inner["labels"]["domain"][1] = "y" * 100_000
    header["__metadata__"]["trace"] = json.dumps(inner)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    return path


def _long_domain(path: Path) -> Path:
    path /= "domain.npz"
    counts = np.ones((2, 8000, 1, 4), np.uint8)
    np.savez_compressed(path, counts=counts, domains=np.array(["x" * 100_000, "b"]))
    return path


def _sparse_table(path: Path) -> Path:
    path /= "sparse.json"
    corner = {"layer": 0, "expert": 65_535, "tokens": 1, "source_rank": 3000}
    path.write_text(json.dumps([{"layer": 0, "expert": 0, "tokens": 1}, corner]))
    return path


def _packed_zeros(path: Path) -> Path:
    """1.1 GiB of zeros in a few megabytes."""
    path /= "zeros.npz"
    header = io.BytesIO()
    shape = (272, 1024, 4096)
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("counts.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(272):
            file.write(bytes(1024 * 4096))
    return path


def _many_entries(path: Path) -> Path:
    """A directory of 60,000 empty arrays."""
    path /= "many.npz"
    zeros = [0] * 6
    directory = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *zeros[:4], 0, 0, 0, 10, *zeros[:4], 0, 0)
        + b"a%05d.npy" % i
        for i in range(60_000)
    )
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, *zeros[:4], 0, 0, 0, 10, 0) + b"a00000.npy"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, len(directory), len(head), 0)
    path.write_bytes(head + directory + end)
    return path


def _repeated_records(path: Path) -> Path:
    """One record with a table of choices, five thousand times by reference."""
    import torch

    path /= "records.pt"
    ids = torch.zeros(1, 100_000, 8, dtype=torch.int32)
    record = {"rank": 0, "forward_mode": 1, "forward_pass_id": 0, "topk_ids_of_layer": ids}
    slots = torch.zeros(1, 1, dtype=torch.int64)
    torch.save({"records": [record] * 5000, "last_physical_to_logical_map": slots}, path)
    return path


def _storage(numbers: int) -> bytes:
    """A storage in torch's stream format."""
    stream = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(value, stream, 2)
    described = (
        b"(X\x07\x00\x00\x00storagectorch\nLongStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    stream.write(b"\x80\x02" + described + b"J" + struct.pack("<i", numbers) + b"NtQ.")
    pickle.dump(["0"], stream, 2)
    stream.write(struct.pack("<q", numbers) + bytes(8 * numbers))
    return stream.getvalue()


def _rebuilt_storage(path: Path) -> Path:
    """A folder of one pickle that loads the same storage a thousand times."""
    path /= "dump"
    path.mkdir()
    data = _storage(500_000)
    load = b"ctorch.storage\n_load_from_bytes\nq\x00"
    first = load + b"B" + struct.pack("<I", len(data)) + data + b"q\x01\x85R"
    again = b"h\x00h\x01\x85R" * 1000
    (path / "rank_0.pkl").write_bytes(b"\x80\x02](" + first + again + b"e.")
    return path


def _repeated_vectors(path: Path) -> Path:
    """A folder of one pickle in which all keys share one vector."""
    path /= "dump"
    path.mkdir()
    import torch

    vector = torch.ones(500_000, dtype=torch.int64)
    (path / "rank_0.pkl").write_bytes(pickle.dumps({(i, 0): vector for i in range(2000)}))
    return path


BOMBS: dict[str, tuple[Callable[[Path], Path], str, list[str]]] = {
    "a number of 4,301 digits": (_long_number, "neither a map nor a recording", []),
    "64 KiB of brackets": (_nested, "nested too deeply", []),
    "a load history of brackets": (_nested_history, "nested too deeply", []),
    "a long key over many short ones": (_long_key_over_many, "No step was found", []),
    "text among a load history": (_text_in_history, "something other than numbers", []),
    "text among counts": (_text_in_counts, "not a table of numbers", []),
    "a long label in a table": (_long_label, "A label has 100000 characters", []),
    "a long label in our own file": (_long_label_in_native, "A label has 100000 characters", []),
    "a long domain": (_long_domain, "A label has 100000 characters", []),
    "a sparse table": (_sparse_table, "would take 1.5 GiB", []),
    "packed zeros": (_packed_zeros, "unpacks from", []),
    "60,000 entries": (_many_entries, "neither a map nor a recording", []),
    "one record 5,000 times": (_repeated_records, "would take", []),
    "one storage 1,000 times": (_rebuilt_storage, "holds a list", ["--allow-pickle"]),
    "one vector 2,000 times": (_repeated_vectors, "again and again", ["--allow-pickle"]),
}
"""What it is: how it is made, what is said of it, and the options it is read with."""
