import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.engines import map_io
from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.map_io import (
    check_map_path,
    detect_map,
    map_notes,
    placeholder_name,
    read_map,
    validate_map,
    write_map,
    write_maps,
)
from equipoise.engines.registry import map_format, map_formats
from equipoise.engines.trtllm import maps as trtllm_map
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

NAMES = [known.name for known in map_formats()]
WRITABLE = [known.name for known in map_formats() if known.write is not None]
LISTS = ("vllm-49572", "vllm-53022")
MODULES = ("maps", "hygon_maps", "tensor_maps", "findings", "map_slots", "map_layers")
HIDDEN_LAYERS = 8

PLACEMENT = Placement(
    [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], num_ranks=2, num_experts=4, layer_ids=[3, 4]
)
CONTEXT = MapContext(
    num_ranks=2, num_experts=4, layer_ids=(3, 4), num_hidden_layers=5, num_redundant=2
)


def deepseek_v3():
    rng = np.random.default_rng(7)
    layers = range(3, 61)
    rows = [np.concatenate([np.arange(256), rng.choice(224, 32, replace=False)]) for _ in layers]
    return Placement(rows, num_ranks=32, num_experts=256, layer_ids=layers)


def context_of(placement, hidden_layers=HIDDEN_LAYERS):
    return MapContext(
        num_ranks=placement.num_ranks,
        num_experts=placement.num_experts,
        layer_ids=placement.layer_ids,
        num_hidden_layers=hidden_layers,
        num_redundant=placement.num_redundant,
    )


def suffixes():
    return [(known.name, suffix) for known in map_formats() for suffix in known.suffixes]


