"""The encoder of an ESPnet ASR experiment: equal to ESPnet's own model, and independent of the batch."""

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet_llmst.asr import load_transcriber
from espnet_llmst.asr_espnet import ESPnetTranscriber
from espnet_llmst.cli import InputError
from espnet_llmst.encoder.espnet_asr import CLASSES, ESPnetASREncoder, get_class
from espnet_llmst.lora import set_train_mode
from espnet_llmst.train.fsdp import keep_all_layers

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TOKENS = ["<blank>", "<unk>", *"abc", "<sos/eos>"]
CONFORMER = {"output_size": 16, "attention_heads": 4, "num_blocks": 2, "linear_units": 32, "macaron_style": True}
BRANCHFORMER = {"output_size": 16, "attention_heads": 4, "num_blocks": 2, "cgmlp_linear_units": 32}
TRANSFORMER = {"output_size": 16, "attention_heads": 4, "num_blocks": 2, "linear_units": 32}
LEGACY = {"rel_pos_type": "legacy"}
INTERCTC = {"interctc_layer_idx": [1]}
ENCODERS = [
    ("conformer", CONFORMER | {"rel_pos_type": "latest"}),
    ("conformer", CONFORMER | LEGACY),
    ("conformer", CONFORMER | {"rel_pos_type": "latest", "positionwise_layer_type": "conv1d"} | INTERCTC),
    ("branchformer", BRANCHFORMER | {"merge_method": "learned_ave"}),
    ("e_branchformer", BRANCHFORMER | {"input_layer": "conv2d6"}),
    ("e_branchformer", BRANCHFORMER | {"input_layer": "conv1d3"}),
    ("e_branchformer", BRANCHFORMER | {"attention_layer_type": "selfattn", "pos_enc_layer_type": "conv"}),
    ("transformer", TRANSFORMER | {"input_layer": "conv2d8"}),
    ("transformer", TRANSFORMER | {"input_layer": "linear"}),
]


@pytest.fixture(scope="module")
def write_experiment(tiny_models, tmp_path_factory):
    """An experiment with random weights: an E-Branchformer, or the encoder of ESPnet's that is named."""

    def write(encoder=None, encoder_conf=None, **changes):
        torch.manual_seed(4)
        directory = tmp_path_factory.mktemp("asr")
        config = tiny_models.espnet_asr_config(TOKENS, 16, 2, 4) | changes
        model = tiny_models.new_espnet_asr(config)
        if encoder:
            config |= {"encoder": encoder, "encoder_conf": encoder_conf}
            model.encoder = get_class(config, directory, "encoder", None)(input_size=80, **encoder_conf)
        with torch.no_grad():  # zero biases and unit norms would hide mistakes
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        tiny_models.save_espnet_asr(model, config, str(directory))
        return model.eval(), directory

    return write


@pytest.fixture(scope="module")
def speech():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9001, 16000, 15999, 12345, 700])
    waves = 0.1 * torch.randn(5, 16000, generator=generator)
    return waves * (torch.arange(16000) < lengths[:, None]), lengths


@pytest.mark.parametrize(("name", "conf"), [(None, None), *ENCODERS])
def test_single_utterance_equals_espnet(write_experiment, speech, name, conf):
    model, directory = write_experiment(name, conf)
    encoder = ESPnetASREncoder(model=str(directory)).eval()
    for wave, length in zip(speech[0][:4], speech[1][:4], strict=True):
        with torch.no_grad():
            expected, expected_lengths = model.encode(wave[None, :length].clone(), length[None])
        expected = expected[0] if isinstance(expected, tuple) else expected
        states, lengths, _ = encoder(wave[None, :length], length[None])
        assert lengths.tolist() == expected_lengths.tolist() == [states.size(1)]
        torch.testing.assert_close(states, expected, **CLOSE)
    assert encoder.output_size() == states.size(2) == 16


