"""run.sh of MuST-C on a small corpus with tiny random models: stages 1 to 8 end with scores of every test set."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from corpus_must_c import RECIPE, V2, entries, write_corpus, write_tables, write_talk

REPO = RECIPE.parents[2]
CPU = ["--ngpu", "0", "--gpu_inference", "false", "--nj", "1", "--inference_nj", "1"]


def tiny_lst(wav2vec2: str, llama: str) -> dict:
    """Phase 1 of LST with models of a few thousand weights."""
    conf = yaml.safe_load((RECIPE / "conf/lst_7b_en-de/1_modality_adjustment.yaml").read_text())
    conf["encoder_conf"] = {"model": wav2vec2}
    conf["postencoder_conf"] |= {"channels": 16}
    conf["decoder_conf"] |= {"model": llama, "dtype": "float32"}
    return conf | {"model_conf": {"autocast": "float32"}, "batch_size": 2, "accum_grad": 1, "max_epoch": 1}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, wav2vec2_dirs, llama_dir):
    """A copy of the recipe beside the real TEMPLATE and tools, with a corpus, its db.sh and a method of one phase."""
    root = tmp_path_factory.mktemp("repo")
    folder = root / "egs2/must_c/llmst1"
    ignore = shutil.ignore_patterns("data", "dump", "exp", "downloads", "__pycache__")
    shutil.copytree(RECIPE, folder, symlinks=True, ignore=ignore)
    (root / "egs2/TEMPLATE").symlink_to(REPO / "egs2/TEMPLATE")
    for name in ("tools", "espnet_llmst"):
        (root / name).symlink_to(REPO / name)
    (folder / "db.sh").unlink()
    (folder / "db.sh").write_text(f"MUST_C='{spoil(write_corpus(root / 'MuST-C', form=V2))}'\n")
    (folder / "conf/tiny").mkdir()
    phase = tiny_lst(wav2vec2_dirs["wav2vec2"], llama_dir)
    (folder / "conf/tiny/1_modality_adjustment.yaml").write_text(yaml.safe_dump(phase))
    (folder / "conf/decode_tiny.yaml").write_text("beam_size: 2\nmax_new_tokens: 5\n")
    return folder


def spoil(root: Path) -> Path:
    """In train a missing talk and a repeated segment; in tst-COMMON no transcript, 20 ms, and the end of the talk."""
    train, test = (root / "en-de/data" / split for split in ("train", "tst-COMMON"))
    numbers = [*range(7), 0]  # the last repeats the first
    texts = {"en": [f"Sentence {i}." for i in numbers], "de": [f"Satz {i}." for i in numbers]}
    write_tables(train, [*entries(1, 3), *entries(12, 3), *entries(99, 1), *entries(1, 1)], texts, form=V2)
    write_talk(test / "wav/ted_22.wav", 6.0)
    segments = entries(22, 3)
    segments[1]["duration"] = 0.02
    segments[2]["duration"] = 9.0
    write_tables(test, segments, {"en": ["", "(Laughter)", "Sentence 2."]}, form=V2)
    return root


def run(recipe, *options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI")}
    command = ["./run.sh", "--method", "tiny", "--inference_config", "conf/decode_tiny.yaml", *CPU, *options]
    done = subprocess.run(
        command, cwd=recipe, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(recipe):
    return run(recipe, "--stage", "1", "--stop_stage", "8")


def test_every_test_set_is_scored_whole(recipe, finished):
    for name, count in (("tst-COMMON.en-de", 3), ("tst-HE.en-de", 3)):
        decode = recipe / f"exp/tiny/1_modality_adjustment/decode_tiny/{name}"
        assert json.loads((decode / "scores.json").read_text())["n"] == count
        hyps = (decode / "1best_recog/text").read_text().split("\n")[:-1]
        refs = (recipe / f"dump/raw/{name}/text.tc.de").read_text().split("\n")[:-1]
        assert [line.split()[0] for line in hyps] == [line.split()[0] for line in refs]
        assert name in (recipe / "exp/RESULTS.md").read_text()


def test_stage_1_tells_what_it_found(recipe, finished):
    assert "en-de: MuST-C v2 or v3" in finished
    assert "dropped 2 (duplicate_segment 1, missing_audio 1), clamped 0" in finished
    mixed = (recipe / "dump/mix/tiny/1_modality_adjustment/train/utt2task").read_text().split("\n")[:-1]
    assert len(mixed) == 6 and mixed[0] == "st.en-de.spk.1-ted_1-train.de-000001 st en de"


def test_again_nothing_is_done(recipe, finished):
    def times():
        return {path: path.stat().st_mtime_ns for path in recipe.rglob("*") if path.is_file()}

    before = times()
    run(recipe)
    assert times() == before


def test_without_tst_he_the_rest_is_scored(recipe, finished):
    """A release that lacks it, beside the first: run.sh asks for tst-COMMON alone."""
    root = recipe.parents[2] / "MuST-C"
    away = root / "tst-HE"
    (root / "en-de/data/tst-HE").rename(away)
    shutil.rmtree(recipe / "data/tst-HE.en-de")
    try:
        out = run(recipe, "--stage", "1", "--stop_stage", "3", "--force", "true", "--dumpdir", "dump_without")
    finally:
        away.rename(root / "en-de/data/tst-HE")
    assert "tst-HE.en-de: not in this release" in out
    assert sorted(path.name for path in (recipe / "dump_without/raw").iterdir()) == [
        "dev.en-de",
        "train.en-de",
        "tst-COMMON.en-de",
    ]
