"""Units by k-means: choice of audio, clusters, files in place at once, bad input."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from espnet_llmst.bin import llmst_kmeans
from espnet_llmst.cli import InputError
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.kmeans import (
    choose_utterances,
    fit_units,
    gather_states,
    nearest_units,
    read_speech,
    read_units,
    write_units,
)


def command(dump_dir, model, out_dir, *more):
    sets = [str(dump_dir / f"train.{src}-en") for src in ("fr", "de")]
    return ["--model", model, "--layer", "1", "--data_dir", *sets, "--out_dir", str(out_dir), *more]


def test_command_makes_units_of_that_layer(wav2vec2_dirs, dump_dir, tmp_path, capsys):
    out = tmp_path / "units"
    llmst_kmeans.main(command(dump_dir, wav2vec2_dirs["hubert"], out, "--num_units", "8"))
    centroids, settings = read_units(out)
    assert centroids.shape == (8, 32) and settings["layer"] == 1 and settings["model"] == wav2vec2_dirs["hubert"]
    encoder = HuggingFaceEncoder(wav2vec2_dirs["hubert"], layer=1).eval()
    paths = choose_utterances([dump_dir / "train.fr-en", dump_dir / "train.de-en"], 10, 0)
    states = torch.from_numpy(gather_states(encoder, paths))
    assert len(states) == settings["frames"] == 2 * (49 + 74 + 27)
    inertia = torch.cdist(states, centroids).amin(1).square().mean()
    assert settings["inertia_per_frame"] == pytest.approx(inertia.item(), rel=1e-3)
    assert f"inertia per frame {settings['inertia_per_frame']:.4f}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if "units" in path.name] == ["units"]


def test_same_seed_same_units(wav2vec2_dirs, dump_dir, tmp_path):
    made = []
    for name in ("one", "two"):
        llmst_kmeans.main(command(dump_dir, wav2vec2_dirs["hubert"], tmp_path / name, "--num_units", "8"))
        made.append(read_units(tmp_path / name)[0])
    assert torch.equal(*made)


def test_hours_limit_the_audio_and_recordings_count_once(dump_dir):
    fr, de = dump_dir / "train.fr-en", dump_dir / "train.de-en"
    assert len(choose_utterances([fr, fr], 10, 0)) == 3
    assert len(choose_utterances([fr, de], 1.0 / 3600 * 0.5, 0)) == 1
    assert choose_utterances([fr, de], 10, 0) != choose_utterances([fr, de], 10, 1)


def test_clusters_are_found():
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    states = (means.repeat(50, 0) + 0.1 * rng.standard_normal((150, 2))).astype(np.float32)
    centroids, inertia = fit_units(states, 3, 0)
    assert inertia < 0.03
    units = nearest_units(torch.from_numpy(states).reshape(3, 50, 2), centroids)
    assert units.shape == (3, 50) and all(len(row.unique()) == 1 for row in units)
    assert len(units.unique()) == 3


def test_units_replace_older_ones(tmp_path):
    for number in (4, 6):
        write_units(tmp_path / "units", torch.randn(number, 5), {"model": "m", "layer": 2})
    centroids, settings = read_units(tmp_path / "units")
    assert centroids.shape == (6, 5)
    assert settings == {"model_type": "kmeans", "units": 6, "width": 5, "model": "m", "layer": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["units"]


def test_bad_input_is_named(wav2vec2_dirs, dump_dir, tmp_path, corpus_at_8_khz):
    with pytest.raises(InputError, match="utt2num_samples is missing|wav.scp is missing"):
        choose_utterances([tmp_path], 1, 0)
    with pytest.raises(InputError, match="no audio chosen"):
        choose_utterances([dump_dir / "train.fr-en"], 0, 0)
    with pytest.raises(InputError, match="--num_units 9: there are only 5 frames"):
        fit_units(np.zeros((5, 2), np.float32), 9, 0)
    with pytest.raises(InputError, match="8000 Hz"):
        read_speech(corpus_at_8_khz)
    with pytest.raises(InputError, match="missing_audio"):
        read_speech("/nowhere.flac")
    with pytest.raises(InputError, match="encoder_conf.layer=9"):
        llmst_kmeans.main(command(dump_dir, wav2vec2_dirs["hubert"], tmp_path / "u") + ["--layer", "9"])
    assert not (tmp_path / "u").exists()


def test_broken_units_are_refused(tmp_path):
    directory = tmp_path / "units"
    with pytest.raises(InputError, match="centroids.safetensors is missing: make the units by llmst_kmeans"):
        read_units(directory)
    write_units(directory, torch.randn(3, 2), {"model": "m", "layer": 1})
    (directory / "config.json").write_text(json.dumps({"units": 3}))
    with pytest.raises(InputError, match="not a directory of units"):
        read_units(directory)
    write_units(directory, torch.randn(3, 2), {"model": "m", "layer": 1})
    save_file(
        {"other": load_file(directory / "centroids.safetensors")["centroids"]}, directory / "centroids.safetensors"
    )
    with pytest.raises(InputError, match="not a directory of units"):
        read_units(directory)


@pytest.fixture
def corpus_at_8_khz(tmp_path):
    import soundfile

    path = tmp_path / "slow.wav"
    soundfile.write(path, np.zeros(800), 8000)
    return str(path)