@pytest.mark.parametrize(("name", "conf"), [(None, None), *ENCODERS])
def test_batch_equals_single(write_experiment, speech, name, conf):
    encoder = ESPnetASREncoder(model=str(write_experiment(name, conf)[1])).eval()
    waves, lengths = speech
    batch, out_lengths, _ = encoder(waves, lengths)
    assert batch.isfinite().all() and batch.size(1) == out_lengths.max()
    for row, (wave, length) in enumerate(zip(waves, lengths, strict=True)):
        alone, alone_length, _ = encoder(wave[None, :length], length[None])
        assert alone_length == out_lengths[row] == alone.size(1)
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-4)


def test_conv2d_gives_25_states_per_second(write_experiment):
    encoder = ESPnetASREncoder(model=str(write_experiment()[1])).eval()
    _, lengths, _ = encoder(torch.zeros(1, 160000), torch.tensor([160000]))
    assert lengths.item() == 249  # 1001 frames of 10 ms, two convolutions of kernel 3 and stride 2


def test_too_short_an_utterance_gives_one_state(write_experiment):
    encoder = ESPnetASREncoder(model=str(write_experiment()[1])).eval()
    states, lengths, _ = encoder(0.1 * torch.randn(1, 300), torch.tensor([300]))
    assert lengths.tolist() == [1] and states.shape == (1, 1, 16) and states.isfinite().all()


def test_global_statistics_come_from_the_checkpoint(write_experiment, speech, tmp_path):
    values = np.random.default_rng(0).normal(3.0, 2.0, (50, 80))
    stats = tmp_path / "feats_stats.npz"
    np.savez(stats, count=50, sum=values.sum(0), sum_square=(values**2).sum(0))
    conf = {"stats_file": str(stats)}
    model, directory = write_experiment(normalize="global_mvn", normalize_conf=conf)
    stats.unlink()
    encoder = ESPnetASREncoder(model=str(directory)).eval()
    torch.testing.assert_close(encoder.normalize.mean, model.normalize.mean, atol=0, rtol=0)
    torch.testing.assert_close(encoder.normalize.std, model.normalize.std, atol=0, rtol=0)
    wave, length = speech[0][:1, :9001], speech[1][:1]
    with torch.no_grad():
        expected, _ = model.encode(wave.clone(), length)
    torch.testing.assert_close(encoder(wave, length)[0], expected, **CLOSE)


def test_experiment_without_normalisation_with_preencoder(write_experiment, speech):
    from espnet2.asr.preencoder.linear import LinearProjection

    model, directory = write_experiment(normalize_conf={"norm_means": False})
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config |= {"normalize": None, "normalize_conf": {}, "preencoder": "linear"}
    config["preencoder_conf"] = {"input_size": 80, "output_size": 80}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    model.preencoder = LinearProjection(80, 80).eval()
    torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
    wave, length = speech[0][:1, :9001], speech[1][:1]
    with torch.no_grad():
        expected, _ = model.encode(wave.clone(), length)
    states, _, _ = ESPnetASREncoder(model=str(directory)).eval()(wave, length)
    torch.testing.assert_close(states, expected, **CLOSE)


@pytest.fixture(scope="module")
def features_experiment(write_experiment):
    """A model of 43 features a frame, How2's filter banks and pitch, with global or utterance statistics."""
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    def write(normalize="utterance_mvn"):
        model, directory = write_experiment(normalize_conf={"norm_means": True})
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config |= {"frontend": None, "frontend_conf": {}, "input_size": 43, "normalize": normalize}
        model.frontend, model.encoder = None, EBranchformerEncoder(43, **config["encoder_conf"]).eval()
        if normalize == "global_mvn":
            from espnet2.layers.global_mvn import GlobalMVN

            stats = directory / "feats_stats.npz"
            values = np.random.default_rng(0).normal(3.0, 2.0, (50, 43))
            np.savez(stats, count=50, sum=values.sum(0), sum_square=(values**2).sum(0))
            config["normalize_conf"] = {"stats_file": str(stats)}
            model.normalize = GlobalMVN(stats)
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
        return model.eval(), str(directory)

    return write


