"""The ``equipoise`` command: one file a subcommand, no logic of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownOptionError,
    UnusedCliTokensError,
)

from equipoise import __version__
from equipoise.cli.options import command_line
from equipoise.cli.options.groups import MAIN
from equipoise.cli.options.names import in_options
from equipoise.cli.views.console import help_console
from equipoise.cli.views.text import one_line, shortened
from equipoise.compiling import telling_of_compiling
from equipoise.errors import EquipoiseError

_TRTLLM_SCRIPTS = "TensorRT-LLM's own scripts, by their names and flags"


def _shown_default(value: object) -> str | None:
    """A default as help tells it; nothing of a flag, nor of an option that may be left out."""
    return None if value in (None, ()) or value is False else f"{value}"


app = App(
    name="equipoise",
    help=r"""Balance the load of mixture-of-experts models served with expert parallelism.

    For example, on the recording that ships as "sample":

        equipoise report sample --ranks 8
        equipoise plan sample --ranks 8 --redundant 8 -o map.yaml
        equipoise COMMAND --help
    """,
    version=__version__,
    result_action="return_value",
    group_parameters=MAIN,
    default_parameter=Parameter(negative=(), show_default=_shown_default),
)
COMMANDS = {
    "report": "Say how unbalanced a recording is, and how much of that is chance.",
    "plan": "Choose copies and places, score them on unseen steps, write the engine's map.",
    "repair": "Improve the map in force by few moves, score the change, write the new map.",
    "budget": "Say how many redundant slots pay, and in which layers.",
    "forecast": "Say whether balancing would make steps shorter, and how sure that is.",
    "simulate": "Show what users of a server would see, with balancing and without.",
    "tune": "Find the settings to balance with, by replaying steps that no plan has seen.",
    "checklist": "Go through the decisions about a deployment, each with its numbers.",
    "validate": "Find every defect of a map before an engine loads it.",
    "convert": "Rewrite a recording or a map in another format; say exactly what is lost.",
    "diff": "Count what must move from one map to another; decide whether it pays.",
    "compare": "Show several maps side by side on one recording.",
    "failover": "Make the maps for lost ranks or nodes, or for fewer or more ranks.",
    "monitor": "Watch a running system: imbalance, ranks, layers, experts, events.",
    "demo": "Serve a small model on several processes, shift the load, and balance it live.",
    "bridge": "Export an engine's own figures to Prometheus, under equipoise's metric names.",
    "grafana": "Write a Grafana dashboard and Prometheus alert rules.",
    "lab": "Write a folder to learn in: a notebook, functions to fill in, and tests.",
    "dashboard": "Serve a local web page: what balancing would do, and what a group does.",
    "calibrate": "Fit the time model to measured kernel times, or to runs of your own.",
    "capture": "Record the routing of a model while it runs, here or in a server.",
    "explain": "Show a page of the documentation; without a topic, list all pages.",
    "doctor": "Say what is wrong, ignored or wasteful in how an engine is started.",
}
"""The first line of each command's help."""
SCRIPTS = {
    "report_load_statistics": "Print the balance of a recording, by layer and on average.",
    "generate_eplb_config": "Write the load balancer's file from a recording.",
}
"""The same of TensorRT-LLM's scripts."""

# Import paths, so that `--help` and each command load only what they need.
for _place, (_name, _help) in enumerate({**COMMANDS, **SCRIPTS}.items()):
    app.command(
        f"equipoise.cli.commands.{_name}:{_name}",
        name=_name,
        help=_help,
        sort_key=_place,
        group=_TRTLLM_SCRIPTS if _name in SCRIPTS else None,
    )


def command(name: str) -> App:
    """One command with its whole help, of which the list above has the first line."""
    found = app[name]
    found.help = None  # that of its function, which is imported now
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    Exit status: 0 done, 1 a check said no, 2 the input or the arguments are wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        return _refuse("An argument is not UTF-8 text; rename the file it names.")
    if any("\0" in argument for argument in arguments):
        return _refuse("An argument holds a null character, which no name of a file can.")
    try:
        command_line.arguments.set(arguments)
        if arguments and arguments[0] in {**COMMANDS, **SCRIPTS}:
            command(arguments[0])
        with telling_of_compiling(say_compiling):
            status = app(arguments, console=help_console(), exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        unused = error.unused_tokens or []
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        return _refuse(f"Too many arguments: {' '.join(unused[:3])}{more}.{_in_quotes(arguments)}")
    except UnknownOptionError as error:
        return _refuse(f"{error}{_in_quotes(arguments)}")
    except MissingArgumentError as error:
        return _refuse(_what_is_missing(error))
    except CycloptsError as error:
        return _refuse(str(error))
    except EquipoiseError as error:
        return _refuse(in_options(error.message))
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0
    except OSError as error:
        return _refuse(f"{error.filename or 'input'}: {error.strerror or error}.")
    except MemoryError:
        return _refuse("The input needs more memory than this machine has free.")
    except RecursionError:
        return _refuse("The input is nested too deeply to be read.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status if isinstance(status, int) else 0


@cache  # once
def say_compiling(is_kept: bool) -> None:
    """Say why nothing seems to happen, for half a minute or, on a busy machine, more."""
    often = (
        "once per installation"
        if is_kept
        else "in every run, since there is no folder to keep them in; set NUMBA_CACHE_DIR to one"
    )
    print(f"equipoise: compiling kernels, {often}", file=sys.stderr, flush=True)


def _in_quotes(arguments: Sequence[str]) -> str:
    """What to do where words of an engine's launch were taken for arguments of this command."""
    return " Put the whole command of an engine in quotes." if arguments[0] == "doctor" else ""


def _what_is_missing(error: MissingArgumentError) -> str:
    """An option without its value, or an argument that was not given at all."""
    command = " ".join(["equipoise", *(error.command_chain or ())])
    if error.keyword is not None:
        return f"{error.keyword} is not followed by a value; see {command} --help."
    name = "an argument" if error.argument is None else error.argument.name
    return f"{command} needs {name}, which was not given; see {command} --help."


def _refuse(message: str) -> int:
    print(f"equipoise: {one_line(shortened(message))}", file=sys.stderr)
    return 2
