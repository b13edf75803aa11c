"""``run.sh --stage 1 --stop_stage 8`` on a small How2, audio form, with tiny random models: scores for dev5."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from corpus_how2 import How2, copy_recipe

METHOD = {
    "encoder": "espnet_asr",
    "postencoder": "subsampler_transformer",
    "postencoder_conf": {"num_layers": 1, "width": 32, "heads": 4, "ffn": 32, "channels": 32, "kernel_sizes": [5, 5]},
    "decoder": "seq2seq_lm",
    "trainable": ["postencoder"],
    "prompt": "conf/prompt/aligned.yaml",
    "mixture": [{"task": "st", "directions": ["en-pt"]}],
    "optim": "adamw",
    "optim_conf": {"lr": 1.0e-3},
    "batch_type": "sorted",
    "batch_size": 4,
    "max_epoch": 1,
    "best_model_criterion": [["valid", "loss", "min"]],
    "keep_nbest_models": 1,
}


def run(recipe: Path, *options: str, fails: bool = False) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI", "HOW2")}
    done = subprocess.run(
        ["./run.sh", *options], cwd=recipe, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, espnet_asr_dir, marian_dir):
    root = tmp_path_factory.mktemp("repo")
    folder = copy_recipe(root)
    corpus = How2(root)
    corpus.all_audio()
    corpus.write()
    (folder / "conf/tiny").mkdir()
    models = {"encoder_conf": {"model": espnet_asr_dir}, "decoder_conf": {"model": marian_dir, "entry": "encoder"}}
    (folder / "conf/tiny/1_align.yaml").write_text(yaml.safe_dump(METHOD | models))
    return folder


def test_stages_1_to_8(recipe):
    corpus = recipe.parents[2] / "how2-300h-v1"
    options = ["--method", "tiny", "--ngpu", "0", "--nj", "1", "--inference_args", "--beam_size 2 --max_new_tokens 8"]
    printed = run(recipe, "--stage", "1", "--stop_stage", "8", "--local_data_opts", f"--corpus_dir {corpus}", *options)
    assert "data/dev5.en-pt: 8 utterances" in printed
    (decode,) = (recipe / "exp/tiny/1_align").glob("decode_beam5*/dev5.en-pt")
    scores = json.loads((decode / "scores.json").read_text())
    assert scores["n"] == 8 and scores["set"] == "dev5.en-pt"
    assert scores["BLEU"]["signature"].startswith("nrefs:1|")
    assert list(scores["buckets"]) == ["0-10s", "10-20s", "20s+"]
    hyps = (decode / "1best_recog/text").read_text().splitlines()
    refs = (recipe / "dump/raw/dev5.en-pt/text.tc.pt").read_text().splitlines()
    assert [line.split()[0] for line in hyps] == [line.split()[0] for line in refs]
    assert refs[0] == "how2_--Kd9sLw_2x_0 Agora, este é o passo 0; não se preocupe."
    assert len((recipe / "dump/mix/tiny/1_align/train/text").read_text().splitlines()) == 12
    foundation = json.loads((recipe / "exp/foundation.json").read_text())
    assert {entry["model_type"] for entry in foundation.values()} == {"espnet", "marian"}
    assert "dev5.en-pt" in (recipe / "exp/RESULTS.md").read_text()


def test_corpus_unset_is_one_clear_line(recipe):
    shutil.rmtree(recipe / "data", ignore_errors=True)
    error = run(recipe, "--method", "tiny", "--stage", "1", "--stop_stage", "1", fails=True)
    assert "HOW2 is not set" in error and "Traceback" not in error and len(error.splitlines()) == 1
