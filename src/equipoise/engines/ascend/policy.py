"""The places where each release of vllm-ascend asks for new slots, and the policies that answer."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

from equipoise import __version__
from equipoise.engines._shared.plugin_log import log_unknown_release
from equipoise.engines._shared.start_map import StartOptions, words

RELEASES = ("0.13.", "0.18.", "0.23.", "0.30.")
"""Beginnings of the versions whose inside is known; all have model runner V1."""

WITH_RUNNER_V2 = ("0.30.",)
"""Those whose model runner V2 balances as well."""

_PACKAGE = "vllm-ascend"
_log = logging.getLogger("vllm.equipoise")  # below "vllm", whose handlers show it


def install(options: StartOptions) -> None:
    """Make vllm-ascend use our plans; on an unknown version, log that and change nothing."""
    try:
        release = version(_PACKAGE)
    except PackageNotFoundError:
        _log.warning(
            "equipoise %s is asked to plan for %s, which is not installed.", __version__, _PACKAGE
        )
        return
    if not release.startswith(RELEASES):
        known = ", ".join(f"{known}x" for known in RELEASES)
        log_unknown_release(_log, _PACKAGE, known, release)
        return
    from equipoise.engines.ascend import runner_v1

    runner_v1.install(options)
    if release.startswith(WITH_RUNNER_V2):
        from equipoise.engines.ascend import runner_v2

        runner_v2.install(options)
    _log.info(
        "equipoise %s plans the placement of experts in %s %s: %s",
        *(__version__, _PACKAGE, release, words(options)),
    )
