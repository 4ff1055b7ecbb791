"""The entry point that SGLang calls in each of its processes; nothing is planned until asked for.

``equipoise explain plugins``. The hooks are in place in any case, since at this moment nobody
knows which
algorithm SGLang will ask for. Where it asks for another one they pass on what they get, and no
planner is imported.
"""

from __future__ import annotations

VARIABLE = "EQUIPOISE_SGLANG"
"""Environment variable with the options, as JSON or as the path of a file of JSON."""

ALGORITHM = "equipoise"
"""Name of the algorithm that SGLang is asked for with ``--eplb-algorithm``."""

STAND_INS = ("auto", "elasticity_aware", "elasticity_aware_hierarchical")
"""SGLang's own names that mean this package where the variable is set.

Elastic expert parallelism accepts no others.
"""

RELEASES = ((0, 5, 16), (0, 5, 23))
"""First and last version whose inside is known."""


def register() -> None:
    """Install the hooks; on an unknown version, log that and change nothing."""
    from sglang.version import __version__

    from equipoise.engines._shared.releases import number
    from equipoise.engines.sglang import hooks

    first, last = RELEASES
    if first <= (number(__version__) or ())[:3] <= last:
        hooks.install()
    else:
        hooks.warn_of_release(__version__)
