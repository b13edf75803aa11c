"""The whole recipe on 20 utterances: stages 1 to 8, again, decoding again, and bad input."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
SMALL = ["--local_data_opts", "--num_train 20 --num_dev 4 --num_test 6", "--train_args", "--max_epoch 1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe beside the real TEMPLATE and tools, with foundation models of a few steps."""
    root = tmp_path_factory.mktemp("repo")
    folder = root / "egs2/mini_st/llmst1"
    ignore = shutil.ignore_patterns("data", "dump", "exp", "downloads", "__pycache__")
    shutil.copytree(REPO / "egs2/mini_st/llmst1", folder, symlinks=True, ignore=ignore)
    (root / "egs2/TEMPLATE").symlink_to(REPO / "egs2/TEMPLATE")
    for name in ("tools", "espnet_llmst"):
        (root / name).symlink_to(REPO / name)
    for path in (folder / "conf/foundation").glob("*.yaml"):
        small = re.sub(
            r"(?m)^(steps|sentences): \d+", lambda m: f"{m[1]}: {4 if m[1] == 'steps' else 600}", path.read_text()
        )
        path.write_text(re.sub("vocab_size: 2000", "vocab_size: 700", small))
    return folder


def run(recipe, *options, fails=False):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI")}
    done = subprocess.run(
        ["./run.sh", *options], cwd=recipe, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout if not fails else done.stderr


def times(recipe):
    return {str(path.relative_to(recipe)): path.stat().st_mtime_ns for path in recipe.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(recipe):
    return run(recipe, "--stage", "1", "--stop_stage", "8", *SMALL)


def test_stages_1_to_8(recipe, finished):
    decode = recipe / "exp/llast/1_dual_lora/decode_beam5/test.fr-en"
    hyps = (decode / "1best_recog/text").read_text().splitlines()
    refs = (recipe / "dump/raw/test.fr-en/text.tc.en").read_text().splitlines()
    assert [line.split()[0] for line in hyps] == [line.split()[0] for line in refs] and len(refs) == 6
    for name in ("scores.json", "scores_shuffled.json"):
        scores = json.loads((decode / name).read_text())
        assert scores["n"] == 6 and scores["BLEU"]["signature"].startswith("nrefs:1|")
    assert "test.fr-en" in (recipe / "exp/RESULTS.md").read_text() and "test.fr-en" in finished
    foundation = json.loads((recipe / "exp/foundation.json").read_text())
    assert {entry["model_type"] for entry in foundation.values()} == {"whisper", "llama"}
    mixed = (recipe / "dump/mix/llast/1_dual_lora/train/utt2task").read_text().splitlines()
    assert len(mixed) == 40 and {line.split()[1] for line in mixed} == {"st", "asr"}
    trained = recipe / "exp/llast/1_dual_lora/valid.loss.best.pth"
    assert trained.stat().st_size < (recipe / "exp/foundation/llama/model.safetensors").stat().st_size


def test_running_again_touches_nothing(recipe, finished):
    before = times(recipe)
    run(recipe, *SMALL)
    assert times(recipe) == before


def test_starting_at_stage_7_decodes_again(recipe, finished):
    decode = "exp/llast/1_dual_lora/decode_beam5/test.fr-en"
    before = times(recipe)
    text = (recipe / decode / "1best_recog/text").read_text()
    run(recipe, "--stage", "7", "--stop_stage", "8", *SMALL)
    after = times(recipe)
    assert after[f"{decode}/decode.json"] > before[f"{decode}/decode.json"]
    assert after[f"{decode}/scores.json"] > before[f"{decode}/scores.json"]
    assert (recipe / decode / "1best_recog/text").read_text() == text


def test_changed_settings_do_not_reuse_a_trained_phase(recipe, finished):
    error = run(recipe, "--stage", "6", "--stop_stage", "6", "--train_args", "--max_epoch 2", fails=True)
    assert "with other settings (--train_args '--max_epoch 1', now '--max_epoch 2'): use --expdir" in error
    told = ["--train_args", "--max_epoch 1 --save_interval_iters 7 --num_workers 0"]  # which change no result
    assert "already trained" in run(recipe, "--stage", "6", "--stop_stage", "6", *told)


def test_a_changed_foundation_model_is_refused(recipe, finished):
    kept = recipe / "exp/llast/1_dual_lora/foundation.json"
    was = kept.read_text()
    kept.write_text(was.replace(json.loads(was)["exp/foundation/whisper_fr"], "0" * 64))
    for stage in "67":
        error = run(recipe, "--stage", stage, "--stop_stage", stage, *SMALL, fails=True)
        assert "exp/foundation/whisper_fr has changed since exp/llast/1_dual_lora was trained with it" in error
    kept.write_text(was)


def test_another_checkpoint_is_decoded_beside(recipe, finished):
    run(recipe, "--stage", "7", "--stop_stage", "8", "--inference_model", "1epoch.pth", *SMALL)
    scores = recipe / "exp/llast/1_dual_lora/decode_beam5_1epoch/test.fr-en/scores.json"
    assert json.loads(scores.read_text())["n"] == 6
    shutil.rmtree(scores.parent.parent)


def test_sigterm_to_the_script_ends_training_saved(recipe, finished):
    """Whoever kills ``run.sh`` alone leaves no training behind."""
    begun, phase = recipe / "exp/term/llast/1_dual_lora/train.log", recipe / "exp/term/llast/1_dual_lora"
    options = ["--expdir", "exp/term", *SMALL[:-1], "--max_epoch 500 --save_interval_iters 1"]
    process = subprocess.Popen(["./run.sh", *options], cwd=recipe, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (begun.exists() and "1epoch results" in begun.read_text()):
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    left = subprocess.run(["ps", "-o", "args=", "-s", str(process.pid)], capture_output=True, text=True).stdout
    assert not left and "Ended (code 143)" in begun.read_text() and (phase / "checkpoint.pth").exists()


def test_a_stale_decode_is_refused(recipe, finished):
    """By content: what has another time stamp only is as it was."""
    decode, phase = recipe / "conf/decode_beam5.yaml", recipe / "conf/llast/1_dual_lora.yaml"
    was = decode.read_text()
    decode.write_text(f"{was}length_penalty: 0.5\n")
    error = run(recipe, "--stage", "8", "--stop_stage", "8", fails=True)
    decode.write_text(was)
    reason = "stale, conf/decode_beam5.yaml has changed since this was decoded; run stage 7 again"
    assert reason in error and len(error.strip().splitlines()) == 1
    was = phase.read_text()
    phase.write_text(was.replace("max_epoch: 3", "max_epoch: 4"))
    error = run(recipe, "--stage", "7", "--stop_stage", "7", fails=True)
    phase.write_text(was)
    assert (
        "conf/llast/1_dual_lora.yaml has changed since exp/llast/1_dual_lora/valid.loss.best.pth was trained" in error
    )


TABLE = """
title: A table
metric: BLEU
rows:
  - {name: Broken, published: 1.0, method: broken, phase: 1_none, sets: [test.fr-en]}
  - {name: none, published: 2.0, method: llast_no_lora, phase: 1_projector, sets: [test.fr-en]}
  - {name: dual, published: 3.0, method: llast, phase: 1_dual_lora, sets: [test.fr-en]}
"""


def test_help_shows_the_recipes_own_values(recipe):
    text = run(recipe, "--help")
    assert "--max_wav_duration (4) seconds; longer" in text and "--method (llast) a folder of conf/" in text


def test_a_table_runs_what_is_missing(recipe, finished):
    """One row fails, one is killed in training and goes on, one is there already."""
    (recipe / "conf/paper/tiny.yaml").write_text(TABLE)
    (recipe / "conf/broken").mkdir()
    text = (recipe / "conf/llast/1_dual_lora.yaml").read_text().replace("prompt/llast.yaml", "prompt/none.yaml")
    (recipe / "conf/broken/1_none.yaml").write_text(text)
    table, begun = ["--table", "tiny", *SMALL], recipe / "exp/llast_no_lora/1_projector/.started"
    process = subprocess.Popen(["./run.sh", *table], cwd=recipe, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not begun.exists():
        time.sleep(0.1)
    for _ in range(3):  # what was being started meanwhile, too: it would hold the lock
        session = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True)
        for pid in session.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.2)
    assert process.wait() == -signal.SIGKILL and not begun.with_name(".done").exists()
    plan = run(recipe, *table, "--dry_run", "true")
    assert "exp/llast_no_lora/1_projector: begun, goes on; GPU memory: 0." in plan
    assert "exp/llast/1_dual_lora: trained" in plan and "exp/llast/1_dual_lora/decode_beam5/test.fr-en: scored" in plan
    kept = {path: at for path, at in times(recipe).items() if path.startswith("exp/llast/")}
    error = run(recipe, *table, fails=True)
    assert (
        "conf/prompt/none.yaml" in error
        and error.strip().endswith("run this again")
        and "failed rows: broken;" in error
    )
    assert kept == {path: at for path, at in times(recipe).items() if path.startswith("exp/llast/")}
    lines = (recipe / "exp/paper_tiny.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines if line.startswith("| ")}
    assert cells["Broken"] == "not run" and all(re.match(r"\d+\.\d \[", cells[name]) for name in ("none", "dual"))


def test_a_curriculum_of_three_phases_and_a_cascade(recipe, finished):
    """LLM-SRT: every phase is tested by its own task; its language model alone reads text, also a recogniser's."""
    run(recipe, "--method", "llm_srt", "--directions", "fr-en fr-de de-en", *SMALL)
    exp = recipe / "exp/llm_srt"
    # Transcription is tested once for each source language.
    assert sorted(path.name for path in (exp / "1_asr/decode_beam5").glob("test*")) == ["test.de-en", "test.fr-en"]
    for phase, task, metric in (("1_asr", "asr", "WER"), ("2_smt", "smt", "BLEU"), ("3_srt", "srt", "BLEU")):
        decode = exp / phase / "decode_beam5/test.fr-en"
        assert json.loads((decode / "decode.json").read_text())["task"] == task
        assert json.loads((decode / "scores.json").read_text())[metric]["score"] >= 0
        assert json.loads((decode / "scores_shuffled.json").read_text())["n"] == 6
    transcripts = json.loads((exp / "3_srt/decode_beam5/test.fr-en/scores_asr.json").read_text())
    assert re.match(r"nrefs:1\|.*\|norm:whisper", transcripts["WER"]["signature"])
    cascade = ["--inference_config", "conf/decode_cascade_multi.yaml"]
    run(recipe, "--method", "llm_srt_mt", "--directions", "fr-en", *cascade, *SMALL)
    decode = recipe / "exp/llm_srt_mt/1_zero_shot/decode_cascade_multi/test.fr-en"
    assert all((decode / name).exists() for name in ("scores.json", "scores_asr.json", "scores_shuffled.json"))


def test_a_phase_that_starts_from_another_methods_names_it_when_missing(recipe, finished):
    error = run(recipe, "--method", "lst_lora", "--stage", "6", "--stop_stage", "6", fails=True)
    assert "init_from: exp/lst/1_modality_adjustment/valid.loss.best.pth is missing; train that phase first" in error


def test_a_phase_does_not_start_from_one_in_training(recipe, finished):
    begun = recipe / "exp/lst/1_modality_adjustment"
    begun.mkdir(parents=True)
    for name in (".started", "valid.loss.best.pth"):
        (begun / name).touch()
    error = run(recipe, "--method", "lst_lora", "--stage", "6", "--stop_stage", "6", fails=True)
    assert "init_from: exp/lst/1_modality_adjustment is not trained to its end; do that first" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no_such_option", "1"], "unknown option --no_such_option"),
        (["--method", "lllast"], "unknown method 'lllast'; there are: "),
        (["--phase", "9_none"], "unknown phase '9_none' of llast; there are: 1_dual_lora"),
        (["--directions", "fr_en", "--stage", "3", "--stop_stage", "3"], "'fr_en' is no direction"),
        (["--directions", "foo", "--stage", "7"], "'foo' is no direction"),
        (["--dry_run", "true"], "--rows, --seeds and --dry_run are for a --table"),
        (
            ["--table", "lora", "--directions", "fr-en"],
            "--phase, --directions and --inference_task are for one --method",
        ),
        (["--stage", "one"], "--stage and --stop_stage take numbers"),
        (["extra"], "unexpected argument 'extra'"),
        (["--table", "none"], "unknown table 'none'; there are: "),
        (["--inference_model", "none.pth", "--stage", "7"], "none.pth is missing: run stage 6 first"),
    ],
)
def test_bad_options_are_one_clear_line(recipe, finished, options, message):
    error = run(recipe, *options, fails=True)
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_bad_data_is_dropped_by_name_or_refused(recipe, finished):
    train = recipe / "data/train.fr-en"
    first, second, third = (line.split()[0] for line in (train / "text.tc.fr").read_text().splitlines()[:3])
    wavs = (train / "wav.scp").read_text()
    (train / "wav.scp").write_text(re.sub(f"(?m)^{first} .*$", f"{first} /nowhere.flac", wavs))
    texts = (train / "text.tc.en").read_text()
    (train / "text.tc.en").write_text(re.sub(f"(?m)^{second} .*$", second, texts))
    only_3 = ["--stage", "3", "--stop_stage", "3", *SMALL]
    out = run(recipe, *only_3)
    assert "18 utterances" in out and "missing_audio 1" in out and "empty_text.en 1" in out
    dropped = (recipe / "dump/raw/train.fr-en/dropped.tsv").read_text()
    assert f"{first}\tmissing_audio" in dropped and f"{second}\tempty_text.en" in dropped
    (train / "wav.scp").write_text(wavs + wavs.splitlines()[2] + "\n")
    error = run(recipe, *only_3, fails=True)
    assert third in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_readme_examples(recipe, finished):
    """The README's example command and Python snippet, as they stand there."""
    readme = (REPO / "README.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    (example,) = re.findall(r"^llmst_example .*$", readme, re.M)
    shell = f". ./path.sh\n{example}\npython3 - <<'END'\n{python}END\n"
    done = subprocess.run(["bash", "-euc", shell], cwd=recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loss on" in done.stdout and "<speech>" in done.stdout
