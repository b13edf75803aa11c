"""Trainings of the recipe's speech models: a few updates on a few utterances; the encoders read what they leave."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from local_modules import LOCAL, load
from safetensors import safe_open

from espnet_llmst.bin import llmst_foundation
from espnet_llmst.cli import InputError
from espnet_llmst.encoder.espnet_asr import ESPnetASREncoder
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.encoder.units import UnitEncoder
from espnet_llmst.scoring.results import collect_foundation

CONF = LOCAL.parent / "conf/foundation"
TINY = {"width": 32, "layers": 2, "heads": 4, "conv_width": 16}
SPEECH = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)), torch.tensor([16000])


@pytest.fixture
def make(dump_dir, tmp_path, monkeypatch):
    """Train the model of a YAML in three updates, by its script's own ``main``."""

    def make(yaml_name, name=None, **changes):
        conf = yaml.safe_load((CONF / f"{yaml_name}.yaml").read_text()) | {"languages": ["fr"], "batch_size": 2}
        conf |= {"steps": 3, "autocast": "float32", **changes}
        config = tmp_path / "model.yaml"
        config.write_text(yaml.safe_dump(conf))
        script, out = load(f"train_{conf['kind']}"), tmp_path / "exp/foundation" / (name or yaml_name)
        argv = ["--model_config", str(config), "--dump_dir", str(dump_dir), "--splits", "train", "dev", "none"]
        load("training").run_training("trains", script.train_one, [*argv, "--out_dir", str(out)])
        assert [path.name for path in out.parent.glob("*.tmp")] == []
        return out

    return make


def scores(directory):
    """The results beside a model, which RESULTS.md accepts."""
    entries = json.loads((directory / "eval.json").read_text())
    assert entries == [e for e in collect_foundation(directory.parents[1]) if e["model"] == directory.name]
    assert all(np.isfinite(entry["score"]) for entry in entries)
    return {(entry["metric"], entry["set"]): entry["n"] for entry in entries}


def test_wav2vec2_with_ctc(make):
    out = make("wav2vec2_en", size=TINY)
    assert scores(out) == {("WER", "dev (fr)"): 3}
    states, lengths, _ = HuggingFaceEncoder(str(out)).eval()(*SPEECH)
    assert states.shape == (1, 49, 32) and states.isfinite().all()
    with safe_open(out / "model.safetensors", "pt") as file:
        assert not any("guide" in name for name in file.keys()) and "lm_head.weight" in file.keys()


def test_self_supervised_wav2vec2(make):
    out = make("wav2vec2_ssl_en", size=TINY)
    assert scores(out) == {("contrastive accuracy", "dev (fr)"): 3}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Wav2Vec2ForPreTraining"]
    assert HuggingFaceEncoder(str(out)).eval()(*SPEECH)[0].shape == (1, 49, 32)


def test_hubert_and_its_units(make):
    out = make("hubert_fr", size=TINY, clusters=6)
    assert scores(out) == {("masked prediction accuracy", "dev (fr)"): 3}
    assert HuggingFaceEncoder(str(out)).eval()(*SPEECH)[0].shape == (1, 49, 32)
    units = make("hubert_fr_km100", model=str(out), layer=2, num_units=7)
    assert scores(units) == {("inertia per frame", "train (fr)"): 3}
    encoder = UnitEncoder(str(out), layer=2, kmeans=str(units))
    vectors, lengths, _ = encoder.requires_grad_(False)(*SPEECH)
    assert vectors.shape == (1, lengths.item(), 32) and lengths.item() <= 49


def test_same_seed_same_model(make):
    for name in ("wav2vec2_ssl_en", "hubert_fr"):
        small = {"size": TINY, "clusters": 6}
        one, other = (make(name, f"{name}{i}", **small) for i in range(2))
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["wav2vec2_ssl_en", "ebranchformer_en"])
def test_a_killed_training_goes_on_to_the_same_model(make, monkeypatch, name):
    written, small = "model.safetensors", {"size": TINY}
    if name == "ebranchformer_en":
        written, small = "valid.acc.ave.pth", {"size": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1}}
        small |= {"vocab_size": 20, "spec_augment": {"bands": 8, "frames": 8}}
    training, steps = load("training"), []
    whole = make(name, f"{name}_whole", **small)

    def save_and_die(*args, save=training.save_state):
        save(*args)
        steps.append(args[3])
        if steps == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", save_and_die)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        make(name, **small)
    killed = make(name, **small)
    assert steps == [1, 2, 3]
    assert (killed / written).read_bytes() == (whole / written).read_bytes()
    assert not [path.name for path in killed.iterdir() if path.name.startswith(("training", "settings"))]


