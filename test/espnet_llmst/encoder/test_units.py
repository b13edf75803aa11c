"""Discrete units as encoder: nearest centroids, merged runs, the learned table, bad input."""

import pytest
import torch

from espnet_llmst.cli import InputError
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.encoder.units import UnitEncoder
from espnet_llmst.kmeans import write_units
from espnet_llmst.lora import set_trainable

LAYER = 1


@pytest.fixture(scope="module")
def speech():
    """Noise that changes its colour now and then; the third utterance is shorter than one frame."""
    generator = torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(4, 16000, generator=generator)
    waves *= 1 + 9 * (torch.arange(16000) // 3000 % 2)
    lengths = torch.tensor([9001, 16000, 300, 5117])
    return waves * (torch.arange(16000) < lengths[:, None]), lengths


@pytest.fixture(scope="module")
def states(wav2vec2_dirs, speech):
    """States of each utterance alone (T, D)."""
    encoder = HuggingFaceEncoder(wav2vec2_dirs["hubert"], layer=LAYER).eval()
    with torch.no_grad():
        return [encoder(w[None, :n], n[None])[0][0] for w, n in zip(*speech, strict=True)]


@pytest.fixture
def build(wav2vec2_dirs, units_dir):
    def build(**changes):
        encoder = UnitEncoder(**{"model": wav2vec2_dirs["hubert"], "layer": LAYER, "kmeans": units_dir} | changes)
        set_trainable(encoder, ["table"])
        return encoder

    return build


def test_states_become_their_nearest_centroids(build, speech, states):
    encoder = build(deduplicate=False)
    vectors, lengths, _ = encoder(*speech)
    assert lengths.tolist() == [len(one) for one in states] and encoder.output_size() == 32
    for row, length, one in zip(vectors, lengths, states, strict=True):
        nearest = (one[:, None] - encoder.centroids_KD).square().sum(-1).argmin(1)
        assert torch.equal(row[:length], encoder.centroids_KD[nearest])


def test_runs_are_merged(build, speech):
    every, merged = build(deduplicate=False).units(*speech), build().units(*speech)
    assert sum(map(len, merged)) < sum(map(len, every))
    for long, short in zip(every, merged, strict=True):
        rest = [unit for i, unit in enumerate(long.tolist()) if i == 0 or unit != long[i - 1]]
        assert short.tolist() == rest


def test_batch_equals_single(build, speech):
    encoder = build().eval()
    batch, lengths, _ = encoder(*speech)
    assert batch.shape == (4, lengths.max(), 32)
    for row, wave, size, length in zip(batch, *speech, lengths, strict=True):
        alone, alone_length, _ = encoder(wave[None, :size], size[None])
        assert alone_length == length and torch.equal(row[:length], alone[0])


def test_units_do_not_depend_on_the_precision(build, speech):
    encoder = build()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder.units(*speech)
    assert all(torch.equal(one, other) for one, other in zip(mixed, encoder.units(*speech), strict=True))


def test_only_the_table_gets_gradients(build, speech):
    encoder = build().train()
    encoder(*speech)[0].square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == ["table.weight"]
    assert encoder.table.weight.grad.any()
    set_trainable(encoder, ["speech", "table"])
    with pytest.raises(InputError, match="instead of 'encoder' give 'encoder.table'"):
        encoder(*speech)


def test_table_of_another_width_is_always_the_same(build, speech):
    one, other = build(width=12), build(width=12)
    assert one.output_size() == 12 and torch.equal(one.table.weight, other.table.weight)
    assert one(*speech)[0].size(2) == 12
    assert torch.equal(build().table.weight, build().centroids_KD)


def test_checkpoint_holds_the_table_alone(build_model, wav2vec2_dirs, units_dir):
    conf = {"model": wav2vec2_dirs["hubert"], "layer": LAYER, "kmeans": units_dir}
    settings = {"encoder": "units", "encoder_conf": conf, "trainable": ["encoder.table", "postencoder"]}
    model = build_model(**settings)
    state = model.state_dict()
    assert [name for name in state if name.startswith("encoder.")] == ["encoder.table.weight"]
    state["encoder.table.weight"] = state["encoder.table.weight"] + 1.0
    again = build_model(**settings)
    again.load_state_dict(state)
    assert torch.equal(again.encoder.table.weight, model.encoder.table.weight + 1.0)


def test_units_of_something_else_are_refused(build, wav2vec2_dirs, units_dir, tmp_path):
    with pytest.raises(InputError, match="units of layer 1 of .*not of layer 2"):
        build(layer=2)
    with pytest.raises(InputError, match="units of layer 1 of .*hubert"):
        build(model=wav2vec2_dirs["wavlm"])
    with pytest.raises(InputError, match="centroids.safetensors is missing"):
        build(kmeans=str(tmp_path / "none"))
    write_units(tmp_path / "wide", torch.randn(4, 7), {"model": wav2vec2_dirs["hubert"], "layer": LAYER})
    with pytest.raises(InputError, match="centroids are 7 wide, the states of .* 32"):
        build(kmeans=str(tmp_path / "wide"))
