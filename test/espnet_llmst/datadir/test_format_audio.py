"""Formatting data directories, good and bad ones."""

import json
import os

import numpy as np
import pytest
import soundfile

from espnet_llmst.bin import llmst_format
from espnet_llmst.cli import InputError
from espnet_llmst.datadir import format_audio
from espnet_llmst.datadir.format_audio import format_data_dir
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir


def dropped(out_dir):
    header, *lines = (out_dir / "dropped.tsv").read_text().splitlines()
    assert header == "utt\treason\tdetail"
    return {utt: reason for utt, reason, _ in (line.split("\t") for line in lines)}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "dump/set"


@pytest.fixture
def spoiled(good):
    """The good corpus and everything that can be wrong with an utterance."""
    c = good
    c.add("x-gone", "nowhere.wav")
    c.add("x-cut", c.audio("cut.flac", c.tone(3)))
    path = c.root / "audio/cut.flac"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    c.add("x-zero", str(c.root / "audio/zero.mp3"))
    (c.root / "audio/zero.mp3").touch()
    c.add("x-short", c.audio("short.wav", c.tone(0.05)))
    c.add("x-long", c.audio("long.wav", c.tone(31, 8000), 8000))
    c.add("x-blank", c.audio("blank.wav", c.tone(1)), text_tc_de=" \u200b\u00a0")
    c.add("x-empty", c.audio("empty.wav", c.tone(1)), text_tc_en="")
    c.add("x-untranslated", c.audio("untr.wav", c.tone(1)), text_tc_de=None)
    c.add("x-textonly", "", **{"wav.scp": None})
    c.add("x-nobody", c.audio("nobody.wav", c.tone(1)), utt2spk=None)
    c.write()
    return c


def test_good_corpus(good, out):
    summary = format_data_dir(good.dir, out)
    assert summary == {"utterances": 4, "seconds": 4.0, "dropped": 0, "reasons": {}, "clamped": 0}
    assert validate_data_dir(out) == [] and dropped(out) == {}
    for name in ("text.tc.en", "text.tc.de", "utt2spk", "spk2utt", "utt2lang"):
        assert (out / name).read_bytes() == (good.dir / name).read_bytes()
    assert set(read_table(out / "utt2num_samples").values()) == {"16000"}
    assert (out / "feats_type").read_text() == "raw\n"
    for utt, path in read_table(out / "wav.scp").items():
        original = soundfile.read(good.tables["wav.scp"][utt], dtype="int16")[0]
        assert soundfile.info(path).format == "FLAC"
        assert (soundfile.read(path, dtype="int16")[0] == original).all()


def test_kinds_of_audio(corpus, out):
    stereo = np.stack([corpus.tone(2, 48000), np.zeros(96000, np.float32)], axis=1)
    corpus.add("stereo", corpus.audio("s.wav", stereo, 48000))
    corpus.add("mp3", corpus.audio("x.mp3", corpus.tone(2, 44100), 44100))
    corpus.add("ogg", corpus.audio("x.ogg", corpus.tone(2, 22050), 22050))
    corpus.add("float", corpus.audio("f.wav", corpus.tone(2), subtype="FLOAT"))
    corpus.add("asis", corpus.audio("x.flac", corpus.tone(2)))
    corpus.add("deep", corpus.audio("d.flac", corpus.tone(2), subtype="PCM_24"))
    assert format_data_dir(corpus.write(), out)["utterances"] == 6
    paths = read_table(out / "wav.scp")
    assert paths["asis"] == corpus.tables["wav.scp"]["asis"]
    for utt, path in paths.items():
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 32000)
        expected = corpus.tone(2) * (0.5 if utt == "stereo" else 1)
        assert np.abs(soundfile.read(path)[0] - expected)[500:-500].max() < 0.02, utt


def test_a_relative_path_that_is_kept_becomes_absolute(corpus, out, monkeypatch):
    path = corpus.audio("x.flac", corpus.tone(1))
    monkeypatch.chdir(corpus.root)
    corpus.add("a", os.path.relpath(path))
    format_data_dir(corpus.write(), out)
    assert read_table(out / "wav.scp") == {"a": path}


