"""The recipe from a clone to scores, its models trained in stage 4 at tiny size; its messages without a corpus."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from corpus_mboshi import copy_recipe, write_corpus

TINY = {
    "whisper_mdw": {"size": {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}, "vocab_size": 280},
    "marian_mdw_fr": {"size": {"width": 16, "layers": 1, "heads": 2, "ffn": 32, "dropout": 0.1}, "vocab_size": 60},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return copy_recipe(tmp_path_factory.mktemp("repo"))


def run(recipe, corpus, *options, fails=False):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI", "MBOSHI_FRENCH")}
    if corpus:
        environment["MBOSHI_FRENCH"] = str(corpus)
    command = ["./run.sh", "--nj", "1", "--num_threads", "1", "--inference_nj", "1", *options]
    done = subprocess.run(
        command, cwd=recipe, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def shrink(path: Path, **changes):
    """Change settings of a YAML file in place."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_stages_1_to_8(recipe, tmp_path_factory):
    corpus = write_corpus(tmp_path_factory.mktemp("clone"))
    for name, changes in TINY.items():
        shrink(recipe / f"conf/foundation/{name}.yaml", steps=2, batch_size=4, autocast="float32", **changes)
    connector = {"num_layers": 1, "width": 16, "heads": 2, "ffn": 32, "channels": 16, "kernel_sizes": [5]}
    phase = recipe / "conf/aligned_ecd/1_align.yaml"
    shrink(phase, postencoder_conf=connector, max_epoch=1, num_workers=0)
    shrink(recipe / "conf/decode_beam5.yaml", max_new_tokens=5)
    options = ["--method", "aligned_ecd", "--local_data_opts", "--num_valid 4", "--speed_perturb_factors", "1.0 1.1"]
    out = run(recipe, corpus, *options)
    assert "translations of test that occur in the corpus's train: 2" in out
    assert "Mboshi-French train: 24 utterances, -4592 against the published 4616" in out
    assert "whisper_mdw: WER on test (mdw)" in out and "marian_mdw_fr: BLEU on test.mdw-fr (fr)" in out
    decode = recipe / "exp/aligned_ecd/1_align/decode_beam5/test.mdw-fr"
    scores = json.loads((decode / "scores.json").read_text())
    assert scores["n"] == 6 and {name: group["n"] for name, group in scores["groups"].items()} == {
        "seen": 2,
        "unseen": 4,
    }
    assert json.loads((decode / "scores_shuffled.json").read_text())["n"] == 6
    assert (recipe / "dump/feats").is_dir()


@pytest.mark.parametrize(
    ("corpus", "options", "message"),
    [
        ("", [], "data.sh: error: MBOSHI_FRENCH is not set: write the folder of its clone into db.sh"),
        ("/nowhere", [], "data.sh: error: MBOSHI_FRENCH=/nowhere: no such folder"),
        ("downloads", ["--local_data_opts", "--url /nowhere/clone"], "/nowhere/clone cannot be cloned"),
    ],
)
def test_missing_corpora_are_one_clear_line(recipe, corpus, options, message):
    common = ["--method", "aligned_ecd", "--stage", "1", "--stop_stage", "1", "--expdir", "exp_none"]
    error = run(recipe, corpus, *common, *options, fails=True)
    assert message in error and "Traceback" not in error


def test_a_clone_is_made_by_git(recipe, tmp_path):
    """MBOSHI_FRENCH=downloads: here from a repository next door."""
    corpus = write_corpus(tmp_path / "origin")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(corpus), *command], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI")}
    for _ in range(2):  # the second time it is there
        done = subprocess.run(
            ["local/data.sh", "--url", f"file://{corpus}", "--num_valid", "4", "--nj", "1", "--force", "true"],
            cwd=recipe,
            capture_output=True,
            text=True,
            env=environment | {"MBOSHI_FRENCH": "downloads"},
        )
        assert done.returncode == 0, done.stderr
    assert "cloning" not in done.stdout and (recipe / "downloads/origin/full_corpus_newsplit/dev").is_dir()
