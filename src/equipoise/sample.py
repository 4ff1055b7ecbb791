"""What ships with the package: a recording, the small model it was made with, and the lab."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).parent / "data"

LAB_FOLDER = _DATA / "lab"
"""The lab's notebook, its exercise and the solution."""


def sample_trace_path() -> Path:
    """Routing of the project's own small model over several text domains, prefill and decode.

    Recorded by ``equipoise capture``; how, and what the model is: ``models/README.md``.
    """
    return _DATA / "sample.trace.safetensors"


def sample_model_path() -> Path:
    """Folder of the project's own small model and its tokenizer, as transformers saves them.

    Made for demonstrations and tests; how it was trained: ``models/README.md``.
    """
    return _DATA / "balance-5m"


def lab_files(*, solution: bool) -> dict[str, Path]:
    """The files that somebody works with in the lab: each one's name there, and where it is.

    Parameters
    ----------
    solution
        Whether the exercise is the one filled in, with answers to the questions next to it.
    """
    names = ["README.md", "exercise.py", "lab.ipynb", "plots.py", "test_exercise.py"]
    files = {name: LAB_FOLDER / name for name in names}
    if solution:
        files |= {
            "answers.md": LAB_FOLDER / "answers.md",
            "exercise.py": LAB_FOLDER / "solution.py",
        }
    return files
