"""Memory told from shapes equals what real training steps keep."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoFeatureExtractor, AutoTokenizer

from espnet_llmst.step_memory import Shape, batch_of, stacks_of, step_memory, without_content
from espnet_llmst.summary import build_empty, read_phase

SHAPE = Shape(samples=16000, tokens=40)
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}
TRAINED = {
    "connector": ({}, ["postencoder"]),
    "lora": ({"lora": LORA}, ["postencoder", "encoder.lora", "decoder.lora"]),
    "full": ({}, ["postencoder", "encoder", "decoder"]),
}


@pytest.fixture(scope="module")
def deep_dirs(tiny_models, llama_dir, whisper_dir, tmp_path_factory):
    """Whisper and Llama of five layers."""
    whisper, llama = (str(tmp_path_factory.mktemp(name)) for name in ("whisper5", "llama5"))
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    for part in (tokenizer, tiny_models.new_llama(tokenizer, width=32, layers=5, heads=4)):
        part.save_pretrained(llama)
    features, tokenizer = AutoFeatureExtractor.from_pretrained(whisper_dir), AutoTokenizer.from_pretrained(whisper_dir)
    for part in (features, tiny_models.new_whisper(tokenizer, features, 32, 5, 1, 2)):
        part.save_pretrained(whisper)
    return whisper, llama


def kept_by(model, batch) -> int:
    """Bytes that a real forward pass saves for the backward pass, state not counted."""
    state = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor  # held: its address is used by no other
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch)[0]
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for address, t in saved.items() if address not in state)


@pytest.mark.parametrize(
    ("trained", "precision"), [("connector", "bfloat16"), ("lora", "bfloat16"), ("full", "float32")]
)
def test_equals_what_real_steps_keep(trained, precision, deep_dirs, build_model, task_config, tmp_path):
    """Within 2 % for a frozen language model, LoRA and full training; the formula runs two layers of five."""
    lora, trainable = TRAINED[trained]
    changes = {
        "encoder_conf": {"model": deep_dirs[0], **lora},
        "decoder_conf": {"model": deep_dirs[1], **lora},
        "trainable": trainable,
        "model_conf": {"autocast": precision},
    }
    real = build_model(**changes).train()
    model = build_empty(read_phase(tmp_path / "config.yaml")).train()
    without_content(model, FakeTensorMode(allow_non_fake_inputs=True))
    assert [len(getattr(owner, name)) for owner, name in stacks_of(model)] == [5, 5]
    found = step_memory(model, 3, SHAPE)
    assert (found["encoder"] > 0) == (trained != "connector") and found["working"] > 0
    kept = found["encoder"] + found["decoder"] + found["rest"]
    assert kept == pytest.approx(kept_by(real, batch_of(3, SHAPE)), rel=0.02)
