from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from equipoise.engines._shared import torch_archive
from equipoise.errors import EquipoiseError, FormatError

torch = pytest.importorskip("torch")

# Examples may share the file: each writes it again.
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(ONE_FILE, max_examples=300)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dump.pt"


# Files of the real torch -------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "largest"), [("bfloat16", 255), ("float16", 2047)])
def test_half_precision_is_read_where_whole_numbers_are_exact(
    file: Path, dtype: str, largest: int
) -> None:
    kind = getattr(torch, dtype)
    torch.save(torch.arange(largest + 1).to(kind), file)
    array = torch_archive.load(file)
    assert array.dtype == torch_archive.outline(file).dtype == np.float32
    np.testing.assert_array_equal(array, np.arange(largest + 1))
    torch.save(torch.tensor([-1.5, float("nan")]).to(kind), file)
    assert torch_archive.load(file)[0] == -1.5
    torch.save(torch.tensor([1, largest + 1]).to(kind), file)
    with pytest.raises(FormatError, match=f"it holds {largest + 1} in {dtype}, where whole"):
        torch_archive.load(file)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64"]
)
def test_reads_the_types_torch_writes(file: Path, dtype: str) -> None:
    tensor = torch.arange(-3, 9).reshape(3, 4).to(getattr(torch, dtype))
    torch.save({"t": tensor}, file)
    array = torch_archive.load(file)["t"]
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, tensor.numpy())


def test_reads_views_with_strides_and_offsets(file: Path) -> None:
    base = torch.arange(60, dtype=torch.int32).reshape(3, 4, 5)
    views = [base, base.permute(2, 0, 1)[1:], base[:, ::2, 3], base[1, 2, 3], base[:0]]
    torch.save(views, file)
    for array, view in zip(torch_archive.load(file), views, strict=True):
        assert array.shape == tuple(view.shape)
        np.testing.assert_array_equal(array, view.numpy())


def test_reads_containers_and_scalars(file: Path) -> None:
    root = OrderedDict(a=[1, -2, 1 << 62], b=(True, None, 2.5), c={"é": "x", 3: []})
    torch.save(root, file)
    assert torch_archive.load(file) == dict(root)