def test_bad_items_of_a_training_set_go_with_a_reason(spoiled, out):
    summary = format_data_dir(spoiled.dir, out)
    assert dropped(out) == {
        "x-gone": "missing_audio",
        "x-cut": "unreadable_audio",
        "x-zero": "empty_audio",
        "x-short": "too_short",
        "x-long": "too_long",
        "x-blank": "empty_text.de",
        "x-empty": "empty_text.en",
        "x-untranslated": "missing_text.de",
        "x-textonly": "missing_audio",
        "x-nobody": "missing_speaker",
    }
    assert summary["utterances"] == 4 and summary["dropped"] == 10 == sum(summary["reasons"].values())
    assert summary["reasons"]["missing_audio"] == 2
    assert validate_data_dir(out) == []
    assert all("x-" not in (out / name).read_text() for name in ("wav.scp", "text.tc.de", "utt2lang", "spk2utt"))


def test_a_test_set_loses_only_what_does_not_exist_and_loudly(spoiled, out, capsys):
    format_data_dir(spoiled.dir, out, drop=False)
    lost = {"x-gone", "x-cut", "x-zero", "x-untranslated", "x-textonly", "x-nobody"}
    assert set(dropped(out)) == lost
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == len(lost) and all(any(utt in line for line in warnings) for utt in lost)
    kept = read_table(out / "text.tc.de", allow_empty=True)
    assert {"x-short", "x-long", "x-blank", "x-empty"} < set(kept)
    assert read_table(out / "utt2num_samples")["x-long"] == "496000"


def test_only_the_wanted_languages_are_required(spoiled, out):
    format_data_dir(spoiled.dir, out, langs=["en"])
    assert "x-untranslated" not in dropped(out) and "x-blank" not in dropped(out)
    assert "x-untranslated" in read_table(out / "text.tc.en")
    with pytest.raises(InputError, match=r"no text\.tc\.fr"):
        format_data_dir(spoiled.dir, out, langs=["en", "fr"])


def test_segments_are_cut_clamped_and_refused(corpus, out):
    ramp = np.arange(32000, dtype=np.int16)
    recordings = {
        "r1": corpus.audio("r1.wav", ramp),
        "r2": corpus.audio("r2.mp3", corpus.tone(3, 44100), 44100),
    }
    segments = {
        "u1": "r1 0.5 1.0",
        "u2": "r1 1.5 9.0",
        "u3": "r1 2.5 3.0",
        "u4": "r1 1.0 1.0",
        "u5": "r2 1.0 2.0",
        "u6": "r3 0.0 1.0",
        "u7": "r1 0 -1",
    }
    for utt, segment in segments.items():
        corpus.add(utt, "", **{"wav.scp": None, "segments": segment})
    corpus.tables["wav.scp"] = recordings
    corpus.tables["reco2dur"] = {"r1": "2", "r2": "3"}
    summary = format_data_dir(corpus.write(), out)
    assert dropped(out) == {"u3": "segment_outside_audio", "u4": "empty_audio", "u6": "missing_audio"}
    paths = read_table(out / "wav.scp")
    assert (soundfile.read(paths["u1"], dtype="int16")[0] == ramp[8000:16000]).all()
    assert (soundfile.read(paths["u2"], dtype="int16")[0] == ramp[24000:]).all()
    assert (soundfile.read(paths["u7"], dtype="int16")[0] == ramp).all()
    assert read_table(out / "utt2num_samples") == {"u1": "8000", "u2": "8000", "u5": "16000", "u7": "32000"}
    assert summary["clamped"] == 1
    assert (out / "clamped.tsv").read_text() == "utt\tdetail\nu2\t1.50-9.00 s of 2.00 s\n"
    assert not (out / "segments").exists() and not (out / "reco2dur").exists()
    assert validate_data_dir(out) == []


def test_broken_tables_stop_it(good, out):
    text = (good.dir / "text.tc.de").read_text()
    (good.dir / "text.tc.de").write_text(text + "a1 noch einmal\n")
    with pytest.raises(InputError, match=r"text\.tc\.de:5: utterance a1 occurs twice"):
        format_data_dir(good.dir, out)
    (good.dir / "text.tc.de").write_text(text)
    (good.dir / "wav.scp").write_text("a1 sox x.wav -t wav - |\n")
    with pytest.raises(InputError, match="a1 is a command"):
        format_data_dir(good.dir, out)
    (good.dir / "wav.scp").unlink()
    with pytest.raises(InputError, match=r"wav\.scp: missing"):
        format_data_dir(good.dir, out)
    with pytest.raises(InputError, match="input directory itself"):
        format_data_dir(good.dir, good.dir)