def test_other_settings_begin_anew(tmp_path):
    begin, kept = load("training").begin, tmp_path / "model.tmp/training-1.pt"
    begin(kept.parent, {"steps": 1})
    for settings, stays in (({"steps": 1}, True), ({"steps": 2}, False)):
        kept.touch()
        begin(kept.parent, settings)
        assert kept.exists() == stays


def test_e_branchformer(make):
    size = {"width": 32, "layers": 1, "heads": 4, "decoder_layers": 1}
    out = make("ebranchformer_en", size=size, vocab_size=20)
    assert scores(out) == {("WER", "dev (fr)"): 3}
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["token_list"][:2] == ["<blank>", "<unk>"] and config["token_list"][-1] == "<sos/eos>"
    assert config["normalize"] == "global_mvn" and config["model_conf"]["ctc_weight"] == 0.3
    files = [config["bpemodel"], config["normalize_conf"]["stats_file"]]
    assert files == [str(out / "bpe.model"), str(out / "feats_stats.npz")] and all((out / f).exists() for f in files)
    encoder = ESPnetASREncoder(model=str(out)).eval()
    states, _, _ = encoder(*SPEECH)
    assert states.shape == (1, 24, 32) and states.isfinite().all()
    stats = np.load(out / "feats_stats.npz")
    torch.testing.assert_close(encoder.normalize.mean, torch.from_numpy(stats["sum"] / stats["count"]).float())


def test_masks_of_spec_augment_reach_the_model(tiny_models):
    config = tiny_models.espnet_asr_config(
        ["<blank>", "<unk>", "<sos/eos>"], 32, 1, 4, spec_augment={"bands": 30, "frames": 40}
    )
    torch.manual_seed(0)
    features, lengths = tiny_models.new_espnet_asr(config).specaug(torch.ones(2, 50, 80), torch.tensor([50, 50]))
    assert (features == 0).any() and (features == 1).any() and lengths.tolist() == [50, 50]


