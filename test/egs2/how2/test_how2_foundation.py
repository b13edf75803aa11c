"""Stage 4 trains what the phases name, at tiny size: a recogniser, a translator, a translator that repeats English.

Expected: genuine model directories that our encoder and decoder load; a killed training goes on; other settings
are refused; features are read where the set has features.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from corpus_how2 import REPO, How2, copy_recipe, load

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.format_audio import format_data_dir
from espnet_llmst.datadir.format_features import format_feature_dir
from espnet_llmst.foundation import is_complete

CONF = REPO / "egs2/how2/llmst1/conf"
TINY_ENCODER = {"output_size": 16, "num_blocks": 1, "attention_heads": 2, "cgmlp_linear_units": 32, "linear_units": 32}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe after stage 3, with audio in dump and features in dump_feats, and its models made tiny."""
    root = tmp_path_factory.mktemp("repo")
    folder = copy_recipe(root)
    corpus = How2(root, pieces=2)
    corpus.all_audio()
    corpus.features()
    corpus.write()
    prepare = load("prepare_how2")
    for kind, dump in (("raw", "dump"), ("kaldi", "dump_feats")):
        for name in prepare.prepare_how2(corpus.root, folder / f"data_{kind}", feats_type=kind):
            form = format_data_dir if kind == "raw" else format_feature_dir
            form(folder / f"data_{kind}" / name, folder / dump / "raw" / name)
    return folder


@pytest.fixture
def in_recipe(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    return recipe


def shrink(name: str, **changes) -> dict:
    """The settings of a shipped YAML, of tiny size; changed in the copy, so that the script reads them."""
    settings = yaml.safe_load((CONF / f"foundation/{name}.yaml").read_text())
    train = settings["train"] | {"batch_size": 4, "accum_grad": 1, "max_epoch": 1, "num_workers": 0}
    if settings["kind"] == "asr":
        train["encoder_conf"] |= TINY_ENCODER
        train["decoder_conf"] |= {"num_blocks": 1, "attention_heads": 2, "linear_units": 32}
        settings["vocab_size"] = 40
    else:
        settings |= {"beam_size": 1, "vocab_size": 60} | ({} if "model" in settings else {"dropout": 0.0})
        settings |= {"size": {"width": 16, "layers": 1, "heads": 2, "ffn": 32}} if "size" in settings else {}
    settings |= {"train": train, "ngpu": 0} | changes
    Path(f"conf/foundation/{name}.yaml").write_text(yaml.safe_dump(settings))
    return settings


def train(name: str, kind: str, dump: str = "dump") -> Path:
    module, out = load(f"train_{kind}"), Path("exp/foundation") / name
    argv = ["--model_config", f"conf/foundation/{name}.yaml", "--dump_dir", f"{dump}/raw", "--out_dir", str(out)]
    module.run_training("", module.train_one, [*argv, "--splits", "train", "val", "dev5"])
    assert is_complete(out) and not out.with_name(f"{name}.work").exists()
    return out


def test_every_model_that_a_phase_names_has_a_yaml():
    phases = [yaml.safe_load(path.read_text()) for path in CONF.glob("*/[0-9]*.yaml")]
    parts = [phase.get(part) or {} for phase in phases for part in ("encoder_conf", "decoder_conf")]
    named = {part["model"] for part in parts if "model" in part}
    local = {Path(name).name for name in named if name.startswith("exp/foundation/")}
    assert local == {path.stem for path in (CONF / "foundation").glob("*.yaml")} and len(local) == 5


def test_recogniser_on_audio(in_recipe):
    from espnet_llmst.encoder.espnet_asr import ESPnetASREncoder

    shrink("ebranchformer_small")
    out = train("ebranchformer_small", "asr")
    encoder = ESPnetASREncoder(model=str(out)).eval()
    states, lengths, _ = encoder(torch.zeros(1, 16000), torch.tensor([16000]))
    assert states.shape == (1, 24, 16) and lengths.tolist() == [24] and not encoder.reads_features
    results = json.loads((out / "eval.json").read_text())
    assert [(r["set"], r["n"], r["metric"]) for r in results] == [("val.en-pt", 2, "WER"), ("dev5.en-pt", 4, "WER")]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["bpemodel"] == "exp/foundation/ebranchformer_small/bpe.model" and Path(config["bpemodel"]).exists()
    assert config["token_list"][0] == "<blank>" and config["token_list"][-1] == "<sos/eos>"
    assert not any(
        character in token for token in config["token_list"][1:-1] for character in ".,;N" if token != "<unk>"
    )


def test_recogniser_on_features_goes_on_after_a_kill(in_recipe, monkeypatch):
    from espnet_llmst.encoder.espnet_asr import ESPnetASREncoder

    shrink("ebranchformer_medium")
    module = load("train_asr")
    with monkeypatch.context() as patch:
        patch.setattr(module, "recognise", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("ebranchformer_medium", "asr", "dump_feats")
    work = Path("exp/foundation/ebranchformer_medium.work")
    trained = (work / "exp/valid.acc.ave.pth").resolve()
    weights = torch.load(trained, weights_only=True)
    out = train("ebranchformer_medium", "asr", "dump_feats")  # trains no further
    again = torch.load(out / "valid.acc.ave.pth", weights_only=True)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    encoder = ESPnetASREncoder(model=str(out))
    assert encoder.reads_features and encoder.input_size == 43 and encoder.normalize is None


def test_other_settings_do_not_go_on(in_recipe, monkeypatch):
    shrink("ebranchformer_small")
    module = load("train_asr")
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_task", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("ebranchformer_small", "asr")
    shrink("ebranchformer_small", vocab_size=41)
    with pytest.raises(InputError, match="ebranchformer_small.work: was begun with other settings.*delete it"):
        train("ebranchformer_small", "asr")


def test_translators(in_recipe):
    from transformers import AutoModelForSeq2SeqLM

    from espnet_llmst.decoder.seq2seq_lm import Seq2SeqLMDecoder
    from espnet_llmst.prompt import encode_target, load_tokenizer

    shrink("marian_small")
    out = train("marian_small", "mt")
    assert Seq2SeqLMDecoder(str(out)).hidden_size == 16
    tokenizer = load_tokenizer(str(out))
    assert tokenizer.unk_token_id not in encode_target(tokenizer, "não se preocupe.")
    results = json.loads((out / "eval.json").read_text())
    assert [(r["n"], r["metric"]) for r in results] == [(2, "BLEU"), (4, "BLEU")]

    shrink("marian_small_en_en")
    repeating = train("marian_small_en_en", "mt")
    tokenizer = load_tokenizer(str(repeating))
    assert tokenizer.unk_token_id not in encode_target(tokenizer, "Now, don't worry.")
    first, second = (AutoModelForSeq2SeqLM.from_pretrained(path).state_dict() for path in (out, repeating))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(name.startswith("model.decoder.layers") for name in changed)


def test_set_missing(in_recipe):
    shrink("marian_small")
    module = load("train_mt")
    argv = ["--model_config", "conf/foundation/marian_small.yaml", "--dump_dir", "nowhere", "--out_dir", "exp/x"]
    with pytest.raises(InputError, match=r"nowhere/train\.en-\*: no such set; run stages 1 to 3"):
        module.run_training("", module.train_one, argv)


def test_spoken_form():
    spoken = load("train_asr").spoken
    assert spoken("Now, don’t worry: it's 2 o'clock -- O.K.?") == "now don't worry it's 2 o'clock o k"
    assert spoken("...") == ""
