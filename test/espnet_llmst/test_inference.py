"""Decoding a data directory and single waveforms."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_llmst import inference
from espnet_llmst.asr import Transcriber
from espnet_llmst.bin import llmst_inference
from espnet_llmst.cli import InputError, run
from espnet_llmst.datadir.kaldi import read_table, write_table
from espnet_llmst.inference import Speech2Text, load_model, make_batches, other_audio, split_transcripts
from espnet_llmst.prompt import Template, split_srt
from espnet_llmst.search.hypothesis import Hypothesis
from espnet_llmst.tasks.llmst import LLMSTTask


@pytest.fixture
def experiment(build_model, task_config, tmp_path):
    """config.yaml and a checkpoint, as training leaves them."""
    model = build_model()
    with torch.no_grad():
        for parameter in model.parameters():  # lively enough to tell one audio from another
            if parameter.requires_grad:
                parameter.copy_(
                    0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
                )
    torch.save(model.state_dict(), tmp_path / "model.pth")
    settings = {**task_config, "model_conf": {"autocast": "float32"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def decode(experiment, set_dir, out, *more):
    return llmst_inference.main(
        ["--train_config", f"{experiment}/config.yaml", "--model_file", f"{experiment}/model.pth"]
        + ["--data_dir", str(set_dir), "--direction", "fr-en", "--output_dir", str(out)]
        + ["--beam_size", "2", "--max_new_tokens", "8", *more]
    )


def test_jobs_join_to_what_one_job_gives(experiment, dump_dir, tmp_path):
    set_dir = dump_dir / "train.fr-en"
    decode(experiment, set_dir, tmp_path / "one")
    llmst_inference.main(["--merge", "--output_dir", str(tmp_path / "one")])
    for job in ("1", "2"):
        decode(experiment, set_dir, tmp_path / "two", "--job", job, "--num_jobs", "2", "--batch_seconds", "1")
    llmst_inference.main(["--merge", "--output_dir", str(tmp_path / "two"), "--num_jobs", "2"])
    for name in ("text", "token"):
        one, two = (read_table(tmp_path / x / "1best_recog" / name, allow_empty=True) for x in ("one", "two"))
        assert one == two and one.keys() == read_table(set_dir / "wav.scp").keys()
    info = json.loads((tmp_path / "two/decode.json").read_text())
    assert info["n"] == 3 and info["speech_seconds"] == pytest.approx(49000 / 16000)
    assert not list(tmp_path.glob("two/job.*"))


def test_merge_names_an_unfinished_job(experiment, dump_dir, tmp_path):
    decode(experiment, dump_dir / "train.fr-en", tmp_path / "out", "--job", "1", "--num_jobs", "2")
    with pytest.raises(InputError, match="job.2: this decoding job has not finished"):
        llmst_inference.main(["--merge", "--output_dir", str(tmp_path / "out"), "--num_jobs", "2"])


def test_shuffled_audio_changes_the_speech_and_nothing_else(experiment, dump_dir, tmp_path):
    set_dir = dump_dir / "train.fr-en"
    decode(experiment, set_dir, tmp_path / "own")
    decode(experiment, set_dir, tmp_path / "other", "--shuffle_audio", "1")
    scores = [read_table(tmp_path / name / "job.1/1best_recog/score") for name in ("own", "other")]
    source = other_audio(list(scores[0]), 1)
    assert scores[1] == {utt: scores[0][source[utt]] for utt in source}
    assert scores[0] != scores[1]


def test_nobody_keeps_their_own_audio():
    utts = [f"utt{i}" for i in range(50)]
    source = other_audio(utts, seed=3)
    assert sorted(source.values()) == sorted(utts) and all(utt != other for utt, other in source.items())
    assert source == other_audio(utts[::-1], seed=3) != other_audio(utts, seed=4)
    with pytest.raises(InputError, match="at least two"):
        other_audio(["a"], 0)


def test_batches_hold_the_budget_longest_first():
    sizes = {f"u{i}": n for i, n in enumerate((5, 30, 10, 10, 99, 1))}
    batches = list(make_batches(sizes, 40))
    assert batches == [["u4"], ["u1"], ["u2", "u3", "u0", "u5"]]
    assert sorted(utt for batch in batches for utt in batch) == sorted(sizes)
    assert [len(batch) for batch in make_batches(sizes, 40, least=20)] == [1, 1, 2, 2]  # each costs a window of 20


def test_speech2text_takes_one_waveform_or_a_list(experiment):
    speech2text = Speech2Text(
        experiment / "config.yaml", experiment / "model.pth", beam_size=3, nbest=2, max_new_tokens=6
    )
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (16000, 7000)]
    together = speech2text(waves, "st", "fr", "en")
    alone = speech2text(waves[1], "st", "fr", "en")
    assert [len(nbest) for nbest in together] == [2, 2] and together[1][0].ids == alone[0][0].ids
    assert together[0][0].score >= together[0][1].score


def test_out_of_memory_in_the_encoder_loses_nothing(experiment, monkeypatch, caplog):
    speech2text = Speech2Text(experiment / "config.yaml", experiment / "model.pth", beam_size=2, max_new_tokens=6)
    waves = [(0.1 * np.random.default_rng(n).standard_normal(8000)).astype(np.float32) for n in range(5)]
    expected, embed, most = speech2text(waves, "st", "fr", "en"), speech2text.model.embed_prompts, 2

    def needs_memory(**arrays):
        if len(arrays["speech"]) > most:
            raise torch.OutOfMemoryError("no memory")
        return embed(**arrays)

    monkeypatch.setattr(speech2text.model, "embed_prompts", needs_memory)
    assert [n[0].ids for n in speech2text(waves, "st", "fr", "en")] == [n[0].ids for n in expected]
    assert "5 utterances are encoded in halves" in caplog.text
    most = 0
    with pytest.raises(InputError, match="out of memory in the encoder with this utterance alone"):
        speech2text(waves, "st", "fr", "en")


def test_a_token_beyond_the_tokenizer_has_its_number(experiment):
    speech2text = Speech2Text(experiment / "config.yaml", experiment / "model.pth")
    tokenizer = speech2text.preprocess.tokenizer
    assert inference._hypothesis(tokenizer, [5, len(tokenizer) + 7], 0.0).tokens[1] == f"<{len(tokenizer) + 7}>"


def test_bad_input_is_one_clear_line(experiment, dump_dir, tmp_path, capsys):
    with pytest.raises(InputError, match="nowhere.pth is missing: train the phase first"):
        load_model(experiment / "config.yaml", experiment / "nowhere.pth")
    state = torch.load(experiment / "model.pth", weights_only=True)
    state.pop("postencoder.layers.0.weight")
    torch.save(state, experiment / "other.pth")
    with pytest.raises(InputError, match="other.pth does not fit .*Missing key"):
        load_model(experiment / "config.yaml", experiment / "other.pth")
    wav = dump_dir / "train.fr-en/fr_spk-train1.flac"
    soundfile.write(wav, np.zeros(100), 8000)
    with pytest.raises(InputError, match="fr_spk-train1 is not 16 kHz mono"):
        decode(experiment, dump_dir / "train.fr-en", tmp_path / "out")
    wav.unlink()
    assert run(lambda _: decode(experiment, dump_dir / "train.fr-en", tmp_path / "out")) == 1
    assert capsys.readouterr().err.count("\n") >= 1
    assert run(lambda _: llmst_inference.main(["--output_dir", "x"])) == 1
    assert "--train_config is required" in capsys.readouterr().err


def test_srt_outputs_are_taken_apart_and_malformed_ones_counted():
    template = Template(
        tasks={"srt": {"prompt": "<speech>", "target": "{transcript}<|{src}|><|{tgt}|>{translation}"}},
        languages="iso639_3",
    )
    texts = {"a": "Le train <|fra|><|eng|> The train", "b": "Le train <|fra|> The train", "c": "<|fra|><|eng|>"}
    results = {utt: [Hypothesis([1], -0.5, ["x"], text)] for utt, text in texts.items()}
    translations, transcripts, malformed = split_transcripts(results, template, "fr", "en")
    assert {utt: nbest[0].text for utt, nbest in translations.items()} == {"a": "The train", "b": "", "c": ""}
    assert transcripts == {"a": "Le train", "b": "Le train <|fra|> The train", "c": ""} and malformed == 1
    spaced = Template({"srt": {"prompt": "<speech>", "target": "{transcript} <{src}> {translation}"}}, "iso639_3")
    assert split_srt(spaced, "fr", "en", "Le train <fra>") == ("Le train", "")
    assert translations["a"][0].score == -0.5


def text_experiment(experiment, task_config, **changes):
    """A model that reads text only, zero-shot, as stage 6 leaves it."""
    prompt = experiment / "mt.yaml"
    prompt.write_text('tasks: {mt: {prompt: "{transcript}", target: "{translation}"}}')
    settings = {**task_config, "encoder": None, "postencoder": None, "trainable": [], "prompt": str(prompt)}
    phase = experiment / "phase.yaml"
    phase.write_text(yaml.safe_dump({**settings, "best_model_criterion": [["valid", "loss", "min"]], **changes}))
    out = experiment / "text"
    LLMSTTask.main(cmd=["--config", str(phase), "--output_dir", str(out), "--ngpu", "0"])
    return out


def test_zero_shot_translation_of_text_equals_transformers(experiment, task_config, marian_dir, dump_dir, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    conf = {"decoder": "seq2seq_lm", "decoder_conf": {"model": marian_dir}}
    out = text_experiment(experiment, task_config, **conf)
    (experiment / "mt.yaml").write_text('tasks: {mt: {prompt: "{transcript}</s>", target: "{translation}"}}')
    speech2text = Speech2Text(out / "config.yaml", out / "valid.loss.best.pth", beam_size=3, max_new_tokens=9)
    found = speech2text(None, "mt", "fr", "en", ["Le train part à sept heures.", "La gare ?"])
    tokenizer, plain = AutoTokenizer.from_pretrained(marian_dir), AutoModelForSeq2SeqLM.from_pretrained(marian_dir)
    for text, nbest in zip(["Le train part à sept heures.", "La gare ?"], found, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = plain.generate(ids, num_beams=3, max_new_tokens=9, max_length=None)[0, 1:].tolist()
        assert nbest[0].ids == [i for i in expected if i != tokenizer.eos_token_id]
    # A limit by the speech's length is none for text.
    limited = {"beam_size": 3, "max_new_tokens": 9, "max_tokens_per_second": 1.0}
    speech2text = Speech2Text(out / "config.yaml", out / "valid.loss.best.pth", **limited)
    again = speech2text(None, "mt", "fr", "en", ["Le train part à sept heures.", "La gare ?"])
    assert [nbest[0].ids for nbest in again] == [nbest[0].ids for nbest in found]


def test_cascade_gives_the_recognisers_words_to_the_model(experiment, task_config, whisper_dir, dump_dir, tmp_path):
    out, set_dir = text_experiment(experiment, task_config), dump_dir / "train.fr-en"
    command = ["--train_config", f"{out}/config.yaml", "--model_file", f"{out}/valid.loss.best.pth", "--task", "mt"]
    command += ["--data_dir", str(set_dir), "--direction", "fr-en", "--max_new_tokens", "5"]
    llmst_inference.main([*command, "--output_dir", str(tmp_path / "gold")])
    llmst_inference.main([*command, "--output_dir", str(tmp_path / "cascade"), "--asr_model", whisper_dir])
    heard = read_table(tmp_path / "cascade/job.1/1best_recog/transcript", allow_empty=True)
    waves = {utt: soundfile.read(path, dtype="float32")[0] for utt, path in read_table(set_dir / "wav.scp").items()}
    assert heard == {utt: Transcriber(whisper_dir)([wave], "fr")[0] for utt, wave in waves.items()}
    assert not (tmp_path / "gold/job.1/1best_recog/transcript").exists()
    speech2text = Speech2Text(out / "config.yaml", out / "valid.loss.best.pth", max_new_tokens=5)
    again = {utt: speech2text(None, "mt", "fr", "en", [text])[0][0].text for utt, text in heard.items()}
    assert read_table(tmp_path / "cascade/job.1/1best_recog/text", allow_empty=True) == again


def test_a_list_of_sets_is_decoded_with_one_model_and_continued(experiment, dump_dir, tmp_path, monkeypatch):
    rows = [f"{dump_dir}/train.fr-en fr-en {tmp_path}/a", f"{dump_dir}/train.fr-en fr-en {tmp_path}/b 1"]
    (tmp_path / "list").write_text("\n".join(rows) + "\n")
    command = ["--train_config", f"{experiment}/config.yaml", "--model_file", f"{experiment}/model.pth"]
    command += ["--decode_list", str(tmp_path / "list"), "--beam_size", "2", "--max_new_tokens", "8"]
    llmst_inference.main(command)
    decode(experiment, dump_dir / "train.fr-en", tmp_path / "c", "--shuffle_audio", "1")
    names = [f"{x}/job.1/1best_recog/text" for x in "abc"]
    a, b, c = ((tmp_path / name).read_text() for name in names)
    assert b == c != a
    (tmp_path / names[0]).write_text("kept")
    shard = tmp_path / "b/job.1/finished.jsonl"
    (tmp_path / "b/job.1/decode.json").unlink()
    shard.write_bytes(shard.read_bytes()[:-20])  # as a kill tears the last line
    llmst_inference.main(command)
    assert (tmp_path / names[0]).read_text() == "kept" and (tmp_path / names[1]).read_text() == b
    assert json.loads((tmp_path / "b/job.1/decode.json").read_text())["resumed"] == 2
    llmst_inference.main([*command, "--beam_size", "1"])
    assert (tmp_path / names[0]).read_text() != "kept"


def test_keys_tell_decodes_of_other_content_apart(experiment, dump_dir, whisper_dir, tmp_path, capsys):
    (tmp_path / "list").write_text(
        f"{dump_dir}/train.fr-en fr-en {tmp_path}/a\n{dump_dir}/dev.fr-en fr-en {tmp_path}/b 1\n"
    )
    command = ["--train_config", f"{experiment}/config.yaml", "--model_file", f"{experiment}/model.pth"]
    command += ["--decode_list", str(tmp_path / "list"), "--list_keys"]

    def keys(*more):
        llmst_inference.main([*command, *more])
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(" ")[2] for line in lines] == (tmp_path / "list").read_text().splitlines()
        return [line.split()[0] for line in lines]

    first = keys()
    os.utime(experiment / "model.pth", ns=(1, 1))
    assert keys() == first and len(set(first)) == 2
    assert not set(first) & set(keys("--beam_size", "3")) and not set(first) & set(keys("--asr_model", whisper_dir))
    (dump_dir / "dev.fr-en/wav.scp").write_text("fr_spk-dev0 elsewhere.flac\n")
    assert keys()[0] == first[0] and keys()[1] != first[1]
    (experiment / "model.pth").write_bytes(b"other weights")
    assert not set(first) & set(keys())


def test_a_cascade_needs_a_prompt_that_shows_the_transcript(experiment, dump_dir, whisper_dir, wav2vec2_dirs, tmp_path):
    with pytest.raises(InputError, match="shows no transcript; decode smt or mt"):
        decode(experiment, dump_dir / "train.fr-en", tmp_path / "out", "--asr_model", whisper_dir)
    with pytest.raises(InputError, match="'hubert' writes no text"):
        Transcriber(wav2vec2_dirs["hubert"])


def test_sigkill_costs_nothing(experiment, dump_dir, tmp_path):
    """Killed again and again, the decode ends with the files of an undisturbed one, scores included.

    Twice in CI; ``LLMST_KILLS=10`` kills it ten times.
    """
    kills = int(os.environ.get("LLMST_KILLS", "2"))
    moments = sorted(random.Random(kills).sample(range(5, 290), kills))
    set_dir = dump_dir / "many.fr-en"
    set_dir.mkdir()
    (wave,) = list(read_table(dump_dir / "train.fr-en/wav.scp").values())[:1]
    speech, _ = soundfile.read(wave, dtype="float32")
    utts = {f"utt{n:03d}": speech[: 4000 + 30 * n] for n in range(300)}
    for utt, samples in utts.items():
        soundfile.write(set_dir / f"{utt}.flac", samples, 16000)
    write_table(set_dir / "wav.scp", {utt: str(set_dir / f"{utt}.flac") for utt in utts})
    write_table(set_dir / "utt2num_samples", {utt: str(len(samples)) for utt, samples in utts.items()})
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "espnet_llmst.bin.llmst_inference"]
    command += ["--train_config", f"{experiment}/config.yaml", "--model_file", f"{experiment}/model.pth"]
    command += ["--data_dir", str(set_dir), "--direction", "fr-en", "--output_dir", str(out), "--max_new_tokens", "40"]
    shard = out / "job.1/finished.jsonl"
    for lines in moments:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (shard.exists() and shard.read_bytes().count(b"\n") > lines):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = shard.read_bytes().count(b"\n") - 1
    llmst_inference.main(command[3:])
    assert json.loads((out / "job.1/decode.json").read_text())["resumed"] in (kept, kept - 1)
    llmst_inference.main([*command[3:], "--output_dir", str(tmp_path / "whole")])
    for name in ("text", "token", "score"):
        killed, whole = (path / "job.1/1best_recog" / name for path in (out, tmp_path / "whole"))
        assert killed.read_bytes() == whole.read_bytes()
