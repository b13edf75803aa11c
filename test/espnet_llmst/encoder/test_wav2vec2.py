"""wav2vec 2.0, HuBERT and WavLM: parity with plain transformers, independence of the batch, adapters, sizes."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from espnet_llmst.cli import InputError
from espnet_llmst.encoder import wav2vec2
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.lora import set_train_mode, set_trainable

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = [(kind, stable) for kind in wav2vec2.MODEL_TYPES for stable in (True, False)]
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def make_dir(tiny_models, tmp_path_factory):
    """A tiny checkpoint of a variant, made once; the large kind normalises the waveform, the base kind does not."""
    made = {}

    def make(kind="wav2vec2", stable=True, vocab_size=None):
        key = (kind, stable, vocab_size)
        if key not in made:
            torch.manual_seed(3)
            directory = tmp_path_factory.mktemp(kind)
            model = tiny_models.new_wav2vec2(32, 3, 4, vocab_size, kind, stable)
            with torch.no_grad():  # biases and norms that do nothing would hide mistakes
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            model.save_pretrained(directory)
            tiny_models.wav2vec2_features(stable, stable).save_pretrained(directory)
            made[key] = str(directory)
        return made[key]

    return make


@pytest.fixture(scope="module")
def speech():
    """Waveforms with an offset, so that normalisation matters; the third is shorter than one frame."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9001, 16000, 300, 5117])
    waves = 0.3 * torch.randn(4, 16000, generator=generator) + 0.1
    return waves * (torch.arange(16000) < lengths[:, None]), lengths