@pytest.mark.parametrize("normalize", ["utterance_mvn", "global_mvn"])
def test_features_equal_espnet_and_rows_do_not_depend_on_the_batch(features_experiment, normalize):
    model, directory = features_experiment(normalize)
    encoder = ESPnetASREncoder(model=directory).eval()
    assert encoder.reads_features and encoder.output_size() == 16
    lengths = torch.tensor([120, 57, 99, 4])
    feats = torch.randn(4, 120, 43) * (torch.arange(120) < lengths[:, None])[..., None]
    before = feats.clone()
    batch, out_lengths, _ = encoder(feats, lengths)
    assert torch.equal(feats, before) and batch.isfinite().all()
    for row, (one, length) in enumerate(zip(feats, lengths, strict=True)):
        alone, alone_length, _ = encoder(one[None, :length], length[None])
        assert alone_length == out_lengths[row] == alone.size(1)
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-4)
        if length > 7:  # ESPnet refuses shorter ones
            with torch.no_grad():
                expected, _ = model.encode(one[None, :length].clone(), length[None])
            torch.testing.assert_close(alone, expected, **CLOSE)
    assert out_lengths[3] == 1


def test_waveforms_and_features_are_not_confused(features_experiment, write_experiment, speech):
    of_features = ESPnetASREncoder(model=features_experiment()[1]).eval()
    of_waveforms = ESPnetASREncoder(model=str(write_experiment()[1])).eval()
    length = torch.tensor([50])
    with pytest.raises(InputError, match="waveforms, but this encoder reads 43 features"):
        of_features(*speech)
    with pytest.raises(InputError, match="40 features a frame, but this encoder reads 43"):
        of_features(torch.zeros(1, 50, 40), length)
    with pytest.raises(InputError, match="43 features a frame, but this encoder reads waveforms"):
        of_waveforms(torch.zeros(1, 50, 43), length)
    assert not of_waveforms.reads_features


def test_frozen_encoder_has_no_gradient_and_no_noise(write_experiment, speech):
    encoder = ESPnetASREncoder(model=str(write_experiment()[1]))
    expected = encoder.eval()(*speech)[0]
    assert expected.requires_grad
    encoder.requires_grad_(False).train()
    set_train_mode(encoder)
    states = encoder(*speech)[0]
    assert not states.requires_grad
    torch.testing.assert_close(states, expected, atol=0, rtol=0)


def test_layer_drop_of_espnet_is_switched_off(write_experiment, speech):
    """Several processes would wait for each other; every layer gets a gradient then."""
    encoder = ESPnetASREncoder(model=str(write_experiment("conformer", CONFORMER | LEGACY)[1])).train()
    encoder.encoder.encoders.layer_drop_rate = 1.0
    for layer in encoder.encoder.encoders:
        layer.stochastic_depth_rate = 1.0
    keep_all_layers(encoder)
    encoder(*speech)[0].square().sum().backward()
    layers = [p.grad for name, p in encoder.named_parameters() if ".encoders." in name]
    assert layers and all(grad is not None and grad.isfinite().all() for grad in layers)


@pytest.mark.parametrize(("name", "conf"), [(None, None), ("conformer", CONFORMER | LEGACY)])
def test_trained_encoder_gets_gradients(write_experiment, speech, name, conf):
    encoder = ESPnetASREncoder(model=str(write_experiment(name, conf)[1])).train()
    encoder(*speech)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_speech_is_left_as_it_was(write_experiment, speech):
    waves, lengths = speech[0].clone(), speech[1].clone()
    ESPnetASREncoder(model=str(write_experiment()[1])).eval()(waves, lengths)
    assert torch.equal(waves, speech[0]) and torch.equal(lengths, speech[1])


def test_slow_task_is_not_imported(write_experiment):
    ESPnetASREncoder(model=str(write_experiment()[1]))
    assert "espnet2.tasks.asr" not in sys.modules