@st.composite
def placements(draw):
    num_ranks, num_experts = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    num_slots = num_ranks * draw(st.integers(-(-num_experts // num_ranks), 9))
    layer_ids = sorted(draw(st.sets(st.integers(0, HIDDEN_LAYERS - 1), min_size=1, max_size=3)))
    extra = st.lists(
        st.integers(0, num_experts - 1),
        min_size=num_slots - num_experts,
        max_size=num_slots - num_experts,
    )
    rows = [
        draw(st.permutations([*range(num_experts), *draw(extra)])) for _ in range(len(layer_ids))
    ]
    return Placement(rows, num_ranks=num_ranks, num_experts=num_experts, layer_ids=layer_ids)


shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused_by_ascend(placement):
    return bool(placement.duplicates.any())


@pytest.mark.parametrize(("name", "suffix"), suffixes())
@shared_folder
@given(placement=placements())
def test_round_trip_through_every_format(tmp_path, name, suffix, placement):
    path = tmp_path / f"map{suffix}"
    context = context_of(placement)
    if name == "ascend" and refused_by_ascend(placement):
        with pytest.raises(FormatError, match="A7"):
            write_map(placement, path, format=name, context=context)
        return
    losses = write_map(placement, path, format=name, context=context)
    assert read_map(path, context, format=name) == placement
    if not losses:  # then the file alone says everything
        assert read_map(path, format=name) == placement


@pytest.mark.parametrize(("name", "suffix"), suffixes())
@shared_folder
@given(placement=placements())
def test_what_we_write_has_no_warning_but_of_copies_on_one_rank(tmp_path, name, suffix, placement):
    path, context = tmp_path / f"map{suffix}", context_of(placement)
    if name == "ascend" and refused_by_ascend(placement):
        return
    write_map(placement, path, format=name, context=context)
    found = validate_map(path, context, format=name)
    codes = {finding.code for finding in found if finding.severity is not Severity.NOTE}
    assert codes == ({"W1"} if placement.duplicates.any() else set())


@pytest.mark.parametrize("source", WRITABLE)
@pytest.mark.parametrize("target", WRITABLE)
def test_conversion_between_any_two_formats(tmp_path, source, target):
    first = tmp_path / f"first{map_format(source).suffixes[0]}"
    second = tmp_path / f"second{map_format(target).suffixes[-1]}"
    write_map(PLACEMENT, first, format=source, context=CONTEXT)
    losses = write_map(
        read_map(first, CONTEXT, format=source), second, format=target, context=CONTEXT
    )
    assert read_map(second, CONTEXT, format=target) == PLACEMENT
    assert losses or read_map(second, format=target) == PLACEMENT


@pytest.mark.parametrize("name", WRITABLE)
def test_a_full_size_map(tmp_path, name):
    placement = deepseek_v3()
    context = context_of(placement, hidden_layers=61)
    path = tmp_path / f"map{map_format(name).suffixes[0]}"
    write_map(placement, path, format=name, context=context)
    assert read_map(path, context, format=name) == placement
    errors = [f for f in validate_map(path, context, format=name) if f.severity is Severity.ERROR]
    assert errors == []


@pytest.mark.parametrize(("name", "suffix"), suffixes())
def test_detection_by_content(tmp_path, name, suffix):
    path = tmp_path / f"map{suffix}"
    write_map(PLACEMENT, path, format=name, context=CONTEXT)
    path = path.rename(tmp_path / "renamed")
    if name in LISTS:
        with pytest.raises(FormatError, match="vllm-49572 or vllm-53022"):
            detect_map(path)
    else:
        assert detect_map(path).name == name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", r"neither a map nor a recording \(a mapping of nothing\)\. The simplest map is"),
        (b'{"a": 1}', r"neither a map nor a recording \(a mapping of 'a'\)\. The simplest map is"),
        (b"\xff\x00", r"neither a map nor a recording\. The simplest map is"),
        (b"PK\x03\x04", "it is a zip, but not one that torch"),
        (b"a: b", r"neither a map nor a recording\. The simplest map is"),
        (
            b'{"load_history": []}',
            r"is a recording \(adrs\), not a map; equipoise plan makes a map",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": [0, 1],\n[0', "is not JSON .line 2"),
        (b'{"format": "acme.placement", "rows": []}', "states the format 'acme.placement', which"),
    ],
)
def test_what_is_of_no_format(tmp_path, content, words):
    path = tmp_path / "map.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
        detect_map(path)
    for name in NAMES:
        with pytest.raises(FormatError):
            read_map(path, format=name)


@pytest.mark.parametrize("name", sorted(set(WRITABLE) - set(LISTS)))
def test_a_damaged_map_is_known_by_its_words(tmp_path, name):
    path = tmp_path / f"map{map_format(name).suffixes[0]}"
    write_map(PLACEMENT, path, format=name, context=CONTEXT)
    text = path.read_text()
    path.write_text(text[: len(text) * 2 // 3] + "{")
    assert detect_map(path).name == name
    with pytest.raises(FormatError, match="line"):
        read_map(path, CONTEXT)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(WRITABLE)))
def test_other_programs_own_formats_are_only_read(tmp_path, name):
    with pytest.raises(EquipoiseError, match=r"only read; choose one of equipoise, trtllm"):
        write_map(PLACEMENT, tmp_path / "map.json", format=name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(tmp_path):
    for function in (detect_map, read_map, validate_map):
        with pytest.raises(FormatError, match="does not exist"):
            function(tmp_path / "absent.json")
        with pytest.raises(FormatError, match="is a folder"):
            function(tmp_path)


def test_an_unknown_format_names_the_known(tmp_path):
    with pytest.raises(EquipoiseError, match=r"'tensorrt'.*trtllm"):
        map_format("tensorrt")


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("trtllm", "map.json"),
        ("trtllm", "map.YAML"),
        ("sglang", "map.JSON"),
        ("sglang", "map.PT"),
        ("sglang", "map"),
        ("ascend", "map.pt"),
        ("equipoise", "map.yaml"),
        ("vllm-41141", "map.yaml"),
        ("vllm-49572", "map.jsonl"),
    ],
)
def test_a_suffix_the_engine_would_not_read_is_refused(tmp_path, name, file):
    with pytest.raises(EquipoiseError, match="ends in exactly"):
        write_map(PLACEMENT, tmp_path / file, format=name, context=CONTEXT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"num_ranks": 3}, {"num_experts": 5}, {"layer_ids": (3, 5)}, {"num_redundant": 4}],
)
def test_a_deployment_that_contradicts_the_placement(tmp_path, change):
    with pytest.raises(EquipoiseError, match=next(iter(change))):
        write_map(
            PLACEMENT, tmp_path / "map.yaml", format="trtllm", context=replace(CONTEXT, **change)
        )


