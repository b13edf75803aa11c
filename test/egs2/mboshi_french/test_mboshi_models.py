"""Trainings of the recipe's foundation models: a few updates on a few utterances; our parts read what they leave."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from corpus_mboshi import LOCAL, load, write_corpus
from transformers import AutoTokenizer

from espnet_llmst.asr import Transcriber
from espnet_llmst.cli import InputError
from espnet_llmst.datadir.format_audio import format_data_dir
from espnet_llmst.encoder.espnet_asr import ESPnetASREncoder
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.prompt import load_tokenizer

RECIPE = LOCAL.parent
TINY_ESPNET = {"width": 16, "layers": 1, "heads": 2, "decoder_layers": 1, "input_layer": "conv1d2"}
TINY_ESPNET |= {"hop_length": 320, "ctc_weight": 0.6, "dropout": 0.1, "units": 24, "kernel": 5}
TINY_WHISPER = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Stages 1 and 3."""
    root = tmp_path_factory.mktemp("mboshi")
    load("prepare_mboshi_french").prepare_mboshi_french(write_corpus(root / "clone"), root / "data", num_valid=4)
    for split in ("train", "dev", "test"):
        format_data_dir(root / f"data/{split}.mdw-fr", root / f"raw/{split}.mdw-fr")
    return root / "raw"


@pytest.fixture
def make(dump, tmp_path, monkeypatch):
    """Train the model of a YAML by its script's own ``train_one``."""
    monkeypatch.chdir(RECIPE)

    def make(name, **changes):
        conf = yaml.safe_load(Path(f"conf/foundation/{name}.yaml").read_text())
        conf |= {"steps": 2, "batch_size": 4, "autocast": "float32", **changes}
        config, out = tmp_path / "model.yaml", tmp_path / "exp/foundation" / name
        config.write_text(yaml.safe_dump(conf))
        argv = ["--model_config", str(config), "--dump_dir", str(dump), "--splits", "train", "dev", "test"]
        load("training").run_training("trains", load(f"train_{conf['kind']}").train_one, [*argv, "--out_dir", str(out)])
        entries = json.loads((out / "eval.json").read_text())
        return out, {(entry["metric"], entry["set"]): entry["n"] for entry in entries}

    return make


def test_recogniser(make):
    """Encoder states at 25 per second; transformers' own generate reads the model as one of one language."""
    out, scores = make("whisper_mdw", size=TINY_WHISPER, vocab_size=280)
    assert scores == {("WER", "dev (mdw)"): 4, ("WER", "test (mdw)"): 6}
    states, lengths, _ = HuggingFaceEncoder(str(out)).eval()(torch.randn(1, 16000), torch.tensor([16000]))
    assert states.shape == (1, 25, 16) and lengths.tolist() == [25]
    assert len(Transcriber(str(out), beam_size=1)([torch.randn(16000).numpy()], "mdw")) == 1
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("wa sωndω mú", add_special_tokens=False)["input_ids"]) == "wa sωndω mú"


def test_recogniser_learns(make):
    """Its loss falls to where the recordings, a tone for each sentence, are known by heart."""
    module = load("train_recogniser")
    losses = []
    original = module.loss_function
    module.loss_function = lambda *args: lambda batch: losses.append(original(*args)(batch)) or losses[-1]
    try:
        make("whisper_mdw", size=TINY_WHISPER | {"width": 32}, vocab_size=280, steps=60, batch_size=10, lr=0.01)
    finally:
        module.loss_function = original
    assert losses[-1] < 0.7 * losses[0]


def test_recogniser_after_other_speech(make, dump):
    """Another recipe's sets come first; without them one line says so."""
    pretrain = {"dump_dir": str(dump), "split": "dev", "languages": ["mdw"], "steps": 1}
    make("whisper_mdw_synth", size=TINY_WHISPER, vocab_size=280, pretrain=pretrain)
    with pytest.raises(InputError, match="no fr speech; run stages 1 to 3"):
        make("whisper_mdw_synth", size=TINY_WHISPER, pretrain=pretrain | {"languages": ["fr"]})


def test_recogniser_of_espnet(make):
    """A state is of 40 ms; pieces come from transcripts without capitals."""
    out, scores = make("ebranchformer_mdw", size=TINY_ESPNET, vocab_size=40)
    assert scores == {("WER", "dev (mdw)"): 4, ("WER", "test (mdw)"): 6}
    states, _, _ = ESPnetASREncoder(model=str(out)).eval()(torch.randn(1, 16000), torch.tensor([16000]))
    assert states.shape[1:] == (24, 16)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model_conf"]["ctc_weight"] == 0.6 and config["frontend_conf"]["hop_length"] == 320
    assert not any(letter.isupper() for token in config["token_list"][1:-1] for letter in token.strip("<>"))


def test_untrained_recogniser(make):
    out, _ = make("whisper_mdw_untrained", steps=0, size=TINY_WHISPER, vocab_size=280)
    assert HuggingFaceEncoder(str(out)).output_size() == 16


def test_transcripts_are_lower_case_without_punctuation():
    spoken = load("train_recogniser").spoken
    assert spoken("Kyéma, yeékirá  «Ikóó»! s’ éléngé") == "kyéma yeékirá ikóó s' éléngé"