def test_nothing_left_is_an_error_that_says_why(good, out):
    with pytest.raises(InputError, match=r"no utterance left \(e\.g\. a1: too_short"):
        format_data_dir(good.dir, out, min_duration=5)
    assert len(dropped(out)) == 4 and not (out / ".done").exists()


def test_a_single_sample_is_empty_even_in_a_test_set(good, out):
    good.add("x", good.audio("x.wav", good.tone(1 / 48000, 48000), 48000))
    format_data_dir(good.write(), out, drop=False)
    assert dropped(out) == {"x": "empty_audio"}


def test_bounds_are_inclusive(good, out):
    assert format_data_dir(good.dir, out, min_duration=1.0, max_duration=1.0)["utterances"] == 4


@pytest.fixture
def decoded(monkeypatch):
    """Counts audio decodes of the run at hand."""
    calls = []

    def counting(file, *args):
        calls.append(file.name)
        return original(file, *args)

    original = format_audio.read_mono
    monkeypatch.setattr(format_audio, "read_mono", counting)
    return calls


def test_a_finished_directory_is_skipped_until_something_changes(good, out, decoded):
    first = format_data_dir(good.dir, out)
    assert json.loads((out / ".done").read_text())["summary"] == first
    before = (out / ".done").stat().st_mtime_ns
    assert format_data_dir(good.dir, out) == first and (out / ".done").stat().st_mtime_ns == before
    assert format_data_dir(good.dir, out, max_duration=20) == first  # another setting: looked at, nothing decoded
    assert (out / ".done").stat().st_mtime_ns > before and len(decoded) == 4
    good.tables["text.tc.de"]["a1"] = ""
    good.write()
    assert format_data_dir(good.dir, out, max_duration=20)["reasons"] == {"empty_text.de": 1}
    assert len(decoded) == 4
    format_data_dir(good.dir, out, max_duration=20, force=True)
    assert len(decoded) == 7


def test_an_interrupted_run_continues(good, out, decoded, monkeypatch):
    def fail(*args):
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return original(*args)

    original = format_audio.write_audio
    monkeypatch.setattr(format_audio, "write_audio", fail)
    with pytest.raises(KeyboardInterrupt):
        format_data_dir(good.dir, out)
    assert not (out / ".done").exists() and not list(out.rglob("*.tmp"))
    monkeypatch.setattr(format_audio, "write_audio", original)
    assert format_data_dir(good.dir, out)["utterances"] == 4
    assert len(decoded) == 3 + 2


def test_changed_segments_or_audio_are_cut_again(corpus, out):
    ramp = np.arange(32000, dtype=np.int16)
    corpus.add("u", "", **{"wav.scp": None, "segments": "r 0.5 1.0"})
    corpus.tables["wav.scp"] = {"r": corpus.audio("r.wav", ramp)}
    format_data_dir(corpus.write(), out)
    path = read_table(out / "wav.scp")["u"]
    assert soundfile.read(path, dtype="int16")[0][0] == 8000
    corpus.tables["segments"]["u"] = "r 1.0 1.5"
    format_data_dir(corpus.write(), out)
    assert soundfile.read(path, dtype="int16")[0][0] == 16000
    corpus.audio("r.wav", ramp[::-1])
    format_data_dir(corpus.write(), out)
    assert soundfile.read(path, dtype="int16")[0][0] == 15999


def test_tables_gone_from_the_input_go_from_the_output(good, out):
    format_data_dir(good.dir, out)
    (good.dir / "text.tc.de").unlink()
    format_data_dir(good.dir, out)
    assert not (out / "text.tc.de").exists()


def test_several_processes_give_the_same(spoiled, tmp_path):
    one, two = tmp_path / "1/x", tmp_path / "2/x"
    assert format_data_dir(spoiled.dir, one) == format_data_dir(spoiled.dir, two, nj=2)
    for name in ("text.tc.de", "utt2num_samples", "dropped.tsv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_command(spoiled, out, capsys):
    argv = ["--data_dir", str(spoiled.dir), "--out_dir", str(out), "--audio_format", "wav", "--fs", "8k"]
    llmst_format.main([*argv, "--max_duration", "60"])
    printed = capsys.readouterr().out
    assert "5 utterances" in printed and "missing_audio 2" in printed and "dropped.tsv" in printed
    assert soundfile.info(read_table(out / "wav.scp")["a1"]).samplerate == 8000
    with pytest.raises(InputError, match="--fs fast"):
        llmst_format.main(["--data_dir", "x", "--out_dir", "y", "--fs", "fast"])
