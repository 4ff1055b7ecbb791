from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from equipoise.engines.transformers.capture import capture_prompts  # noqa: E402 (after the skip)
from equipoise.engines.transformers.recorder import RoutingRecorder  # noqa: E402 (after the skip)
from equipoise.errors import EquipoiseError  # noqa: E402 (after the skip)
from tests.engines.transformers.tiny import VOCABULARY, build  # noqa: E402 (after the skip)

WORDS = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a tokenizer of words ``w2`` to ``w96``."""
    return save(tmp_path_factory.mktemp("model"), pad_token="<pad>", eos_token="<eos>")


def save(path: Path, **special: str) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="w2"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    model = build("qwen3_moe")
    model.generation_config.do_sample = True  # what the folder wants, and capture overrides
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(path)
    return path


def test_every_prompt_is_a_prefill_and_its_decode_steps(folder: Path) -> None:
    done = []
    trace = capture_prompts(
        folder,
        {"code": ["w2 w3 w4", "w5 w6"], "math": ["w7 w8 w9 w10"]},
        max_new_tokens=3,
        token_ids=True,
        progress=lambda *seen: done.append(seen),
    )
    assert trace.labels["phase"].tolist() == ["prefill", "decode", "decode"] * 3
    assert trace.labels["domain"].tolist() == ["code"] * 6 + ["math"] * 3
    assert trace.counts.sum(axis=2)[:, 0].tolist() == [6, 2, 2, 4, 2, 2, 8, 2, 2]
    assert trace.provenance.source == str(folder)
    assert trace.tokens is not None
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    capture_prompts(folder, ["w2 w3"], max_new_tokens=1)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def test_decoding_is_greedy_whatever_the_folder_asks_for(folder: Path) -> None:
    model = build("qwen3_moe")
    tokens = torch.tensor([[2, 3, 4]])
    with RoutingRecorder(model) as recorder:
        model.generate(tokens, max_new_tokens=6, do_sample=False)
    trace = capture_prompts(folder, ["w2 w3 w4"], max_new_tokens=6)
    np.testing.assert_array_equal(trace.counts, recorder.trace().counts)
    assert "domain" not in trace.labels


def test_batches_count_what_single_prompts_count(folder: Path) -> None:
    texts = ["w2 w3 w4 w5 w6", "w7 w8", "w9"]
    alone = capture_prompts(folder, texts, max_new_tokens=3)
    together = capture_prompts(folder, texts, max_new_tokens=3, batch_size=3)
    np.testing.assert_array_equal(
        together.counts, alone.counts.reshape(3, 3, *alone.counts.shape[1:]).sum(axis=0)
    )


def test_sequences_that_have_ended_are_not_counted(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    first = model.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=1, do_sample=False)
    folder = save(tmp_path, pad_token="<pad>")
    config = folder / "generation_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "eos_token_id": [int(first[0, -1])]}))
    trace = capture_prompts(folder, ["w2 w3 w4", "w5 w6 w7"], max_new_tokens=3, batch_size=2)
    assert trace.counts.sum(axis=2)[:, 0].tolist() == [12, 2, 2]


def test_the_run_stops_once_the_range_is_complete(folder: Path) -> None:
    done = []
    trace = capture_prompts(
        folder,
        ["w2 w3"] * 50,
        max_new_tokens=2,
        iterations=(1, 3),
        progress=lambda *seen: done.append(seen),
    )
    assert trace.steps.tolist() == [1, 2]
    assert done == [(1, 50), (2, 50)]


def test_a_tokenizer_without_padding_uses_its_end_token(tmp_path: Path) -> None:
    folder = save(tmp_path, eos_token="<eos>")
    trace = capture_prompts(folder, ["w2 w3 w4", "w5"], max_new_tokens=1, batch_size=2)
    assert trace.counts.sum(axis=2)[:, 0].tolist() == [8]


def test_a_tokenizer_without_padding_or_end_needs_single_prompts(tmp_path: Path) -> None:
    folder = save(tmp_path)
    assert capture_prompts(folder, ["w2 w3"], max_new_tokens=2).num_steps == 2
    with pytest.raises(EquipoiseError, match="use batch size 1"):
        capture_prompts(folder, ["w2 w3", "w4"], batch_size=2)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "No prompts"),
        ({"code": []}, "No prompts"),
        ("w2", "one string"),
        (["w2", " "], "Prompt 1 is ' '"),
        ({"code": ["w2", 3]}, "Prompt 1 of domain 'code' is 3"),
    ],
)
def test_bad_prompts_are_refused(folder: Path, prompts: object, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        capture_prompts(folder, prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
def test_counts_below_one_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(EquipoiseError, match=f"{name} is 0"):
        capture_prompts(folder, ["w2"], **{name: 0})


def test_a_prompt_without_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = save(tmp_path, pad_token="<pad>")
    empty = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lambda *_, **__: empty)
    with pytest.raises(EquipoiseError, match="has no tokens"):
        capture_prompts(folder, ["anything"])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EquipoiseError, match=r"no config\.json"):
        capture_prompts(tmp_path, ["w2"])


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(EquipoiseError, match="cannot be loaded by transformers"):
        capture_prompts(tmp_path, ["w2"])


def test_running_a_model_without_transformers_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EquipoiseError, match=r"install equipoise\[capture\]"):
        capture_prompts(folder, ["w2"])
