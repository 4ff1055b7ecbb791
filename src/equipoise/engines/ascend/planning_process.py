"""The exchange between vllm-ascend's server and its planning process, made safe by wrappers.

The server of each rank wakes its planning process, serves some steps, and then waits for the plan.
Methods of vllm-ascend's classes are wrapped on both sides:

=====================  ==========================================================================
``worker_process``     The planning process says that the plug-in is there.
``do_update``          A plan starts from the slots that are in force, and has one entry per layer.
``wakeup_eplb_worker`` The server remembers which slots those are.
``forward_before``     With the first plan the server looks who made it. The servers compare their
                       plans; if they differ, none is used.
=====================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

ACKNOWLEDGED = "equipoise"
"""Key of the dictionary shared by both processes, where the planning process writes its id."""

MAPS = "expert_maps"
"""vllm-ascend's key of where each expert is on each rank, ``(L, R, E)``, -1 if not."""

_log = logging.getLogger("vllm.equipoise")


@cache
def attend() -> None:
    """Wrap the methods, once in each process.

    This is not done at registration: vllm-ascend imports the classes only if balancing is on.
    """
    from vllm_ascend.eplb.core.eplb_worker import EplbProcess, EplbWorker
    from vllm_ascend.eplb.eplb_updator import EplbUpdator

    # 0.13 takes a plan after the forward pass, later releases before it.
    takes = "take_update_info_from_eplb_process"
    _wrap(EplbProcess, "worker_process", _begin)
    _wrap(EplbWorker, "do_update", _update)
    _wrap(EplbUpdator, "wakeup_eplb_worker", _wake)
    _wrap(EplbUpdator, takes if hasattr(EplbUpdator, takes) else "forward_before", _take)


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    method = getattr(owner, name)

    @wraps(method)
    def wrapped(self: Any, *args: Any) -> Any:
        return around(method, self, *args)

    setattr(owner, name, wrapped)


def _begin(method: Callable[..., Any], process: Any, *queues: Any) -> Any:
    """Report the plug-in; runs in the planning process, before its loop."""
    process.shared_dict[ACKNOWLEDGED] = os.getpid()
    process.worker.policy.begin(process.worker.rank_id)
    return method(process, *queues)


def _update(method: Callable[..., Any], worker: Any) -> Any:
    """Plan from the slots in force; runs in the planning process, for every plan.

    The worker assumes that its last plan was used. Moreover, releases before 0.23 list a layer that
    does not change twice. The server then never reaches the last layers of the list, although the
    worker believes that they moved.
    """
    worker.old_expert_maps = None  # it reads them from the dictionary again
    found = method(worker)
    return found and list({entry[-1]: entry for entry in found}.values())


def _wake(method: Callable[..., Any], updator: Any) -> Any:
    """Remember the slots in force; runs in the server, before it asks for a plan."""
    updator.equipoise_maps = updator.shared_dict[MAPS]
    return method(updator)


def _look_for_acknowledgement(updator: Any) -> None:
    """Check once, after the first plan, who made it: its process has started by then."""
    if hasattr(updator, "equipoise_acknowledged"):
        return
    updator.equipoise_acknowledged = True
    found, expected = updator.shared_dict.get(ACKNOWLEDGED), updator.process.pid
    if found == expected:
        _log.info("The planning process %d has said that equipoise plans in it.", expected)
    else:
        _log.error(
            "The planning process %s has not said that equipoise plans in it (found: %s), so "
            "vllm-ascend may balance by its own policy.",
            expected,
            found,
        )


def _take(method: Callable[..., Any], updator: Any) -> Any:
    """Take the plan that is due, on all ranks or on none; runs in the server."""
    is_due = updator.get_update_info_flag()
    found = method(updator)
    if is_due:
        _look_for_acknowledgement(updator)
    if is_due and not _is_the_same_everywhere(updator.shared_dict[MAPS]):
        updator.shared_dict[MAPS] = updator.equipoise_maps
        updator.update_info_all, updator.cur_iterations = [], 0
        _log.warning(
            "The ranks came to different plans, since equipoise failed on some of them. None is "
            "used. The slots stay as they are."
        )
    return found


def _is_the_same_everywhere(maps: Any) -> bool:
    """Return whether all ranks have the same maps, compared by a digest."""
    import torch
    from vllm.distributed import get_ep_group

    digest = hashlib.sha256(maps.numpy().astype("int64").tobytes()).digest()
    number = int.from_bytes(digest[:7], "big")  # its negative is an int64 too
    extremes = torch.tensor([number, -number])
    torch.distributed.all_reduce(
        extremes, op=torch.distributed.ReduceOp.MIN, group=get_ep_group().cpu_group
    )
    least, most = extremes[0].item(), -extremes[1].item()
    return bool(least == most)
