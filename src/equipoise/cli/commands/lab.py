"""``equipoise lab``: a folder to learn load balancing in."""

from __future__ import annotations

import shutil
from pathlib import Path
from shlex import quote
from typing import Annotated

from equipoise.cli.options.output import Json, Output, check_output
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.text import one_line
from equipoise.engines.files import replacing_folder
from equipoise.sample import lab_files


def lab(
    *,
    output: Annotated[Path, Output],
    solution: bool = False,
    json: Json = False,
) -> int:
    """Write a folder to learn in: a notebook, functions to fill in, and tests.

    The notebook walks through one hot expert, placing, copying and noise. The six tests fail until
    the functions are filled in. It runs on any machine, without a GPU.

    For example:

        equipoise lab -o lab
        equipoise lab -o solution --solution
        equipoise lab --output lab --json

    Parameters
    ----------
    output
        Folder to make.
    solution
        Write the functions filled in, and answers to the questions of the notebook.
    """
    check_output(output, folder=True)
    files = lab_files(solution=solution)
    with replacing_folder(output) as folder:
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
    if json:
        print_json({"folder": str(output), "files": sorted(files)})
        return 0
    console = stdout()
    console.print(one_line(f"{output}: {', '.join(sorted(files))}."))
    if solution:
        console.print("exercise.py is filled in; answers.md answers the questions of lab.ipynb.")
    else:
        console.print("Open lab.ipynb in a notebook and fill in exercise.py as you read.")
        console.print(one_line(f"Test it: cd {quote(str(output))} && python -m unittest -v"))
    return 0