def test_reads_tensors_saved_from_an_accelerator(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(torch.arange(6), file)
    with zipfile.ZipFile(file) as archive:
        assert b"cuda:0" in archive.read("dump/data.pkl")
    np.testing.assert_array_equal(torch_archive.load(file), np.arange(6))


def test_arrays_are_read_only(file: Path) -> None:
    torch.save(torch.zeros(3), file)
    with pytest.raises(ValueError, match="read-only"):
        torch_archive.load(file)[0] = 1


def test_outline_has_shapes_but_no_numbers(file: Path) -> None:
    torch.save({"t": torch.ones(2, 3, dtype=torch.int32), "n": 5}, file)
    outline = torch_archive.outline(file)
    assert outline["n"] == 5
    assert outline["t"].shape == (2, 3)
    assert outline["t"].dtype == np.int32
    assert not outline["t"].any()


@pytest.mark.parametrize(
    ("root", "complaint"),
    [
        (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.zeros(2, dtype=torch.uint16), "_rebuild_tensor_v3"),
        (torch.nn.Parameter(torch.zeros(2)), "_rebuild_parameter"),
        ({1, 2}, "__builtin__.set"),
        (np.zeros(2), "numpy"),
        (torch.zeros(1).expand(1000), r"shape \(1000,\) lies in a storage of only 1"),
    ],
)
def test_refuses_what_it_does_not_read(file: Path, root: Any, complaint: str) -> None:
    torch.save(root, file)
    with pytest.raises(FormatError, match=f"dump.pt.*{complaint}"):
        torch_archive.load(file)


def test_refuses_the_older_format_with_advice(file: Path) -> None:
    torch.save(torch.zeros(2), file, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"saved again.*torch.save\(torch.load"):
        torch_archive.load(file)


# Writing -----------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=5)
ARRAYS = hnp.arrays(
    st.sampled_from([np.int64, np.int32, np.float32]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.integers(-100, 100),
)
ROOTS = st.recursive(
    SCALARS | st.floats(allow_nan=False) | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, np.ndarray):
        array = np.asarray(theirs)
        return array.dtype == ours.dtype and np.array_equal(array, ours)
    return type(ours) is type(theirs) and bool(ours == theirs)


@ONE_FILE
@given(root=ROOTS)
def test_torch_and_we_read_back_what_we_write(file: Path, root: Any) -> None:
    torch_archive.save(file, root)
    assert same(root, torch_archive.load(file))
    assert same(root, torch.load(file, weights_only=True))


@ONE_FILE
@given(array=ARRAYS.filter(lambda a: a.ndim == 3))
def test_we_read_every_view_as_torch_does(file: Path, array: np.ndarray) -> None:
    torch.save([torch.from_numpy(array).permute(1, 2, 0)[::2, 1:]], file)
    assert same([array.transpose(1, 2, 0)[::2, 1:]], torch_archive.load(file))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(12, dtype=np.float32)[::3],
    ],
)
def test_writes_any_memory_layout(file: Path, array: np.ndarray) -> None:
    torch_archive.save(file, {"a": array})
    np.testing.assert_array_equal(torch.load(file, weights_only=True)["a"].numpy(), array)


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch_archive.save(tmp_path / name, {"x": np.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize(
    ("root", "what"),
    [
        ({"x": np.zeros(2)}, "an array of float64"),
        ([np.float64(2)], "float64"),
        ([np.int64(2)], "int64"),
        ({1, 2}, "set"),
    ],
)
def test_writes_nothing_it_does_not_know(file: Path, root: Any, what: str) -> None:
    file.write_bytes(b"before")
    with pytest.raises(EquipoiseError, match=f"Cannot write {what} to a torch archive"):
        torch_archive.save(file, root)
    assert file.read_bytes() == b"before"
    assert list(file.parent.iterdir()) == [file]


# Hostile and damaged files -----------------------------------------------------------------------


def archive(
    file: Path,
    program: bytes,
    *,
    storages: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    **entries: bytes,
) -> None:
    with zipfile.ZipFile(file, "w", compression) as out:
        out.writestr("x/data.pkl", program)
        out.writestr("x/version", b"3\n")
        for name, data in (storages or {}).items():
            out.writestr(f"x/data/{name}", data)
        for name, data in entries.items():
            out.writestr(f"x/{name}", data)


def tensor_program(
    *, numel: int = 4, offset: int = 0, size: Any = (4,), stride: Any = (1,), key: Any = "0"
) -> bytes:
    """The pickle of one int32 tensor, with any numbers in it."""

    def push(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + push("storage") + b"ctorch\nIntStorage\n" + push(key) + push("cpu")
    arguments = push(offset) + push(size) + push(stride) + push(False)
    hooks = b"ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return b"\x80\x02" + rebuild + storage + push(numel) + b"tQ" + arguments + hooks + b"tR."


FOUR = {"0": np.arange(4, dtype="<i4").tobytes()}


def test_the_hand_made_archive_is_sound(file: Path) -> None:
    archive(file, tensor_program(), storages=FOUR)
    np.testing.assert_array_equal(torch_archive.load(file), [0, 1, 2, 3])
    np.testing.assert_array_equal(torch.load(file, weights_only=True).numpy(), [0, 1, 2, 3])


def test_reads_big_endian_storages(file: Path) -> None:
    big = {"0": np.arange(4, dtype=">i4").tobytes()}
    archive(file, tensor_program(), storages=big, byteorder=b"big")
    array = torch_archive.load(file)
    assert array.dtype == np.dtype("<i4")
    np.testing.assert_array_equal(array, [0, 1, 2, 3])


def test_refuses_an_unknown_byte_order(file: Path) -> None:
    archive(file, tensor_program(), storages=FOUR, byteorder=b"middle")
    with pytest.raises(FormatError, match="byte order is b'middle'"):
        torch_archive.load(file)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (tensor_program(numel=1 << 40), "has 16 bytes, not 1099511627776 numbers"),
        (tensor_program(numel=3), "has 16 bytes, not 3 numbers"),
        (tensor_program(size=(1 << 40,), stride=(0,)), "storage of only 4"),
        (tensor_program(offset=2), "torch archive"),
        (tensor_program(offset=-1), "torch archive"),
        (tensor_program(stride=(2,)), "torch archive"),
        (tensor_program(stride=(-1,)), "torch archive"),
        (tensor_program(size=(-4,)), "torch archive"),
        (tensor_program(size=(1,) * 100, stride=(1,) * 100), "torch archive"),
        (tensor_program(key="1"), "data/1 is missing"),
        (tensor_program(key="../../etc/passwd"), "data/../../etc/passwd is missing"),
        (tensor_program(key=0), "not a tensor storage"),
    ],
)
def test_refuses_tensors_outside_their_storage(file: Path, program: bytes, complaint: str) -> None:
    archive(file, program, storages=FOUR)
    for read in (torch_archive.load, torch_archive.outline):
        with pytest.raises(FormatError, match=complaint):
            read(file)


class Evil:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
def test_runs_no_foreign_function(file: Path, protocol: int) -> None:
    trace = file.with_name("was-here")
    archive(file, pickle.dumps([Evil(os.mkdir, str(trace))], protocol))
    with pytest.raises(FormatError, match=r"mkdir|instruction"):
        torch_archive.load(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "instruction BUILD"),
        (b"\x80\x02ctorch\nIntStorage\n)R.", "torch archive"),
        (b"\x80\x02(icollections\nOrderedDict\n.", "instruction INST"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f" + b".", "torch archive|instruction"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "torch archive|instruction"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "torch archive"),
        (b"\x80\x02", "torch archive"),
        (b"", "torch archive"),
        (b"\x80\x02t.", "torch archive"),
        (b"(" * 100_000 + b"t" * 100_000 + b".", "nests tuples more than 100 deep"),
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.", "nests tuples"),  # its hash would recurse
    ],
)
def test_refuses_hostile_programs(file: Path, program: bytes, complaint: str) -> None:
    archive(file, program, storages=FOUR)
    with pytest.raises(FormatError, match=complaint):
        torch_archive.load(file)


