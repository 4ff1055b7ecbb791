from __future__ import annotations

import subprocess
import sys


def test_serving_without_torch_is_an_error_that_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from equipoise.errors import EquipoiseError\n"
        "try:\n"
        "    import equipoise.runtime.moe.layer\n"
        "except EquipoiseError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "install equipoise[runtime]" in done.stdout