def reference(directory: str, wave: torch.Tensor, **options):
    """What plain transformers makes of one utterance."""
    features = Wav2Vec2FeatureExtractor.from_pretrained(directory)
    inputs = features(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(directory).eval()(inputs["input_values"], **options)


@pytest.mark.parametrize(("kind", "stable"), VARIANTS)
def test_single_utterance_equals_transformers(make_dir, speech, kind, stable):
    wave = speech[0][0, :9001]
    states, lengths, _ = HuggingFaceEncoder(make_dir(kind, stable)).eval()(wave[None], torch.tensor([9001]))
    expected = reference(make_dir(kind, stable), wave).last_hidden_state
    assert lengths.tolist() == [expected.size(1)]
    torch.testing.assert_close(states, expected, **CLOSE)


@pytest.mark.parametrize(("kind", "stable"), VARIANTS)
def test_batch_equals_single(make_dir, speech, kind, stable):
    encoder = HuggingFaceEncoder(make_dir(kind, stable)).eval()
    waves, lengths = speech
    batch, out_lengths, _ = encoder(waves, lengths)
    assert batch.isfinite().all()
    for row, (wave, length) in enumerate(zip(waves, lengths, strict=True)):
        alone, alone_length, _ = encoder(wave[None, :length], length[None])
        assert alone_length == out_lengths[row] == alone.size(1)
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", wav2vec2.MODEL_TYPES)
def test_head_of_a_ctc_checkpoint_is_dropped(make_dir, speech, kind):
    directory, wave = make_dir(kind, True, 40), speech[0][1]
    encoder = HuggingFaceEncoder(directory).eval()
    assert not any("lm_head" in name for name, _ in encoder.named_parameters())
    states, _, _ = encoder(wave[None], torch.tensor([16000]))
    torch.testing.assert_close(states, reference(directory, wave).last_hidden_state, **CLOSE)


def test_ctc_model_reads_the_same_states(make_dir, speech):
    directory, wave = make_dir(vocab_size=40), speech[0][1]
    model = Wav2Vec2ForCTC.from_pretrained(directory).eval()
    states, _, _ = HuggingFaceEncoder(directory).eval()(wave[None], torch.tensor([16000]))
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(directory)(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(model.lm_head(states), model(inputs["input_values"]).logits, **CLOSE)


def test_layer_norm_batch_equals_transformers_with_attention_mask(make_dir, speech):
    waves, lengths = speech[0][[0, 1, 3]], speech[1][[0, 1, 3]]
    features = Wav2Vec2FeatureExtractor.from_pretrained(make_dir())
    rows = [wave[:length].numpy() for wave, length in zip(waves, lengths, strict=True)]
    inputs = features(rows, sampling_rate=16000, padding=True, return_tensors="pt")
    expected = AutoModel.from_pretrained(make_dir()).eval()(**inputs).last_hidden_state
    states, out_lengths, _ = HuggingFaceEncoder(make_dir()).eval()(waves, lengths)
    for row, length in enumerate(out_lengths.tolist()):
        torch.testing.assert_close(states[row, :length], expected[row, :length], **CLOSE)


@pytest.mark.parametrize(("kind", "stable"), VARIANTS)
def test_layer_is_that_hidden_state(make_dir, speech, kind, stable):
    wave = speech[0][1]
    expected = reference(make_dir(kind, stable), wave, output_hidden_states=True).hidden_states
    for layer in (0, 2, 3):
        encoder = HuggingFaceEncoder(make_dir(kind, stable), layer=layer).eval()
        assert len(encoder.encoder.encoder.layers) == layer
        states, _, _ = encoder(wave[None], torch.tensor([16000]))
        torch.testing.assert_close(states, expected[layer], **CLOSE)


def test_layer_of_whisper(whisper_dir):
    wave = torch.randn(1, 32000, generator=torch.Generator().manual_seed(1))
    encoder = HuggingFaceEncoder(whisper_dir, pad_to_30s=True, layer=1).eval()
    states, lengths, _ = encoder(wave, torch.tensor([32000]))
    mel = encoder.features(wave[0].numpy(), sampling_rate=16000, return_tensors="pt").input_features
    expected = AutoModel.from_pretrained(whisper_dir).encoder.eval()(mel, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(states, expected[:, :100], **CLOSE)
    assert lengths.tolist() == [100]


def test_lengths_follow_the_convolutions(make_dir):
    model = AutoModel.from_pretrained(make_dir())
    assert wav2vec2.shortest_input(model.config) == 400
    samples = torch.tensor([400, 719, 720, 16000, 480000])
    assert wav2vec2.frame_lengths(samples, model.config).tolist() == [1, 1, 2, 49, 1499]
    for count in samples[:4].tolist():
        made = model.feature_extractor(torch.zeros(1, count)).size(2)
        assert wav2vec2.frame_lengths(torch.tensor([count]), model.config).item() == made


def test_waveform_is_normalised_over_its_own_samples(speech, tiny_models):
    waves, lengths = speech
    normal = wav2vec2.normalise(waves + 7.0, lengths)
    features = tiny_models.wav2vec2_features()
    for wave, length, row in zip(waves, lengths, normal, strict=True):
        expected = features(wave[:length].numpy(), sampling_rate=16000, return_tensors="pt").input_values[0]
        torch.testing.assert_close(row[:length], expected, atol=1e-4, rtol=1e-4)
        assert not row[length:].any()


def test_normalisation_is_the_feature_extractors_choice(make_dir, speech):
    wave, length = speech[0][1:2], torch.tensor([16000])
    encoder = HuggingFaceEncoder(make_dir()).eval()
    expected = encoder(wave, length)[0]
    encoder.features.do_normalize = False
    torch.testing.assert_close(encoder(wav2vec2.normalise(wave, length), length)[0], expected, **CLOSE)
    assert not torch.allclose(encoder(wave, length)[0], expected, atol=1e-3)


@pytest.mark.parametrize("stable", [True, False])
def test_frozen_tower_has_no_gradient_and_no_noise(make_dir, speech, stable):
    encoder = HuggingFaceEncoder(make_dir("wav2vec2", stable))
    expected = encoder.eval()(*speech)[0]
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    encoder.train()
    set_train_mode(encoder)
    encoder.encoder.config.layerdrop = 1.0
    states, _, _ = encoder(*speech)
    assert not states.requires_grad
    torch.testing.assert_close(states, expected, atol=0, rtol=0)


def test_trained_tower_gets_gradients_everywhere(make_dir, speech):
    encoder = HuggingFaceEncoder(make_dir()).train()
    encoder(*speech)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", wav2vec2.MODEL_TYPES)
def test_lora_acts_and_gets_gradients(make_dir, speech, kind):
    encoder = HuggingFaceEncoder(make_dir(kind), lora=LORA)
    plain = HuggingFaceEncoder(make_dir(kind)).eval()(*speech)[0]
    torch.testing.assert_close(encoder.eval()(*speech)[0], plain, **CLOSE)  # B starts as zero
    adapted = {name.rsplit(".lora_A", 1)[0] for name, _ in encoder.named_parameters() if ".lora_A" in name}
    assert any(name.endswith("attention.q_proj") for name in adapted)
    assert not any("feature_extractor" in name or "pos_conv" in name for name in adapted)
    set_trainable(encoder, ["encoder.lora"])
    set_train_mode(encoder)
    encoder(*speech)[0].square().sum().backward()
    silent = [n for n, p in encoder.named_parameters() if p.requires_grad and ".lora_B" in n and not p.grad.any()]
    assert not silent
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".attention.q_proj.lora_B" in name:
                parameter.fill_(0.5)
    assert not torch.allclose(encoder.eval()(*speech)[0], plain, atol=1e-3)


def test_wavlm_can_be_copied(make_dir, speech):
    encoder = HuggingFaceEncoder(make_dir("wavlm")).eval()
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert twin(*speech)[0].abs().sum() > 0


def test_weight_norm_under_its_old_names(make_dir, speech, tmp_path):
    """The files on the hub were written before torch renamed the weights of the positional convolution."""
    encoder = HuggingFaceEncoder(make_dir("hubert")).eval()
    model = AutoModel.from_pretrained(make_dir("hubert"))
    model.save_pretrained(tmp_path)
    encoder.features.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in weights.items()
    }
    assert any(name.endswith("conv.weight_g") for name in old)
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(HuggingFaceEncoder(str(tmp_path)).eval()(*speech)[0], encoder(*speech)[0])


def test_missing_weights_are_one_clear_line(make_dir, tmp_path):
    AutoModel.from_pretrained(make_dir()).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"weights are missing, as encoder.layers.1.attention.k_proj.weight \(1"):
        HuggingFaceEncoder(str(tmp_path))


def test_settings_that_do_not_fit_are_one_clear_line(make_dir, tmp_path):
    with pytest.raises(InputError, match="pad_to_30s is for Whisper"):
        HuggingFaceEncoder(make_dir(), pad_to_30s=True)
    with pytest.raises(InputError, match="layer=4: must lie between 0 and 3"):
        HuggingFaceEncoder(make_dir(), layer=4)
    AutoModel.from_pretrained(make_dir()).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="reads 8000 Hz"):
        HuggingFaceEncoder(str(tmp_path))


