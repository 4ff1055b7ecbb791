"""The small model of the package: it loads, writes, and its router has specialised."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from equipoise.engines.transformers.capture import capture_prompts  # noqa: E402
from equipoise.sample import sample_model_path  # noqa: E402

MODELS = Path(__file__).parents[2] / "models"
FOLDER = sample_model_path()


@pytest.fixture(scope="module")
def generators():
    """The corpus's seeded generators of two domains."""
    sys.path.insert(0, str(MODELS))
    try:
        import corpus
    finally:
        sys.path.remove(str(MODELS))
    return {"maths": corpus.worksheet, "config": corpus.config_file}


def test_size():
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000


def test_it_loads_and_writes():
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    assert model.config.num_hidden_layers >= 4
    assert model.config.num_experts >= 32
    assert model.config.num_experts_per_tok >= 4
    assert model.config.shared_expert_intermediate_size > 0
    prompt = '{\n  "server": {\n    "port":'
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(written[0][inputs["input_ids"].shape[1] :])
    assert '"' in text
    assert any(character.isdigit() for character in text)


def test_text_of_two_domains_loads_different_experts(generators):
    import random

    prompts = {
        name: [make(random.Random(seed))[:200] for seed in (901, 902, 903, 904)]
        for name, make in generators.items()
    }
    trace = capture_prompts(FOLDER, prompts, max_new_tokens=4, batch_size=2)
    loads = {}
    for name in prompts:
        prefill = trace.select(domain=name, phase="prefill").counts.astype(np.int64)
        assert len(prefill) == 2
        loads[name] = prefill

    def correlation(one, other):
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)])

    within = [correlation(load[0], load[1]) for load in loads.values()]
    between = correlation(loads["maths"].sum(axis=0), loads["config"].sum(axis=0))
    assert min(within) > 0.7
    assert between < 0.5
