from __future__ import annotations

import pytest

from equipoise.engines.formats import LaunchOptions
from equipoise.engines.sglang.launch import ALL_TO_ALL, launch
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

REDUNDANT = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)
PLAIN = Placement([[2, 1, 0, 3]], num_ranks=2, num_experts=4)


def command(redundant: int, a2a: str, dispatch: str) -> tuple[str, ...]:
    return (
        *("--ep-size", "2", "--ep-num-redundant-experts", str(redundant)),
        *("--moe-a2a-backend", a2a, "--ep-dispatch-algorithm", dispatch),
        *("--init-expert-location", "map.json"),
    )


@pytest.mark.parametrize(
    ("version", "placement", "a2a", "asked", "got"),
    [
        ("0.5.23", REDUNDANT, "none", None, "dynamic"),
        ("0.5.23", REDUNDANT, "none", "dynamic", "dynamic"),
        ("0.5.23", PLAIN, "none", None, "dynamic"),
        ("0.5.23", REDUNDANT, "deepep", None, "static"),
        ("0.5.23", REDUNDANT, "deepep", "dynamic", "dynamic"),
        ("0.5.23", REDUNDANT, "deepep", "lp", "lp"),
        ("0.5.17", REDUNDANT, "none", None, "dynamic"),
        ("0.5.6", REDUNDANT, "deepep", None, "static"),
        ("0.5.16", PLAIN, "none", None, "static"),
        ("0.5.16", PLAIN, "none", "dynamic", "dynamic"),
        ("0.5.16", REDUNDANT, "mooncake", None, "static"),
        ("0.5.16", REDUNDANT, "deepep", "lp", "lp"),
    ],
)
def test_flags(version: str, placement: Placement, a2a: str, asked: str | None, got: str) -> None:
    made = launch(
        placement, "map.json", LaunchOptions(version=version, a2a_backend=a2a, dispatch=asked)
    )
    assert made.command == command(placement.num_redundant, a2a, got)
    assert (made.environment, made.files) == ((), ())


def test_defaults() -> None:
    made = launch(REDUNDANT, "map.json")
    assert made.version == "0.5.23"
    assert made.command == command(1, "none", "dynamic")


@pytest.mark.parametrize("dispatch", ["static", "lp"])
def test_dispatch_that_differs_between_ranks_needs_a_backend(dispatch: str) -> None:
    with pytest.raises(EquipoiseError, match=f"0.5.23 refuses dispatch {dispatch} without"):
        launch(REDUNDANT, "map.json", LaunchOptions(dispatch=dispatch))


@pytest.mark.parametrize("dispatch", [None, "static", "dynamic"])
def test_older_releases_corrupt_copies_without_a_backend(dispatch: str | None) -> None:
    with pytest.raises(EquipoiseError, match=r"0\.5\.16 gives wrong text.*or use 0\.5\.17"):
        launch(REDUNDANT, "map.json", LaunchOptions(version="0.5.16", dispatch=dispatch))


def test_older_releases_have_no_lp_without_a_backend() -> None:
    with pytest.raises(EquipoiseError, match="lp needs an all-to-all backend"):
        launch(PLAIN, "map.json", LaunchOptions(version="0.5.16", dispatch="lp"))


@pytest.mark.parametrize("dispatch", ["fake", "Static", ""])
def test_dispatch_that_is_not_for_serving_is_refused(dispatch: str) -> None:
    with pytest.raises(EquipoiseError, match=r"Unknown dispatch .* static, dynamic, lp"):
        launch(REDUNDANT, "map.json", LaunchOptions(a2a_backend="deepep", dispatch=dispatch))


@pytest.mark.parametrize("name", ["map.JSON", "map", "map.yaml", "map.json.gz"])
def test_names_taken_for_inline_json_are_refused(name: str) -> None:
    with pytest.raises(EquipoiseError, match="as inline JSON"):
        launch(REDUNDANT, name)


def test_a_pt_map_is_accepted() -> None:
    assert launch(REDUNDANT, "map.pt").command[-1] == "map.pt"


def has_note(text: str, placement: Placement = REDUNDANT, **options: str) -> bool:
    return any(
        text in note for note in launch(placement, "map.json", LaunchOptions(**options)).notes
    )


def test_the_collapse_of_copies_is_noted_where_it_happens() -> None:
    assert has_note("dynamic may leave copies unused", a2a_backend="deepep", dispatch="dynamic")
    assert has_note("lp may leave copies unused", a2a_backend="deepep", dispatch="lp")
    assert has_note("uses only the nearest copies", a2a_backend="deepep")
    assert not has_note("may leave copies unused", a2a_backend="deepep")
    assert not has_note("uses only the nearest copies")
    assert not has_note("uses only the nearest copies", PLAIN, a2a_backend="deepep")


@pytest.mark.parametrize(
    ("version", "backend", "message"),
    [
        ("0.5.23", "depep", "no all-to-all backend 'depep'; choose one of none, deepep, mooncake"),
        ("0.6.0", "depep", "no all-to-all backend 'depep'"),
        ("0.5.8", "nixl", r"0\.5\.8 has no all-to-all backend nixl, which came with 0\.5\.10"),
        ("0.5.18.post1", "deepep_v2", r"came with 0\.5\.19"),
    ],
)
def test_an_all_to_all_backend_that_a_release_lacks(
    version: str, backend: str, message: str
) -> None:
    with pytest.raises(EquipoiseError, match=message):
        launch(REDUNDANT, "map.json", LaunchOptions(version=version, a2a_backend=backend))


@pytest.mark.parametrize("backend", ALL_TO_ALL)
def test_all_to_all_backends_of_the_newest_release(backend: str) -> None:
    assert backend in launch(REDUNDANT, "map.json", LaunchOptions(a2a_backend=backend)).command


def test_lp_came_later() -> None:
    options = LaunchOptions(version="0.5.13", a2a_backend="deepep", dispatch="lp")
    with pytest.raises(EquipoiseError, match=r"0\.5\.13 has no dispatch lp, .* 0\.5\.14"):
        launch(REDUNDANT, "map.json", options)


def test_the_flag_of_attention_data_parallelism_is_the_versions() -> None:
    assert has_note("is switched on by --attn-dp-size")
    assert has_note("--enable-dp-attention with --dp-size", version="0.5.21")


def test_the_report_flag_is_the_versions() -> None:
    assert has_note("--expert-balancedness-report-mode server_log")
    assert has_note("--expert-balancedness-report-mode server_log", version="0.5.18")
    assert has_note("--enable-expert-distribution-metrics", version="0.5.17")


def test_other_notes() -> None:
    assert has_note("Qwen3-MoE")
    assert not has_note("Qwen3-MoE", a2a_backend="deepep")
    assert has_note("--tp-size 2", a2a_backend="deepep")
    assert has_note("SM90", a2a_backend="deepep", dispatch="lp")
    assert has_note("second copy", Placement([[0, 0, 1, 2]], num_ranks=2, num_experts=3))
