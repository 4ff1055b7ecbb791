from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import equipoise.engines
from equipoise.engines.formats import Launcher, MapFormat, TraceFormat
from equipoise.engines.registry import (
    ENGINES,
    launcher,
    map_format,
    map_formats,
    trace_format,
    trace_formats,
)
from equipoise.errors import EquipoiseError

HERE = Path(equipoise.engines.__file__).parent


def test_every_entry_is_what_it_says():
    assert all(isinstance(known, MapFormat) for known in map_formats())
    assert all(isinstance(known, TraceFormat) for known in trace_formats())
    assert all(isinstance(launcher(engine), Launcher) for engine in ENGINES if engine.launch)


def test_names_are_unique():
    for formats in (map_formats(), trace_formats()):
        names = [known.name for known in formats]
        assert len(set(names)) == len(names)


def test_no_format_and_no_launch_is_forgotten():
    listed = {
        f"{engine.folder}/{module}.py"
        for engine in ENGINES
        for module in (*engine.maps, *engine.traces, *(["launch"] if engine.launch else []))
    }
    made = {
        path.relative_to(HERE).as_posix()
        for path in HERE.glob("[!_]*/*.py")
        if any(
            line.startswith(("FORMAT = ", "FORMATS = ", "LAUNCHER = "))
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    }
    assert listed == made


@pytest.mark.parametrize("find", [map_format, trace_format])
def test_an_unknown_name_is_refused_with_the_known_ones(find):
    assert find("equipoise").name == "equipoise"
    with pytest.raises(EquipoiseError, match=r"'tensorrt'.* equipoise, "):
        find("tensorrt")


def test_maps_are_read_without_the_readers_of_recordings():
    code = (
        "import sys; from equipoise.engines.registry import map_formats; map_formats();"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "equipoise.engines.trtllm.maps" in loaded
    assert not loaded & {"equipoise.engines.trtllm.traces", "ijson", "msgspec"}