def test_a_placement_the_engine_refuses_leaves_the_old_file(tmp_path):
    path = tmp_path / "map.json"
    path.write_text("old")
    twice = Placement([[0, 0, 1, 2]], num_ranks=2, num_experts=3)
    with pytest.raises(FormatError, match=r"map\.json: not written: 1 error \(A7\)"):
        write_map(twice, path, format="ascend")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_does_not_say_what_was_meant_is_not_kept(tmp_path, monkeypatch):
    honest = map_format("trtllm")

    def write(placement, path, context):
        swapped = placement.slots[:, ::-1]
        honest.write(
            Placement(swapped, num_ranks=2, num_experts=4, layer_ids=placement.layer_ids),
            path,
            context,
        )

    monkeypatch.setattr(map_io, "map_format", lambda _name: replace(honest, write=write))
    with pytest.raises(EquipoiseError, match="read back is not the placement"):
        write_map(PLACEMENT, tmp_path / "map.yaml", format="trtllm")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(EquipoiseError, match="there is no folder"):
        write_map(PLACEMENT, tmp_path / "absent" / "map.yaml", format="trtllm")
    folder = tmp_path / "map.yaml"
    folder.mkdir()
    with pytest.raises(EquipoiseError, match="is a folder"):
        write_map(PLACEMENT, folder, format="trtllm")


def test_reading_reports_the_count_and_the_first_defect(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("num_slots: '2'\ninitial_global_assignments: {0: [0, 9]}\nx: 1\n")
    # The unknown key and the number in quotes leave no doubt about what is meant.
    with pytest.raises(FormatError, match=r"map\.yaml: 2 errors, the first \(T4\)"):
        read_map(path, MapContext(num_ranks=1, num_experts=2))
    codes = [f.code for f in validate_map(path, MapContext(num_ranks=1, num_experts=2))]
    assert codes == ["T1", "T2", "T4", "T4", "W2"]


def test_reading_asks_for_what_the_file_does_not_say(tmp_path):
    path = tmp_path / "map.yaml"
    write_map(PLACEMENT, path, format="trtllm")
    with pytest.raises(EquipoiseError, match=r"map\.yaml: .*give num_ranks"):
        read_map(path)
    assert read_map(path, MapContext(num_ranks=2)) == PLACEMENT


def test_paths_may_be_strings(tmp_path):
    path = str(tmp_path / "map.json")
    assert write_map(PLACEMENT, path, format="equipoise") == []
    assert read_map(path) == PLACEMENT
    assert validate_map(path) == []
    assert detect_map(path).name == "equipoise"


def test_notes_tell_what_is_beyond_the_placement(tmp_path):
    path = tmp_path / "map.yaml"
    trtllm_map.write(PLACEMENT, path, layer_updates_per_iter=3)
    (note,) = map_notes(path)
    assert "layer_updates_per_iter is 3" in note
    write_map(PLACEMENT, path, format="trtllm")
    assert map_notes(path, format="trtllm") == ()


def test_the_documentation_lists_every_format_and_every_rule():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "reference" / "formats" / "maps.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| ([NTSXAW]\d) \|", page, flags=re.MULTILINE))
    folder = root / "src" / "equipoise" / "engines"
    sources = [path for path in folder.glob("*/*.py") if path.stem in MODULES]
    used = {code for path in sources for code in re.findall(r'"([NTSXAW]\d)"', path.read_text())}
    assert documented == used
    assert all(f"`{name}`" in page for name in NAMES)


def test_writing_for_sglang_needs_the_decoder_layers(tmp_path):
    with pytest.raises(EquipoiseError, match="num_hidden_layers"):
        write_map(PLACEMENT, tmp_path / "map.json", format="sglang")


# Whatever stands in a file, only an EquipoiseError may come out.