@pytest.mark.parametrize("name", ["llama_mdw_fr", "qwen2_mdw_fr"])
def test_language_models(make, name):
    tiny = {"size": {"width": 16, "layers": 1, "heads": 2}, "vocab_size": 400, "sentences": 20}
    out, scores = make(name, **tiny)
    assert scores == {("BLEU", f"{name}.mdw-fr from gold transcripts"): n for name, n in (("dev", 4), ("test", 6))}
    assert load_tokenizer(str(out)).decode(load_tokenizer(str(out))("les enfants")["input_ids"]).endswith("les enfants")


def test_a_language_model_writes_its_target_alone(make):
    """Mboshi or English is read, French is written; transcripts are repeated."""
    module = load("train_causal_lm")
    seen = []
    original = module.encode
    module.encode = lambda *args: seen.append(args[2:]) or original(*args)
    try:
        tiny = {"size": {"width": 16, "layers": 1, "heads": 2}, "vocab_size": 400, "sentences": 20}
        make("llama_mdw_fr", steps=20, noise=0.0, **tiny)
    finally:
        module.encode = original
    assert {seen_tgt for task, _, seen_tgt, _ in seen if task == "st"} == {"fr"}
    assert {src for task, src, _, _ in seen if task == "st"} == {"mdw", "en"}
    assert all(src == tgt for task, src, tgt, _ in seen if task == "asr")


def test_translator(make):
    tiny = {"width": 16, "layers": 1, "heads": 2, "ffn": 32, "dropout": 0.1}
    out, scores = make("marian_mdw_fr", size=tiny, vocab_size=60)
    assert scores == {("BLEU", f"{name}.mdw-fr (fr) from gold transcripts"): n for name, n in (("dev", 4), ("test", 6))}
    assert json.loads((out / "config.json").read_text())["dropout"] == 0.1


class Letters:
    """A tokenizer of letters; those of the target are negative."""

    pad_token_id = 0

    def __call__(self, texts=None, text_target=None):
        sign = 1 if text_target is None else -1
        return {"input_ids": [[sign * ord(letter) for letter in text] for text in texts or text_target]}


def test_translator_batches():
    """Pairs come among their equals in length, each once a round; backwards every other time of the first updates."""
    import random

    pairs = [("a" * length, "b" * length) for length in range(20, 60)]
    conf = {"steps": 10, "both_ways": 0.4, "similar_lengths": True, "noise": 0.0, "batch_size": 8}
    batches = load("train_translator").make_batches(pairs, Letters(), conf, random.Random(0))
    read = [next(batches) for _ in range(10)]
    assert [bool((batch["ids"] < 0).any()) for batch in read] == [step in (1, 3) for step in range(10)]
    assert all(bool((batch["labels"] == -ord("b")).any()) == (i not in (1, 3)) for i, batch in enumerate(read))
    lengths = [batch["mask"].sum(1).tolist() for batch in read]
    assert sorted(sum(lengths[:5], [])) == sorted(sum(lengths[5:], [])) == list(range(20, 60))
    assert all(max(found) < 1.6 * min(found) for found in lengths)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_one_line(make):
    with pytest.raises(InputError, match="device: cuda, but no GPU is to be seen here"):
        make("ebranchformer_mdw", device="cuda")


def test_batches_of_similar_lengths():
    """Every example once a round, in another order each time; a batch spans little more than the tenth of chance."""
    import random

    lengths = [*range(100, 200)]
    batches = load("training").similar_lengths(lengths, 8, random.Random(0))
    rounds = [[next(batches) for _ in range(13)] for _ in range(2)]
    assert all(sorted(sum(found, [])) == list(range(100)) for found in rounds) and rounds[0] != rounds[1]
    assert rounds[0] != sorted(rounds[0], key=min)
    widest = max(max(lengths[i] for i in batch) / min(lengths[i] for i in batch) for batch in rounds[0])
    assert 1.1 < widest < 1.4


def test_noise():
    import random

    noisy = load("training").noisy
    text = "kyéma yeékirá ikóó wó adí sωndω " * 30
    assert noisy(text, 0.0, random.Random(0)) == text
    changed = noisy(text, 0.1, random.Random(0))
    assert changed == noisy(text, 0.1, random.Random(0)) != text and 0.9 < len(changed) / len(text) < 1.0


def test_sentences_like_a_recognisers(make):
    import random

    heard, text, letters = load("training").heard, "Wó twεrε, ya poo yá bísí. " * 40, "xyz"
    plain = load("training").spoken(text)
    assert heard(text, {}, letters, random.Random(0)) == text
    assert heard(text, {"plain": 1.0}, letters, random.Random(0)) == plain
    rng = random.Random(0)
    assert 60 < sum(heard(text, {"plain": 0.8}, letters, rng) == plain for _ in range(100)) < 95
    swapped = heard(text, {"plain": 1.0, "swaps": 0.1}, letters, random.Random(0))
    changes = [new for old, new in zip(plain, swapped, strict=True) if old != new]
    assert set(changes) == set(letters) and 0.05 < len(changes) / len(plain) < 0.15
    make("marian_mdw_fr", size={"width": 16, "layers": 1, "heads": 2, "ffn": 32}, vocab_size=60, plain=0.8, swaps=0.05)
