"""CoVoST-2's recipe on a small corpus with the faults of the real one: stages 1 to 8 end with scores for all of test.

Method: LLaST at tiny size with random models, transcripts as augmentation, two sources and two kinds of target.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from corpus_covost2 import Corpus, dropped, read

REPO = Path(__file__).resolve().parents[3]
DIRECTIONS = ("sv-SE-en", "en-zh-CN")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Swedish and English: 9 clips to train on and 3 each of dev and test, of them some spoiled."""
    root = tmp_path_factory.mktemp("common_voice")
    made = {}
    for src, tgt in (("sv-SE", "en"), ("en", "zh-CN")):
        made[src] = corpus = Corpus(root, src, (tgt,))
        corpus.clips[0][f"translation.{tgt}"] = "[TO REMOVE]"
        corpus.clips[6][f"translation.{tgt}"] = ""
        corpus.clips[7]["sentence"] = '"Phrase'
        for split in ("train", "train", "train", "train", "train", "dev", "test"):
            corpus.add(split)
        corpus.write(seconds=0.6)
        corpus.clip(1).write_bytes(b"")
    return made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, corpora, whisper_dir, llama_dir):
    """A copy of the recipe with one more method, and Common Voice in db.sh."""
    root = tmp_path_factory.mktemp("repo")
    folder = root / "egs2/covost2/llmst1"
    ignore = shutil.ignore_patterns("data", "dump", "exp", "__pycache__")
    shutil.copytree(REPO / "egs2/covost2/llmst1", folder, symlinks=True, ignore=ignore)
    (root / "egs2/TEMPLATE").symlink_to(REPO / "egs2/TEMPLATE")
    for name in ("tools", "espnet_llmst"):
        (root / name).symlink_to(REPO / name)
    (folder / "db.sh").unlink()
    (folder / "db.sh").write_text(f"COMMONVOICE={corpora['en'].root}\nCOVOST2=\n")
    (folder / "conf/tiny").mkdir()
    phase = {
        "encoder": "hugging_face",
        "encoder_conf": {"model": whisper_dir, "lora": {"r": 4, "alpha": 8}},
        "postencoder": "mlp",
        "postencoder_conf": {"num_layers": 3},
        "decoder": "causal_lm",
        "decoder_conf": {"model": llama_dir, "lora": {"r": 4, "alpha": 8}},
        "trainable": ["postencoder", "encoder.lora", "decoder.lora"],
        "prompt": "conf/prompt/llast_chatml.yaml",
        "mixture": [{"task": "st", "directions": list(DIRECTIONS)}, {"task": "asr", "langs": ["sv-SE", "en"]}],
        "optim": "adamw",
        "optim_conf": {"lr": 1.0e-3},
        "batch_type": "sorted",
        "batch_size": 8,
        "max_epoch": 1,
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "loss", "min"]],
    }
    (folder / "conf/tiny/1_st.yaml").write_text(yaml.safe_dump(phase))
    return folder


def run(recipe, *options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI")}
    small = ["--ngpu", "0", "--gpu_inference", "false", "--nj", "1", "--inference_nj", "1"]
    command = ["./run.sh", "--method", "tiny", *small, "--inference_args", "--max_new_tokens 5", *options]
    return subprocess.run(command, cwd=recipe, capture_output=True, text=True, env=environment)


def test_stages_1_to_8(recipe, corpora):
    done = run(recipe, "--stage", "1", "--stop_stage", "8")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for direction, src in zip(DIRECTIONS, ("sv-SE", "en"), strict=True):
        utt, tgt = corpora[src].utt, corpora[src].tgts[0]
        train, test = recipe / f"dump/raw/train.{direction}", recipe / f"dump/raw/test.{direction}"
        reasons = {utt(0): "placeholder_text", utt(1): "empty_audio"}
        assert dropped(recipe / f"data/train.{direction}") == reasons and len(read(train / "wav.scp")) == 7
        assert list(read(test / f"text.tc.{tgt}")) == [utt(6), utt(7), utt(15)]  # with an empty reference
        (decode,) = recipe.glob(f"exp/tiny/1_st/decode_beam5*/test.{direction}")
        scores = json.loads((decode / "scores.json").read_text())
        assert scores["n"] == 3 and f"tok:{'zh' if tgt == 'zh-CN' else '13a'}" in scores["BLEU"]["signature"]
        assert f"test.{direction}" in (recipe / "exp/RESULTS.md").read_text()
    tasks = (recipe / "dump/mix/tiny/1_st/train/utt2task").read_text().splitlines()
    assert sorted({line.split(" ", 1)[1] for line in tasks}) == [
        "asr en en",
        "asr sv-SE sv-SE",
        "st en zh-CN",
        "st sv-SE en",
    ]
    assert len(tasks) == 28


def test_without_db_sh_one_clear_line(recipe):
    (recipe / "db.sh").rename(recipe / "db.kept")
    (recipe / "db.sh").write_text("COMMONVOICE=\nCOVOST2=\n")
    done = run(recipe, "--stage", "1", "--stop_stage", "1", "--force", "true")
    (recipe / "db.kept").replace(recipe / "db.sh")
    assert done.returncode != 0 and "Set COMMONVOICE (and COVOST2, the translation tables) in db.sh" in done.stderr
