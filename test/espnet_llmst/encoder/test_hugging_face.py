"""Parity of our Whisper path with plain transformers, and independence of the batch."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperModel

from espnet_llmst.cli import InputError
from espnet_llmst.encoder import whisper
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder


@pytest.fixture
def speech():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([30000, 17001, 640, 22222])
    waves = torch.randn(4, 30000, generator=generator) * 0.1
    return waves * (torch.arange(30000) < lengths[:, None]), lengths


def test_padded_states_equal_transformers(whisper_dir, speech):
    waves, lengths = speech
    features = WhisperFeatureExtractor.from_pretrained(whisper_dir)
    reference = WhisperModel.from_pretrained(whisper_dir).encoder.eval()
    rows = [w[:n].numpy() for w, n in zip(waves, lengths, strict=True)]
    mel = features(rows, sampling_rate=16000, return_tensors="pt").input_features
    expected = reference(mel).last_hidden_state
    states, out_lengths, _ = HuggingFaceEncoder(whisper_dir, pad_to_30s=True).eval()(waves, lengths)
    assert out_lengths.tolist() == [n // 320 for n in lengths.tolist()]
    torch.testing.assert_close(states, expected[:, : states.size(1)], atol=1e-5, rtol=1e-5)


def test_log_mel_equals_feature_extractor(whisper_dir, speech):
    waves, _ = speech
    features = WhisperFeatureExtractor.from_pretrained(whisper_dir)
    expected = features(waves[0].numpy(), sampling_rate=16000, return_tensors="np").input_features[0]
    ours = whisper.log_mel(waves, 400, torch.tensor(features.mel_filters, dtype=torch.float32), 400, 160)[0]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("pad_to_30s", [False, True])
def test_batch_equals_single(whisper_dir, speech, pad_to_30s):
    encoder = HuggingFaceEncoder(whisper_dir, pad_to_30s=pad_to_30s).eval()
    waves, lengths = speech
    batch, out_lengths, _ = encoder(waves, lengths)
    for row, (wave, length) in enumerate(zip(waves, lengths, strict=True)):
        alone, alone_length, _ = encoder(wave[None, :length], length[None])
        assert alone_length == out_lengths[row]
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-4)


def test_frozen_on_a_cpu_equals_the_batch(whisper_dir, speech):
    """It goes one by one there; a batch is what a trained encoder (or a GPU) computes."""
    encoder = HuggingFaceEncoder(whisper_dir).eval()
    waves, lengths = speech
    batch, out_lengths, _ = encoder(waves, lengths)
    frozen, frozen_lengths, _ = encoder.requires_grad_(False)(waves, lengths)
    assert frozen_lengths.tolist() == out_lengths.tolist() and frozen.shape == batch.shape
    for row, length in enumerate(out_lengths.tolist()):
        torch.testing.assert_close(frozen[row, :length], batch[row, :length], atol=1e-5, rtol=1e-4)
    assert frozen[2, out_lengths[2] :].abs().sum() == 0  # padded after it was encoded


def test_unpadded_full_window_equals_padded(whisper_dir):
    wave = torch.randn(1, 64000, generator=torch.Generator().manual_seed(1))
    length = torch.tensor([64000])
    unpadded, _, _ = HuggingFaceEncoder(whisper_dir, pad_to_30s=False).eval()(wave, length)
    padded, _, _ = HuggingFaceEncoder(whisper_dir, pad_to_30s=True).eval()(wave, length)
    torch.testing.assert_close(unpadded, padded, atol=1e-5, rtol=1e-4)


def test_the_whole_window_on_demand(whisper_dir, speech):
    waves, lengths = speech
    whole, counts, _ = HuggingFaceEncoder(whisper_dir, pad_to_30s=True, attend_padding=True).eval()(waves, lengths)
    cut, real, _ = HuggingFaceEncoder(whisper_dir, pad_to_30s=True).eval()(waves, lengths)
    assert set(counts.tolist()) == {whole.size(1)} and whole.size(1) > real.max()
    torch.testing.assert_close(whole[:, : cut.size(1)], cut)
    with pytest.raises(InputError, match="attend_padding: needs pad_to_30s"):
        HuggingFaceEncoder(whisper_dir, attend_padding=True)


def test_speech_beyond_the_window_is_cut(whisper_dir):
    states, lengths, _ = HuggingFaceEncoder(whisper_dir).eval()(torch.randn(1, 90000), torch.tensor([90000]))
    assert states.shape == (1, 200, 32) and lengths.tolist() == [200]


def test_unknown_model_type_is_one_clear_line(llama_dir):
    with pytest.raises(InputError, match="'llama' models are not supported"):
        HuggingFaceEncoder(llama_dir)
