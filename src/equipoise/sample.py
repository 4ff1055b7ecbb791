"""Files that ship with the package: a sample recording, its small model, and the lab."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).parent / "data"

LAB_FOLDER = _DATA / "lab"
"""Folder with the lab's notebook, its exercise and the solution."""


def sample_trace_path() -> Path:
    """Return the path of the sample recording that ships with the package.

    It is the routing of the project's own small model on several kinds of text, in prefill and
    decode, recorded by ``equipoise capture``. ``models/README.md`` describes the model.
    """
    return _DATA / "sample.trace.safetensors"


def sample_model_path() -> Path:
    """Find the folder of the project's small model and its tokenizer, as transformers saves them.

    Made for demonstrations and tests; how it was trained: ``models/README.md``.
    """
    return _DATA / "balance-5m"


def lab_files(*, solution: bool) -> dict[str, Path]:
    """List the files of the lab: the name of each in a learner's folder, and its path here.

    Parameters
    ----------
    solution
        Flag to include the solved exercise, and the answers to the questions, instead of the
        exercise with gaps.
    """
    names = ["README.md", "exercise.py", "lab.ipynb", "plots.py", "test_exercise.py"]
    files = {name: LAB_FOLDER / name for name in names}
    if solution:
        files |= {
            "answers.md": LAB_FOLDER / "answers.md",
            "exercise.py": LAB_FOLDER / "solution.py",
        }
    return files
