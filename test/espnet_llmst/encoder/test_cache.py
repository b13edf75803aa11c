"""Cached training equals uncached training bit for bit, and a cache cannot be stale."""

import pytest
import torch
from safetensors import SafetensorError

from espnet_llmst.cli import InputError
from espnet_llmst.encoder.cache import fingerprint


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)

    def batch(sizes):
        number = len(sizes)

        def tokens(width):
            return torch.randint(3, 60, (number, width), generator=generator), torch.full((number,), width)

        speech = torch.zeros(number, max(sizes))
        for row, size in enumerate(sizes):
            speech[row, :size] = 0.1 * torch.randn(size, generator=generator)
        arrays = {"speech": speech, "speech_lengths": torch.tensor(sizes)}
        for name, width in (("prefix", 3), ("suffix", 4), ("text", 5)):
            arrays[name], arrays[f"{name}_lengths"] = tokens(width)
        return arrays

    return [batch([16000, 12000, 9000]), batch([8000]), batch([20000, 5000])]


def train(build_model, whisper_dir, batches, **model_conf):
    model = build_model(encoder_conf={"model": whisper_dir}, trainable=["postencoder"], model_conf=model_conf)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for epoch in range(3):
        model.train()
        for batch in batches if epoch % 2 == 0 else reversed(batches):
            loss = model(**batch)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
    return losses, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, model


@pytest.mark.parametrize("autocast", ["float32", "bfloat16"])
def test_cached_training_equals_uncached(build_model, whisper_dir, batches, tmp_path, autocast):
    losses, weights, _ = train(build_model, whisper_dir, batches, autocast=autocast)
    conf = {"autocast": autocast, "cache_encoder": str(tmp_path / "feats")}
    for run in ("filling", "reading what an earlier run left"):
        cached_losses, cached_weights, model = train(build_model, whisper_dir, batches, **conf)
        assert cached_losses == losses, run
        assert all(torch.equal(weights[name], cached_weights[name]) for name in weights), run
    model.encoder.forward = None  # would fail if it were called
    model(**batches[0])


def test_another_encoder_has_another_folder(build_model, whisper_dir, batches, tmp_path):
    folder = tmp_path / "feats"
    _, _, model = train(build_model, whisper_dir, batches, cache_encoder=str(folder))
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1e-3)
    model.cache = None
    model.train()
    model(**batches[0])
    model.eval()
    assert len(list(folder.iterdir())) == 2


def test_other_settings_have_another_folder(build_model, whisper_dir, batches, tmp_path):
    folder = tmp_path / "feats"
    train(build_model, whisper_dir, batches, cache_encoder=str(folder))
    model = build_model(
        encoder_conf={"model": whisper_dir, "pad_to_30s": True},
        trainable=["postencoder"],
        model_conf={"cache_encoder": str(folder)},
    )
    model(**batches[0])
    assert len(list(folder.iterdir())) == 2


def test_scaling_of_lora_and_features_have_another_folder(build_model, whisper_dir):
    conf = {"model": whisper_dir, "lora": {"r": 2, "alpha": 4}}
    encoder = build_model(encoder_conf=conf, trainable=["postencoder"]).encoder
    before = fingerprint(encoder)
    assert before == fingerprint(encoder) != fingerprint(encoder, "True")
    scaled = next(module for module in encoder.modules() if isinstance(getattr(module, "scaling", None), dict))
    scaled.scaling["default"] *= 2
    after = fingerprint(encoder)
    encoder.features.hop_length += 1
    assert len({before, after, fingerprint(encoder)}) == 3
    fingerprint(torch.nn.BatchNorm1d(3))  # counts its batches in a tensor without dimensions


def test_a_folder_that_cannot_be_written_is_one_clear_line(build_model, whisper_dir, batches, tmp_path, monkeypatch):
    def full(*args):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("espnet_llmst.encoder.cache.save_file", full)
    with pytest.raises(InputError, match="feats/.*No space left.*make room, or take model_conf.cache_encoder away"):
        train(build_model, whisper_dir, batches, cache_encoder=str(tmp_path / "feats"))


def test_a_trained_encoder_is_refused(build_model, batches, tmp_path):
    model = build_model(model_conf={"cache_encoder": str(tmp_path / "feats")})  # LoRA on the encoder
    with pytest.raises(InputError, match="the encoder is trained"):
        model(**batches[0])
