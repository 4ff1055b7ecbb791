from __future__ import annotations

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.simulate.tables import COMPUTE_COLUMNS, read_compute, read_exchange
from tests.simulate.planted import compute_table, exchange_table, write

HEADER = ",".join(COMPUTE_COLUMNS)
ROW = "H100,sglang,1,masked,fp8_block,decode,2048,1024,32,4,32,2,uniform,0.0,0,64,-1,12.5"


def test_what_was_written_is_read(tmp_path):
    for table, name in ((compute_table(), "moe_compute_deepep"), (exchange_table(), "alltoall")):
        write(table, tmp_path / f"{name}.csv")
    read = read_compute(tmp_path, "deepep")
    assert read["ep_size"].dtype == np.int64
    assert np.array_equal(read["time_us"], compute_table()["time_us"])
    assert read_exchange(tmp_path)["op"].tolist() == exchange_table()["op"].tolist()


def test_rows_are_chosen_and_grouped():
    table = compute_table()
    groups = table.groups("ep_size", "alpha")
    assert [values for values, _ in groups] == [(r, a) for r in (2, 4, 8) for a in (0, 0.6, 1.2)]
    assert sorted(np.concatenate([rows for _, rows in groups])) == list(range(len(table)))
    assert set(table.where(groups[3][1])["ep_size"]) == {4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column gpu"),
        (HEADER.replace("alpha", "beta") + "\n" + ROW, "no column alpha"),
        (HEADER, "has no rows"),
        (HEADER + "\n" + ROW + ",7", "line 2: 19 values; expected 18"),
        (HEADER + "\n" + ROW.replace("64", "many"), "line 2: tokens_global is 'many'"),
        (
            HEADER + "\n" + ROW.replace("64", "0"),
            "tokens_global is '0'; .* whole number, 1 or more",
        ),
        (HEADER + "\n" + ROW.replace("12.5", "0"), "line 2: time_us is '0'"),
        (HEADER + "\n" + ROW.replace("12.5", "nan"), "line 2: time_us is 'nan'"),
        (HEADER + "\n" + ROW.replace("64", "9" * 5000), "line 2: tokens_global"),
        (HEADER + "\n" + ROW + '\n"', "."),
        ("\x00" * 50, "."),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, message):
    (tmp_path / "moe_compute_deepep.csv").write_text(text)
    with pytest.raises(EquipoiseError, match=message):
        read_compute(tmp_path, "deepep")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "alltoall.csv").write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(EquipoiseError, match="is not a CSV file"):
        read_exchange(tmp_path)
