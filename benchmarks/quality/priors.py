"""Fit the priors of the package to the recordings they are of.

From the repository root, with ../shared/data next to it:

    python -m benchmarks.quality.priors [--write FOLDER]

GLM-5.2: the windows as they are recorded. DeepSeek-V2-Lite: windows of 512 tokens in a row of a
task. gpt-oss-20b: windows of 512 generated tokens in a row of a benchmark, one request after the
other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.quality.heldout import DATA
from benchmarks.quality.protocols import Tokens, read_esft, read_glm52, read_gptoss
from equipoise.simulate.prior import fit_prior
from equipoise.simulate.profiles import RoutingPrior
from equipoise.trace import Trace

WINDOW = 512


def priors(data: Path) -> Iterator[RoutingPrior]:
    yield fit_prior(
        read_glm52(data), name="glm-5.2", phase="prefill",
        source="fitted to loads of GLM-5.2 (quantised to 2 to 3 bits) in seven text domains, "
        "eight windows each; published in Dorijan10/glm-expert-pruning, declared MIT",
    )  # fmt: skip
    yield fit_prior(
        windows(read_esft(data)), name="deepseek-v2-lite", phase="prefill",
        source="fitted to routing of DeepSeek-V2-Lite, fine-tuned, on three tasks; published in "
        "deepseek-ai/ESFT, MIT",
    )  # fmt: skip
    yield fit_prior(
        windows(read_gptoss(data)), name="gpt-oss-20b", phase="decode",
        source="fitted to routing of gpt-oss-20b, generated tokens of three benchmarks; published "
        "in AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0",
    )  # fmt: skip


def windows(tokens: Tokens) -> Trace:
    """Windows of tokens in a row of a label that has two or more of them."""
    of_token = np.repeat(tokens.labels, tokens.lengths)
    parts, names = [], []
    for name in dict.fromkeys(tokens.labels.tolist()):
        ids = tokens.ids[of_token == name]
        whole = len(ids) // WINDOW
        if whole >= 2:
            parts.append(ids[: whole * WINDOW])
            names += [name] * whole
    return Trace.from_tokens(
        np.concatenate(parts),
        np.arange(len(names) + 1) * WINDOW,
        num_experts=tokens.num_experts,
        labels={"domain": np.array(names)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write a file of each here")
    args = parser.parse_args()
    for found in priors(args.data):
        print(found.to_json())
        if args.write:
            (args.write / f"{found.name}.json").write_text(found.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