def test_what_espnet_prints_on_import_stays_off_stdout(tmp_path, monkeypatch, capsys):
    (tmp_path / "talkative.py").write_text("print('no flash_attn')\nclass Encoder: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CLASSES["encoder"], "talkative", "talkative:Encoder")
    assert get_class({"encoder": "talkative"}, tmp_path, "encoder", None).__name__ == "Encoder"
    printed = capsys.readouterr()
    assert printed.out == "" and "no flash_attn" in printed.err


def test_choice_of_the_weights(write_experiment, tmp_path):
    _, directory = write_experiment()
    weights, config = directory / "valid.acc.ave.pth", directory / "config.yaml"
    assert ESPnetASREncoder(asr_config=str(config), asr_model=str(weights)).output_size() == 16
    shutil.copy(config, tmp_path)
    torch.save({"a": 1}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"cannot choose among \*.pth \(none\)"):
        ESPnetASREncoder(model=str(tmp_path))
    shutil.copy(weights, tmp_path / "12epoch.pth")
    ESPnetASREncoder(model=str(tmp_path))
    shutil.copy(weights, tmp_path / "13epoch.pth")
    with pytest.raises(InputError, match="12epoch.pth, 13epoch.pth"):
        ESPnetASREncoder(model=str(tmp_path))
    (tmp_path / "valid.acc.best.pth").symlink_to("13epoch.pth")
    ESPnetASREncoder(model=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either model"),
        ({"asr_config": "config.yaml"}, "give either model"),
        ({"model": "asr", "asr_config": "c", "asr_model": "m"}, "give either model"),
        ({"asr_config": "no/config.yaml", "asr_model": "no/m.pth"}, "no/config.yaml: no such file"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        ESPnetASREncoder(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "rnn"}, "encoder 'rnn' is not supported: e_branchformer"),
        ({"frontend": "s3prl"}, "frontend 's3prl' is not supported: default"),
        ({"frontend": None}, "neither frontend nor input_size"),
        ({"frontend": None, "input_size": 43}, "weights do not fit"),
        ({"frontend_conf": {"fs": "8k"}}, "fs must be 16000"),
        ({"encoder_conf": {"interctc_use_conditioning": True}}, "read CTC output"),
        ({"encoder_conf": {"future_option": 1}}, "encoder cannot be built from encoder_conf.*future_option"),
        ({"normalize": "global_mvn", "normalize_conf": {"stats_file": "x"}}, "normalize cannot be built.*mean"),
        ({"encoder_conf": {"output_size": 16, "num_blocks": 1}}, "weights do not fit"),
    ],
)
def test_experiments_that_do_not_fit(write_experiment, changes, message):
    _, directory = write_experiment()
    config = yaml.safe_load((directory / "config.yaml").read_text()) | changes
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=message):
        ESPnetASREncoder(model=str(directory))


def test_file_that_is_no_model(write_experiment, tmp_path):
    _, directory = write_experiment()
    torch.save({"reporter": object}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"not a model's weights"):
        ESPnetASREncoder(asr_config=str(directory / "config.yaml"), asr_model=str(tmp_path / "checkpoint.pth"))


def test_tiny_model_trains(tiny_models, speech):
    torch.manual_seed(5)
    model = tiny_models.new_espnet_asr(tiny_models.espnet_asr_config(TOKENS, 16, 1, 4))
    text = torch.tensor([[2, 3, 4]]).repeat(2, 1)
    loss, _, _ = model(speech[0][:2].clone(), speech[1][:2], text, torch.tensor([3, 2]))
    loss.backward()
    assert loss.isfinite() and model.encoder.embed.conv[0].weight.grad.any()


def copy_experiment(directory, to, tokens=TOKENS, without="none"):
    """The experiment with other tokens, or without the weights of a part."""
    shutil.copytree(directory, to)
    config = yaml.safe_load((to / "config.yaml").read_text()) | {"token_list": tokens}
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    weights = torch.load(to / "valid.acc.ave.pth", weights_only=True)
    torch.save({k: v for k, v in weights.items() if not k.startswith(without)}, to / "valid.acc.ave.pth")
    return str(to)


def as_text(tokens, ids):
    said = {token: token.replace("<space>", " ").replace("▁", " ") for token in tokens[2:-1]}
    return " ".join("".join(said.get(tokens[i], "") for i in ids).split())


@pytest.mark.parametrize("tokens", [TOKENS, ["<blank>", "<unk>", "▁a", "b", "<space>", "<sos/eos>"]])
def test_without_decoder_a_cascade_hears_the_best_path_of_the_ctc_output(write_experiment, speech, tmp_path, tokens):
    model, directory = write_experiment()
    transcribe = load_transcriber(copy_experiment(directory, tmp_path / "asr", tokens, without="decoder"))
    waves = [wave[:length] for wave, length in zip(speech[0][:4], speech[1][:4], strict=True)]
    expected = []
    for wave in waves:
        with torch.no_grad():
            states, _ = model.encode(wave[None].clone(), torch.tensor([len(wave)]))
        expected.append(as_text(tokens, model.ctc.argmax(states)[0].unique_consecutive().tolist()))
    assert transcribe([wave.numpy() for wave in waves], "xx") == expected
    assert any(expected)