def test_refuses_compressed_entries(file: Path) -> None:
    zeros = {"0": bytes(1 << 20)}
    archive(file, tensor_program(), storages=zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="compressed"):
        torch_archive.load(file)


def test_refuses_entries_larger_than_the_file(file: Path) -> None:
    program = tensor_program(numel=1 << 20, size=(1 << 20,))
    archive(file, program, storages=FOUR)
    entry = (16).to_bytes(4, "little") * 2  # compressed and real size
    claim = (1 << 22).to_bytes(4, "little") * 2
    data = file.read_bytes()
    assert entry in data
    file.write_bytes(data.replace(entry, claim))
    with pytest.raises(FormatError, match="claim more bytes"):
        torch_archive.load(file)


def test_refuses_a_zip_of_something_else(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("word/document.xml", "<a/>")
    with pytest.raises(FormatError, match=r"no data\.pkl"):
        torch_archive.load(file)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"PK\x03\x04" + bytes(100)])
def test_refuses_damaged_zips(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"dump\.pt"):
        torch_archive.load(file)


def test_names_a_missing_file(file: Path) -> None:
    with pytest.raises(FormatError, match=r"dump.pt: No such file"):
        torch_archive.load(file)


@MANY
@given(data=st.data())
def test_damage_never_escapes_as_another_error(file: Path, data: st.DataObject) -> None:
    torch_archive.save(file, {"x": np.arange(4), "y": [1, "two", None]})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    file.write_bytes(bytes(content[:cut]))
    for read in (torch_archive.load, torch_archive.outline):
        with suppress(FormatError):
            read(file)


@MANY
@given(damage=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_pickle_never_escapes_as_another_error(
    file: Path, damage: list[tuple[int, int]]
) -> None:
    program = bytearray(tensor_program())
    for position, byte in damage:
        program[position % len(program)] = byte
    archive(file, bytes(program), storages=FOUR)
    with suppress(FormatError):
        torch_archive.load(file)
