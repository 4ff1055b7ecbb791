from __future__ import annotations

import subprocess
import sys


def test_recording_without_torch_is_an_error_that_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from equipoise.errors import EquipoiseError\n"
        "try:\n"
        "    import equipoise.engines.transformers.capture\n"
        "except EquipoiseError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "install equipoise[capture]" in done.stdout


def test_a_configuration_is_read_without_torch_and_transformers() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from equipoise.engines.transformers.config import read_model_config\n"
        f"print(read_model_config(Path({__file__!r}).parent / 'configs/mixtral-8x7b.json'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "num_experts=8" in done.stdout
