"""Whether the router of a trained model has specialised, measured on text it never saw.

Prints the held-out loss of each domain, how far each domain's expert load is from even, the
correlation between the domains' loads next to that between two halves of one domain, and samples.

    python models/specialisation.py src/equipoise/data/balance-5m
"""

import argparse
from dataclasses import dataclass

import corpus
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

WINDOW = 256
PROMPTS = {  # none ends in a newline, which the tokenizer joins to the indent after it
    "code": "def read(self, size):",
    "docs": "Return a new string",
    "legal": "Subject to the terms and conditions of this License,",
    "tables": "order,region,quantity,price,total\n1234,north,",
    "maths": "9 + 14 =",
    "config": '{\n  "server": {',
}


@dataclass(frozen=True)
class Measurement:
    """One domain's held-out text seen by the model.

    ``load_HLE`` counts the (token, k) assignments of each expert, ``(2, L, E)``: those of every
    other document, and those of the rest.
    """

    bits_per_byte: float
    num_tokens: int
    load_HLE: NDArray[np.int64]

    @property
    def load(self) -> NDArray[np.int64]:
        """Both halves together, ``(L, E)``."""
        return self.load_HLE.sum(axis=0)

    @property
    def imbalance(self) -> NDArray[np.float64]:
        """Busiest expert over the mean, ``(L,)``."""
        return self.load.max(axis=1) / self.load.mean(axis=1)


def encode(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> Tensor:
    """Token ids of the documents, each ended by the end-of-text token, ``(N,)`` int64."""
    # verbose=False: documents longer than the model's context are cut into windows later.
    ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([i for one in ids for i in (*one, tokenizer.eos_token_id)])


@torch.inference_mode()
def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: list[str]
) -> Measurement:
    """Loss and expert load over the documents, in windows of ``WINDOW`` tokens."""
    nats, num_bytes, num_windows, num_ids, load_HLE = 0.0, 0, 0, 0, []
    for half in (documents[0::2], documents[1::2]):
        ids = encode(tokenizer, half)
        num_ids += len(ids)
        num_bytes += sum(len(text.encode()) for text in half) + len(half)
        windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        num_windows += len(windows)
        load_LE = np.zeros((model.config.num_hidden_layers, model.config.num_experts), np.int64)
        for batch in windows.split(32):
            out = model(input_ids=batch, output_router_logits=True, use_cache=False)
            nats += torch.nn.functional.cross_entropy(
                out.logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
            ).item()
            load_LE += count_assignments(out.router_logits, model.config.num_experts_per_tok)
        load_HLE.append(load_LE)
    nats_per_token = nats / (num_windows * (WINDOW - 1))
    bits_per_byte = nats_per_token / np.log(2) * num_ids / num_bytes
    return Measurement(float(bits_per_byte), num_windows * WINDOW, np.stack(load_HLE))


def count_assignments(router_logits: tuple[Tensor, ...], top_k: int) -> NDArray[np.int64]:
    """Assignments per layer and expert, ``(L, E)``, of logits ``(D, E)`` for each layer."""
    return np.stack(
        [
            logits.topk(top_k).indices.flatten().bincount(minlength=logits.shape[-1]).numpy()
            for logits in router_logits
        ]
    )


def correlation(one_LE: NDArray, other_LE: NDArray) -> float:
    """Pearson correlation over experts of two loads, averaged over layers."""
    pairs = zip(one_LE, other_LE, strict=True)
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))


def print_measurements(measured: dict[str, Measurement]) -> None:
    print("domain    tokens  bits/byte  imbalance (mean over layers)  worst layer")
    for name, one in measured.items():
        peak_L = one.imbalance
        print(
            f"{name:8} {one.num_tokens:7}  {one.bits_per_byte:9.3f}"
            f"  {peak_L.mean():28.2f}  {peak_L.max():11.2f}"
        )


def print_correlations(measured: dict[str, Measurement]) -> None:
    """The matrix, with two halves of one domain on its diagonal."""
    print("load correlation (diagonal: two halves of the domain)")
    print(" " * 8 + "".join(f"{name:>8}" for name in measured))
    between = []
    for i, (name, one) in enumerate(measured.items()):
        row = [correlation(one.load, other.load) for other in measured.values()]
        between += row[i + 1 :]
        row[i] = correlation(*one.load_HLE)
        print(f"{name:8}" + "".join(f"{value:8.2f}" for value in row))
    within = [correlation(*one.load_HLE) for one in measured.values()]
    print(f"mean within a domain {np.mean(within):.2f}, between domains {np.mean(between):.2f}")


def print_experts(measured: dict[str, Measurement]) -> None:
    """How even the mixture of all domains is, each with the same weight."""
    share_DLE = np.stack([one.load / one.load.sum(1, keepdims=True) for one in measured.values()])
    share_LE = share_DLE.mean(axis=0)
    num_experts = share_LE.shape[1]
    hottest, least = share_LE.max(1) * num_experts, share_LE.min() * num_experts
    print(
        f"all domains the same: imbalance {hottest.mean():.2f}, least used expert of any layer "
        f"{least:.2f} of the mean share"
    )


@torch.inference_mode()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, greedy: bool
) -> str:
    """The prompt and up to 96 tokens that the model continues it with."""
    torch.manual_seed(0)
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=96, **how)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="the saved model")
    parser.add_argument("--seed", type=int, default=0, help="of the generated domains")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    domains = corpus.build(arguments.seed)
    measured = {name: measure(model, tokenizer, one.held) for name, one in domains.items()}
    print_measurements(measured)
    print()
    print_correlations(measured)
    print_experts(measured)
    for name, prompt in PROMPTS.items():
        for greedy in (True, False):
            print(f"\n== {name}, {'greedy' if greedy else 'sampled'}")
            print(sample(model, tokenizer, prompt, greedy=greedy))


if __name__ == "__main__":
    main()
