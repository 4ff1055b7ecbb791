"""Two nodes of two processes each: network namespaces joined by a slow link, started by torchrun.

    python -m tests.runtime.two_nodes [--steps 400] [--rate 200mbit] [--dispatch minmax]

Needs Linux, root and iproute2 (``ip``, ``tc``). Each node is a namespace of its own with one end of
a virtual cable whose both ends are throttled to ``--rate``; gloo has no other way between them.
torchrun is started in both, and every process does what ``same_answers.py`` describes, on a
topology of two nodes. Prints what it saw, and what went through the cable.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29517
SECONDS = 600


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        return False
    name = f"eq{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return made.returncode == 0


@contextmanager
def cabled_nodes(rate: str) -> Iterator[list[str]]:
    """The names of two namespaces with a cable between them; its ends are called as they are."""
    names = [f"eq{secrets.token_hex(3)}{end}" for end in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            shape = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", name, *shape], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def run(steps: int, rate: str, dispatch: str) -> tuple[str, int]:
    """What the processes printed, and bytes through the cable.

    Raises
    ------
    AssertionError
        A node that fails, with what it printed.
    """
    with cabled_nodes(rate) as names:
        nodes = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
                    *("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "2"),
                    *("--master-addr", ADDRESSES[0], "--master-port", str(PORT)),
                    *("-m", "tests.runtime.two_nodes", "--steps", str(steps)),
                    *("--dispatch", dispatch),
                ],
                env=os.environ | {"GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number, name in enumerate(names)
        ]
        try:
            told = [node.communicate(timeout=SECONDS)[0] for node in nodes]
        finally:
            for node in nodes:
                node.kill()
        assert not any(node.returncode for node in nodes), "\n".join(told)
        through = sum(
            int(_ip("netns", "exec", name, "cat", f"/sys/class/net/{name}/statistics/tx_bytes"))
            for name in names
        )
        return told[0], through


def work(steps: int, dispatch: str) -> None:
    """What each process does."""
    import torch
    import torch.distributed as dist

    from tests.runtime import same_answers

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, wrong = dist.get_rank(), False
    for redundant in (0, 16):
        seen = same_answers.compare(None, dispatch, redundant, True, steps, False)
        wrong |= not same_answers.right(seen)
        if rank == 0:
            print(f"{dispatch}, {redundant} redundant: {seen}", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    raise SystemExit(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", default="200mbit")
    parser.add_argument("--dispatch", default="minmax")
    options = parser.parse_args()
    if "RANK" in os.environ:
        work(options.steps, options.dispatch)
    told, through = run(options.steps, options.rate, options.dispatch)
    print(told, f"{through / 1e6:.1f} MB through a cable of {options.rate}", sep="")


if __name__ == "__main__":
    main()
