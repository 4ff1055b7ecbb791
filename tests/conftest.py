from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("default")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection() -> None:
    """Make no search for garbage among thousands of tests and modules, all of which stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Search for garbage again, but only among what tests make."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="no ../shared/data next to this checkout")
    for item in items:
        if "shared_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_said_of_time() -> Iterator[None]:
    """What a command prints does not depend on how fast it is, or on who compiles first."""
    from equipoise.cli import say_compiling
    from equipoise.cli.views import progress

    for is_kept in (True, False):  # the command says each once
        say_compiling(is_kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "clock", lambda: 0.0)
        yield


@pytest.fixture
def shared_data() -> Path:
    return SHARED_DATA
