from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtime.processes import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("processes"))
    yield pool
    pool.close()