def test_guide_falls_while_the_convolutions_learn(tiny_models):
    waveforms = load("waveforms")
    torch.manual_seed(0)
    model = tiny_models.new_wav2vec2(**TINY)
    guide = waveforms.MelGuide(model.wav2vec2)
    waves = torch.randn(2, 16000) * torch.linspace(0.1, 3.0, 16000)
    optimizer = torch.optim.AdamW([*model.parameters(), *guide.parameters()], lr=0.003)
    errors = []
    for _ in range(12):
        model.wav2vec2(waves)
        errors.append(guide(waves))
        errors[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert errors[-1] < 0.7 * errors[0]


def test_faster_convolutions_compute_the_same(tiny_models):
    waveforms = load("waveforms")
    model = tiny_models.new_wav2vec2(**TINY, kind="hubert")
    expected = model.feature_extractor(SPEECH[0])
    waveforms.speed_up_convolutions(model)
    torch.testing.assert_close(model.feature_extractor(SPEECH[0]), expected)


def test_missing_speech_or_model_is_named(make):
    with pytest.raises(InputError, match="no es speech; run stages 1 to 3"):
        make("wav2vec2_ssl_en", size=TINY, languages=["es"])
    with pytest.raises(InputError, match="exp/foundation/none: no model there"):
        make("hubert_fr_km100", model="exp/foundation/none")


@pytest.fixture
def trainings(tmp_path):
    """A folder with local/foundation.sh whose trainings only write down when they begin and end, and their threads."""
    for folder in ("local", "conf/foundation", "utils", "exp/foundation"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("local/foundation.sh", "utils/parse_options.sh"):
        (tmp_path / name).write_bytes((LOCAL.parent / name).read_bytes())
    (tmp_path / "path.sh").write_text(f"python3() {{ '{sys.executable}' \"$@\"; }}\n")
    commands = """train_cmd=quiet cuda_cmd="quiet --cluster gpus"
quiet() { while [[ $1 == --* ]]; do echo "$1=$2" >> options; shift 2; done; local log=$1; shift; "$@" > "${log}"; }
"""
    (tmp_path / "cmd.sh").write_text(commands)
    training = """
import os, sys, time
threads = f"{os.environ['OMP_NUM_THREADS']} of {os.environ['FOUNDATION_THREADS']}"
def note(what):
    with open("order", "a") as file:
        file.write(f"{what} {os.path.basename(sys.argv[-1])} {threads}\\n")
note("begin")
time.sleep(0.5)
note("end")
print("x: WER on dev: 1.00")
"""
    for kind in ("speech", "units"):
        (tmp_path / f"local/train_{kind}.py").write_text(training)
    (tmp_path / "conf/foundation/speech.yaml").write_text("kind: speech\n")
    (tmp_path / "conf/foundation/other.yaml").write_text("kind: speech\n")
    (tmp_path / "conf/foundation/units.yaml").write_text("kind: units\nmodel: exp/foundation/speech  # before\n")
    return tmp_path


def order_of(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["bash", "local/foundation.sh", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("WER on dev") == 2
    return (folder / "order").read_text().splitlines()


@pytest.mark.parametrize("order", [("units", "speech"), ("speech", "units")])
def test_a_model_that_another_needs_is_made_first(trainings, order):
    lines = order_of(trainings, *(f"exp/foundation/{name}" for name in order))
    assert lines == ["begin speech 1 of 1", "end speech 1 of 1", "begin units 1 of 1", "end units 1 of 1"]


@pytest.mark.parametrize(("nj", "expected"), [("2", ["begin", "begin", "end", "end"]), ("1", ["begin", "end"] * 2)])
def test_models_are_made_side_by_side_on_one_thread_each(trainings, nj, expected):
    both = ["exp/foundation/speech", "exp/foundation/other"]
    lines = order_of(trainings, "--nj", nj, "--num_threads", "2", *both)
    assert [line.split()[0] for line in lines] == expected
    assert all(line.endswith("1 of 2") for line in lines)


def test_a_training_that_is_alone_takes_all_threads(monkeypatch):
    take, before = load("training").take_threads, torch.get_num_threads()

    def seen(step, alone_after):
        take(step, alone_after)
        return torch.get_num_threads()

    try:
        monkeypatch.delenv("FOUNDATION_THREADS", raising=False)
        assert seen(5, 0) == before
        monkeypatch.setenv("FOUNDATION_THREADS", "3")
        assert seen(5, None) == before
        assert [seen(step, 2) for step in (0, 1, 2, 3, 0)] == [1, 1, 3, 3, 1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wanted", ["device: cuda", "ngpu: 1   # the CPU where there is none"])
def test_a_model_whose_yaml_wants_a_gpu_gets_one(trainings, wanted):
    (trainings / "conf/foundation/other.yaml").write_text(f"kind: speech\n{wanted}\n")
    order_of(trainings, "--nj", "1", "exp/foundation/speech", "exp/foundation/other")
    options = (trainings / "options").read_text().split()
    assert options == ["--gpu=0", "--num_threads=1", "--cluster=gpus", "--gpu=1", "--num_threads=1"]


def test_units_are_among_the_models_of_a_phase(tmp_path, capsys, wav2vec2_dirs, units_dir):
    phase = tmp_path / "1_phase.yaml"
    encoder = {"model": f"{tmp_path}/hubert", "layer": 1, "kmeans": f"{tmp_path}/km"}
    phase.write_text(yaml.safe_dump({"encoder_conf": encoder, "decoder_conf": {"model": "org/llm"}}))
    llmst_foundation.main(["--train_config", str(phase), "--list_missing"])
    assert capsys.readouterr().out.split() == [f"{tmp_path}/hubert", f"{tmp_path}/km"]
    encoder |= {"model": wav2vec2_dirs["hubert"], "kmeans": units_dir}
    phase.write_text(yaml.safe_dump({"encoder_conf": encoder}))
    llmst_foundation.main(["--train_config", str(phase), "--out", str(tmp_path / "foundation.json")])
    assert json.loads((tmp_path / "foundation.json").read_text())[units_dir]["model_type"] == "kmeans"
