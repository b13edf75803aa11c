"""Gradient checkpointing: the same numbers from less that is kept."""

import pytest
import torch
from test_espnet_model import batch  # noqa: F401

from espnet_llmst.recompute import layers_of

CASES = {
    "frozen base with LoRA": {},
    "frozen language model": {"trainable": ["postencoder"]},
    "whole language model": {"trainable": ["postencoder", "decoder"]},
}


def step(model, batch):  # noqa: F811
    """Loss, gradients by name, and the bytes kept for the backward pass; dropout draws the same numbers."""
    model.train()
    torch.manual_seed(5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        loss = model(**batch)[0]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept)


@pytest.mark.parametrize("case", CASES)
def test_same_numbers_from_less(case, build_model, batch):  # noqa: F811
    loss, gradients, kept = step(build_model(**CASES[case]), batch)
    model = build_model(**CASES[case], model_conf={"gradient_checkpointing": True})
    calls = []
    layers_of(model.decoder)[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    again, same, less = step(model, batch)
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(same, gradients, rtol=0, atol=1e-6)
    assert len(calls) == 2 and less < 0.8 * kept
    with torch.no_grad():
        model.eval()(**batch)
    assert len(calls) == 3


def test_translators_too(build_model, batch, marian_dir):  # noqa: F811
    changes = {"decoder": "seq2seq_lm", "decoder_conf": {"model": marian_dir}, "trainable": ["postencoder"]}
    loss, gradients, kept = step(build_model(**changes), batch)
    again, same, less = step(build_model(**changes, model_conf={"gradient_checkpointing": True}), batch)
    torch.testing.assert_close((again, same), (loss, gradients), rtol=0, atol=1e-6)
    assert less < 0.8 * kept
