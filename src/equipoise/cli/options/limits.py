"""What numbers on the command line may be."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Size = Parameter(validator=Number(gte=1, lte=1 << 20))
"""Limit on the counts of a deployment; far above any, so that nothing absurd is allocated."""
Amount = Parameter(validator=Number(gte=1, lte=1 << 40))
"""How much of something to take at once."""
Redundant = Parameter(validator=Number(gte=0, lte=1 << 20))
Iteration = Parameter(validator=Number(gte=0, lte=1 << 50))
"""The number of an iteration of an engine."""
AtLeastZero = Annotated[float | None, Parameter(validator=Number(gte=0))]
"""A number that may be left out."""
