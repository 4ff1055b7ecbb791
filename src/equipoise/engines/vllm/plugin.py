"""The entry point that vLLM calls in each of its processes; it does nothing until it is asked to.

``equipoise explain plugins``. Whoever has not set the environment variable gets no import of numpy
from here.
"""

from __future__ import annotations

import os

VARIABLE = "EQUIPOISE_VLLM"
"""Environment variable with the options, as JSON or as the path of a file of JSON."""


def register() -> None:
    """Have vLLM balance by this package's plans, if the environment asks for it.

    Raises
    ------
    EquipoiseError
        Options that cannot be read. vLLM then does not start, which is better than balancing in
        one process by this package and in another without it.
    """
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    from equipoise.engines.vllm.plugin_options import read_options
    from equipoise.engines.vllm.policy import install

    install(read_options(asked))
