"""The recipe from a corpus in its real layout to scores, with tiny models; its messages when a corpus is missing."""

import json
import os
import shutil
import subprocess

import pytest
import yaml
from corpus_fleurs import RECIPE, write_common_voice, write_corpus

REPO = RECIPE.parents[2]
DIRECTIONS = "en_us-de_de en_us-cmn_hans_cn"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe in a tree of its own: db.sh is the test's, everything else the real one."""
    root = tmp_path_factory.mktemp("repo")
    template = root / "egs2/TEMPLATE/llmst1"
    shutil.copytree(REPO / "egs2/TEMPLATE/llmst1", template)
    for name in ("fleurs", "covost2"):
        ignore = shutil.ignore_patterns("data", "dump", "exp", "downloads", "__pycache__")
        shutil.copytree(REPO / f"egs2/{name}/llmst1", root / f"egs2/{name}/llmst1", symlinks=True, ignore=ignore)
    for name in ("tools", "espnet_llmst"):
        (root / name).symlink_to(REPO / name)
    return root / "egs2/fleurs/llmst1"


def set_db(recipe, **roots):
    """Fill in db.sh."""
    path = recipe / "../../TEMPLATE/llmst1/db.sh"
    lines = [line for line in path.read_text().splitlines() if line.split("=")[0] not in roots]
    path.write_text("".join(f"{line}\n" for line in (*lines, *(f"{key}={value}" for key, value in roots.items()))))


def run(recipe, *options, fails=False):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI")}
    command = ["./run.sh", "--ngpu", "0", "--gpu_inference", "false", "--nj", "1", "--inference_nj", "1", *options]
    done = subprocess.run(
        command, cwd=recipe, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


@pytest.fixture
def tiny(recipe, whisper_dir, qwen2_dir):
    """A method of one phase at tiny size: FLEURS is translated, Common Voice transcribed."""
    phase = yaml.safe_load((recipe / "conf/llm_srt_3b/3_srt.yaml").read_text())
    phase["encoder_conf"] = {"model": whisper_dir}
    phase["postencoder_conf"] = {"num_queries": 4, "num_layers": 2, "width": 32, "heads": 2, "ffn": 64}
    phase["decoder_conf"] = {"model": qwen2_dir}
    phase |= {"trainable": ["postencoder"], "init_from": None, "model_conf": {"autocast": "float32"}}
    phase |= {"batch_size": 4, "max_epoch": 1, "num_workers": 0}
    phase["mixture"] = [{"task": "srt", "directions": DIRECTIONS.split()}, {"task": "asr", "langs": ["en"]}]
    (recipe / "conf/tiny").mkdir(exist_ok=True)
    (recipe / "conf/tiny/1_srt.yaml").write_text(yaml.safe_dump(phase))
    (recipe / "conf/decode_tiny.yaml").write_text("beam_size: 1\nmax_new_tokens: 5\n")
    return ["--method", "tiny", "--inference_config", "conf/decode_tiny.yaml"]


def test_stages_1_to_8(recipe, tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    set_db(recipe, FLEURS=write_corpus(root / "FLEURS"), COMMONVOICE=write_common_voice(root / "cv"))
    out = run(recipe, *tiny, "--stage", "1", "--stop_stage", "8")
    assert "test.en_us-cmn_hans_cn: 4 utterances" in out
    for direction, count in zip(DIRECTIONS.split(), (3, 4), strict=True):
        decode = recipe / f"exp/tiny/1_srt/decode_tiny/test.{direction}"
        scores = json.loads((decode / "scores.json").read_text())
        assert scores["n"] == count and scores["BLEU"]["signature"].startswith("nrefs:1|")
        assert json.loads((decode / "scores_asr.json").read_text())["n"] == count
    assert sorted(path.name for path in (recipe / "dump/raw").glob("*.en")) == ["dev.en", "train.en"]
    mixed = (recipe / "dump/mix/tiny/1_srt/train/utt2task").read_text().splitlines()
    assert sorted({line.split(" ", 1)[1] for line in mixed}) == [
        "asr en en",
        "srt en_us cmn_hans_cn",
        "srt en_us de_de",
    ]
    before = {path: path.stat().st_mtime_ns for path in (recipe / "data").rglob("*") if path.is_file()}
    run(recipe, *tiny, "--stage", "1", "--stop_stage", "1")
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("roots", "options", "message"),
    [
        ({"FLEURS": ""}, [], "data.sh: error: FLEURS is not set: write its root into db.sh"),
        ({"FLEURS": "/nowhere"}, [], "data.sh: error: FLEURS=/nowhere: no such folder; correct db.sh"),
        (
            {"FLEURS": "/tmp", "COMMONVOICE": ""},
            [],
            "COMMONVOICE is not set, but llm_srt_3b transcribes Common Voice (en de fr ru ja zh-CN): set its root in "
            "db.sh, or take --method llm_srt_3b_fleurs",
        ),
        ({"FLEURS": "/tmp", "COMMONVOICE": ""}, ["--method", "llm_srt_3b_fleurs"], "/tmp: no folder en_us"),
        ({"FLEURS": ""}, ["--local_data_opts", "--fleurs /nowhere"], "FLEURS=/nowhere: no such folder"),
    ],
)
def test_missing_corpora_are_one_clear_line(recipe, tmp_path, roots, options, message):
    roots = {key: str(tmp_path) if value == "/tmp" else value for key, value in roots.items()}
    set_db(recipe, **roots)
    error = run(recipe, *options, "--stage", "1", "--stop_stage", "1", "--expdir", "exp_none", fails=True)
    assert message.replace("/tmp", str(tmp_path)) in error and "Traceback" not in error
