"""The headings that options stand under in the help of every command, in their order.

What has no heading of its own is a main option.
"""

from __future__ import annotations

from cyclopts import Group

_TITLES = (
    "Main options",
    "Verdict",
    "Limits of the moves",
    "Requests",
    "Serving",
    "Settings to try",
    "Effort",
    "Search of the planner",
    "Options of single planners",
    "Cost of moving",
    "Hardware, model and time",
    "Launch flags of the engine",
    "Files of TensorRT-LLM",
    "What a map file does not say",
    "Reading the recording",
    "Page and pictures",
    "Metrics",
)

(
    MAIN,
    VERDICT,
    LIMITS,
    REQUESTS,
    SERVING,
    TRIED,
    EFFORT,
    SEARCH,
    PLANNER,
    MOVING,
    HARDWARE,
    ENGINE,
    TRTLLM,
    MAPS,
    READING,
    PAGE,
    METRICS,
) = (Group(title, sort_key=place) for place, title in enumerate(_TITLES))