KEYS = [
    *("format", "version", "num_ranks", "num_experts", "num_slots", "checksum", "provenance"),
    *("layers", "id", "slots", "moe_config", "load_balancer", "initial_global_assignments"),
    *("layer_updates_per_iter", "physical_to_logical_map", "logical_count", "record_type"),
    *("num_redundant_experts", "moe_layer_count", "layer_list", "layer_id", "device_count"),
    *("device_list", "device_id", "device_expert", "model_maps", "num_moe_layers", "0", "1", "-1"),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.sampled_from([10**12, -(10**30), 0.5, float("nan"), "equipoise.map", "x", 2**63]),
    st.just("eplb_initial_mapping"),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=20,
)


def damaged(document, draw):
    """The document with one value somewhere in it replaced or removed."""
    if isinstance(document, (list, dict)) and document and draw(st.integers(0, 5)):
        keys = range(len(document)) if isinstance(document, list) else list(document)
        key = draw(st.sampled_from(keys))
        if draw(st.integers(0, 7)) == 0:
            del document[key]
        else:
            document[key] = damaged(document[key], draw)
        return document
    return draw(VALUES)


CONTEXTS = [MapContext(), CONTEXT, MapContext(num_ranks=0, num_experts=0, layer_ids=(0, 99))]


def assert_only_our_errors(path, name):
    """And with the deployment known, a map is read exactly if no error puts it in doubt."""
    for context in CONTEXTS:
        try:
            findings = validate_map(path, context, format=name)
        except FormatError:
            continue
        certain = all(f.readable or f.severity is not Severity.ERROR for f in findings)
        try:
            read_map(path, context, format=name)
        except EquipoiseError as error:
            online = "holds no assignments" in str(error)
            assert not certain or online or context is not CONTEXT
        else:
            assert certain


@pytest.mark.parametrize("name", WRITABLE)
@shared_folder
@given(data=st.data())
def test_damaged_documents_raise_nothing_else(tmp_path, name, data):
    path = tmp_path / f"map{map_format(name).suffixes[0]}"
    if not path.exists():
        write_map(PLACEMENT, path, format=name, context=CONTEXT)
    load, dump = (yaml.safe_load, yaml.safe_dump) if name == "trtllm" else (json.loads, json.dumps)
    document = load(path.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        document = damaged(document, data.draw)
    broken = tmp_path / f"broken{path.suffix}"
    broken.write_text(dump(document))
    assert_only_our_errors(broken, name)


@pytest.mark.parametrize("name", sorted(set(WRITABLE) - {*LISTS, "trtllm"}))
@shared_folder
@given(stated=st.dictionaries(st.sampled_from(["format", "version"]), SCALARS, min_size=1))
def test_what_a_file_says_it_is_never_has_to_go(tmp_path, name, stated):
    path = tmp_path / "map.json"
    write_map(PLACEMENT, path, format=name, context=CONTEXT)
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    for chosen in (None, name):
        try:
            found = validate_map(path, CONTEXT, format=chosen)
        except FormatError as error:
            said = str(error)
        else:
            said = " ".join(finding.message + finding.remedy for finding in found)
        assert not re.search(r"[Rr]emove|[Dd]elete|[Dd]rop|without it", said)


@pytest.mark.parametrize("name", NAMES)
@shared_folder
@given(text=st.one_of(st.text(), st.binary(), VALUES.map(json.dumps)))
def test_any_content_raises_nothing_else(tmp_path, name, text):
    path = tmp_path / "any"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    map_format(name).matches(path)
    assert_only_our_errors(path, name)


def test_several_maps_are_written_or_none(tmp_path):
    good = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)
    draft = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3, layer_ids=(7,))
    folder = tmp_path / "maps"
    context = MapContext(num_hidden_layers=4)
    with pytest.raises(EquipoiseError, match=r"b\.json: .*layer 7"):
        write_maps(
            {folder / "a.json": good, folder / "b.json": draft}, format="sglang", context=context
        )
    assert not folder.exists()
    write_maps({folder / "a.json": good, folder / "b.json": good}, format="sglang", context=context)
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("known", [f for f in map_formats() if f.write], ids=lambda f: f.name)
def test_the_name_of_a_map_to_come_is_one_that_its_engine_takes(known):
    check_map_path(Path(placeholder_name(known.name)), known.name)


def test_an_engine_without_map_files_needs_no_ending():
    assert placeholder_name("vllm") == "MAP"
