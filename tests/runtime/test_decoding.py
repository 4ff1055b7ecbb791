from __future__ import annotations

import pytest
import torch

from equipoise.errors import EquipoiseError
from equipoise.runtime.serving.decoding import Batch
from equipoise.runtime.serving.requests import Request
from tests.runtime.same_answers import Noted, Plain, prompts
from tests.runtime.tiny_models import save

STEPS = 6


class Breaking:
    """A model in which every second forward pass breaks off in one of the layers."""

    def __init__(self, model, layer):
        self._of, self.model = model, model.model
        self._next, self.broken = False, 0
        model.model.model.layers[layer].register_forward_pre_hook(self._break)

    def _break(self, *_):
        self._next = not self._next
        if self._next:
            self.broken += 1
            raise RuntimeError("Connection closed by peer")

    def step(self, *args):
        return self._of.step(*args)


@pytest.fixture(scope="module")
def plain():
    model, batch = Noted(Plain()), Batch(prompts(0, 0), STEPS)
    while not batch.done:
        assert batch.advance(model) == 2
    return batch.tokens, torch.stack(model.logits)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_pass_that_was_broken_off_can_be_made_again(plain, layer):
    breaking = Breaking(Plain(), layer)
    model, batch = Noted(breaking), Batch(prompts(0, 0), STEPS)
    while not batch.done:
        before = batch.tokens
        with pytest.raises(RuntimeError, match="closed by peer"):
            batch.advance(model)
        assert batch.tokens == before
        batch.advance(model)
    assert breaking.broken == STEPS
    tokens, logits = plain
    assert batch.tokens == tokens
    assert torch.equal(torch.stack(model.logits), logits)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_so_can_one_of_a_model_that_looks_at_a_window_only(tmp_path, layer):
    save("gpt_oss", tmp_path)  # layers 0 and 2 look back 8 tokens
    requests = [Request(0, tuple(range(1, 12))), Request(1, tuple(range(40, 60)))]
    noted = {}
    for name, model in (("whole", Plain(tmp_path)), ("broken", Breaking(Plain(tmp_path), layer))):
        noted[name], batch = Noted(model), Batch(requests, STEPS)
        while not batch.done:
            try:
                batch.advance(noted[name])
            except RuntimeError:
                assert name == "broken"
    whole, broken = (torch.stack(one.logits) for one in noted.values())
    assert torch.equal(broken, whole)


def test_prompts_of_other_lengths_do_not_disturb(plain):
    first, second = prompts(0, 0)
    for row, request in enumerate((first, second)):
        alone = Batch([request], STEPS)
        model = Plain()
        while not alone.done:
            alone.advance(model)
        assert alone.tokens[0] == plain[0][row]


def test_refuses_empty_prompts_and_no_tokens():
    with pytest.raises(EquipoiseError, match="no prompt"):
        Batch([Request(0, ())], 1)
    with pytest.raises(EquipoiseError, match="new_tokens"):
        Batch([Request(0, (1,))], 0)