def test_bfloat16_weights(make_dir, speech):
    states, _, _ = HuggingFaceEncoder(make_dir("wavlm"), dtype="bfloat16").eval()(*speech)
    assert states.dtype == torch.bfloat16 and states.isfinite().all()


def test_ctc_tokenizer_and_processor(tiny_models, tmp_path):
    sentences = ["Où est la gare ?", "Das Haus ist groß."]
    tokenizer = tiny_models.wav2vec2_tokenizer(sentences, str(tmp_path))
    assert tokenizer.pad_token_id == 0 and tokenizer.word_delimiter_token == "|"
    Wav2Vec2Processor(tiny_models.wav2vec2_features(), tokenizer).save_pretrained(tmp_path)
    again = Wav2Vec2Processor.from_pretrained(tmp_path)
    for sentence in sentences:
        ids = again.tokenizer(sentence).input_ids
        assert again.tokenizer.unk_token_id not in ids
        blanks = [number for token in ids for number in (token, 0)]
        assert again.batch_decode([blanks]) == [sentence]


def test_published_sizes():
    """wav2vec2-large-960h-lv60-self: ~315 M (LST); encoder of Whisper-large-v2: 32 layers of 1280 (LLaST)."""
    large = Wav2Vec2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    whisper = WhisperConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, num_mel_bins=80
    )
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in model.parameters()) for model in (Wav2Vec2Model(large), WhisperEncoder(whisper))
        ]
    # A layer: attention (Whisper's keys have no bias), feed-forward, two norms.
    wide, convolutions = 1280, 80 * 1280 * 3 + 1280 + 1280 * 1280 * 3 + 1280
    layer = 4 * wide**2 + 3 * wide + 2 * wide * 5120 + 5120 + wide + 4 * wide
    assert counts == [315_438_720, 32 * layer + convolutions + 1500 * wide + 2 * wide]
    assert round(counts[0] / 1e6) == 315 and round(counts[1] / 1e6) == 637