def log_probabilities(model, states, ids):
    """Of a token sequence, by attention decoder and CTC output, each from ESPnet's model as a whole."""
    ids, frames = torch.tensor([ids], dtype=torch.long), torch.tensor([states.size(1)])
    into = torch.nn.functional.pad(ids, (1, 0), value=model.sos)
    logits, _ = model.decoder(states, frames, into, torch.tensor([into.size(1)]))
    out = torch.nn.functional.pad(ids, (0, 1), value=model.eos)
    attention = logits.log_softmax(-1).gather(2, out[..., None]).sum().item()
    log_probs = model.ctc.log_softmax(states).transpose(0, 1)
    ctc = -torch.nn.functional.ctc_loss(log_probs, ids, frames, torch.tensor([ids.size(1)]), reduction="sum").item()
    return attention, ctc


@pytest.mark.parametrize(("ctc_weight", "without"), [(0.3, "none"), (0.0, "ctc")])
def test_a_cascade_searches_by_decoder_and_ctc_output_together(write_experiment, speech, tmp_path, ctc_weight, without):
    tokens = ["<blank>", "<unk>", *"abcdefgh", "<sos/eos>"]
    model, directory = write_experiment(token_list=tokens)
    with torch.no_grad():  # surer of itself and of short texts, so that the beam does not lose the best
        for output in (model.decoder.output_layer, model.ctc.ctc_lo):
            output.weight.mul_(3)
        model.decoder.output_layer.bias[-1] += 4
    torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
    transcribe = ESPnetTranscriber(copy_experiment(directory, tmp_path / "asr", tokens, without=without))
    letters = range(1 if ctc_weight else 0, len(tokens) - 1)  # CTC writes no blanks
    short = [ids for size in range(3) for ids in itertools.product(letters, repeat=size)]
    for wave, length in zip(speech[0][:2], (3000, 5000), strict=True):
        with torch.no_grad():
            states, _ = model.encode(wave[None, :length].clone(), torch.tensor([length]))
            found = transcribe.search(states[0])[0]
            best = tuple(found.yseq[1:-1].tolist())
            scores = {}
            for ids in {*short, best}:
                attention, ctc = log_probabilities(model, states, ids)
                scores[ids] = (1 - ctc_weight) * attention + (ctc_weight * ctc if ctc_weight else 0)
        assert float(found.score) == pytest.approx(scores[best], abs=1e-3)
        assert best == max(scores, key=scores.get) != ()
        assert transcribe([wave[:length].numpy()], "xx") == [as_text(tokens, best)]


def test_a_cascade_needs_an_output_that_it_can_read_and_waveforms(write_experiment, features_experiment, tmp_path):
    _, directory = write_experiment()
    with pytest.raises(InputError, match=r"valid.acc.ave.pth has neither decoder nor CTC output; give another"):
        load_transcriber(copy_experiment(directory, tmp_path / "encoder", without=("ctc", "decoder")))
    transducer = Path(copy_experiment(directory, tmp_path / "transducer"), "config.yaml")
    transducer.write_text(transducer.read_text().replace("decoder: transformer", "decoder: transducer"))
    with pytest.raises(InputError, match="decoder 'transducer' is not supported: transformer"):
        load_transcriber(str(transducer.parent))
    unknown = Path(copy_experiment(directory, tmp_path / "unknown"), "config.yaml")
    settings = yaml.safe_load(unknown.read_text())
    unknown.write_text(yaml.safe_dump(settings | {"decoder_conf": {"squares": 2}}))
    with pytest.raises(InputError, match="decoder cannot be built from decoder_conf: .*squares"):
        load_transcriber(str(unknown.parent))
    with pytest.raises(InputError, match="reads features, but a cascade reads waveforms"):
        load_transcriber(features_experiment()[1])
