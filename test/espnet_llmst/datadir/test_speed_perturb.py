"""Speed-perturbed copies: ids, lengths, pitch, texts, segments, resuming."""

import numpy as np
import pytest
import soundfile

from espnet_llmst.bin import llmst_speed_perturb
from espnet_llmst.cli import InputError
from espnet_llmst.datadir.format_audio import format_data_dir
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.speed_perturb import change_speed, speed_perturb
from espnet_llmst.datadir.validate import validate_data_dir


def peak_hertz(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * 16000 / len(samples)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.3])
def test_faster_is_shorter_and_higher(corpus, factor):
    changed = change_speed(corpus.tone(1), 16000, factor)
    assert len(changed) == pytest.approx(16000 / factor, abs=1)
    assert peak_hertz(changed) == pytest.approx(440 * factor, rel=0.01)


def test_copies_and_originals(good, tmp_path):
    out = tmp_path / "data_sp"
    summary = speed_perturb(good.dir, out, [0.9, 1.0, 1.1])
    assert summary == {"utterances": 12, "unreadable": []}
    assert validate_data_dir(out) == []
    wav, original = read_table(out / "wav.scp"), good.tables["wav.scp"]
    assert {utt: path for utt, path in wav.items() if utt in original} == original
    assert soundfile.info(wav["sp0.9-a1"]).frames == pytest.approx(16000 / 0.9, abs=1)
    assert read_table(out / "text.tc.de")["sp1.1-b2"] == "hallo b2"
    assert read_table(out / "spk2utt")["sp0.9-spk-a"] == "sp0.9-a1 sp0.9-a2"
    assert read_table(out / "utt2lang")["sp1.1-a1"] == "en"
    assert format_data_dir(out, tmp_path / "dump")["utterances"] == 12
    assert read_table(tmp_path / "dump/wav.scp")["sp0.9-a1"] == wav["sp0.9-a1"]  # not written a second time


def test_segments(corpus, tmp_path):
    corpus.add("u1", "", **{"wav.scp": None, "segments": "r 0.5 1.5"})
    corpus.add("u2", "", **{"wav.scp": None, "segments": "r 1.5 9"})
    corpus.tables["wav.scp"] = {"r": corpus.audio("r.wav", corpus.tone(2, 48000), 48000)}
    corpus.tables["utt2num_samples"] = {"u1": "48000", "u2": "24000"}
    speed_perturb(corpus.write(), tmp_path / "sp", [1, 2])
    assert read_table(tmp_path / "sp/segments") == {
        "u1": "r 0.5 1.5",
        "u2": "r 1.5 9",
        "sp2-u1": "sp2-u1 0 -1",
        "sp2-u2": "sp2-u2 0 -1",
    }
    assert not (tmp_path / "sp/utt2num_samples").exists()  # of the old speed
    speed_perturb(corpus.dir, tmp_path / "sp", [2])
    assert not (tmp_path / "sp/segments").exists() and validate_data_dir(tmp_path / "sp") == []  # whole files only
    speed_perturb(corpus.dir, tmp_path / "sp", [1, 2])
    assert validate_data_dir(tmp_path / "sp") == []
    format_data_dir(tmp_path / "sp", tmp_path / "dump")
    assert read_table(tmp_path / "dump/utt2num_samples") == {
        "u1": "16000",
        "u2": "8000",
        "sp2-u1": "8000",
        "sp2-u2": "4000",
    }
    assert read_table(tmp_path / "dump/wav.scp")["sp2-u1"] == read_table(tmp_path / "sp/wav.scp")["sp2-u1"]
    speed_perturb(corpus.dir, tmp_path / "only", [2])
    assert not (tmp_path / "only/segments").exists()
    assert validate_data_dir(tmp_path / "only") == []


def test_unreadable_audio_gets_no_copies_and_is_told(good, tmp_path, capsys):
    good.add("x", "nowhere.wav")
    good.write()
    argv = ["--data_dir", str(good.dir), "--out_dir", str(tmp_path / "sp"), "--factors", "0.9", "1.0"]
    llmst_speed_perturb.main(argv)
    assert "9 utterances" in (printed := capsys.readouterr()).out
    assert "1 utterances without usable audio, e.g. x" in printed.err
    assert "sp0.9-x" not in read_table(tmp_path / "sp/wav.scp") and "x" in read_table(tmp_path / "sp/wav.scp")


def test_done_work_is_kept(good, tmp_path):
    out = tmp_path / "sp"
    first = speed_perturb(good.dir, out, [0.9])
    paths = list(out.rglob("*.flac"))
    times = {path: path.stat().st_mtime_ns for path in paths}
    assert speed_perturb(good.dir, out, ["0.9"]) == first
    paths[0].unlink()
    (out / ".done").unlink()
    assert speed_perturb(good.dir, out, [0.9], nj=2) == first
    assert [path for path in paths if path.stat().st_mtime_ns != times[path]] == paths[:1]


def test_bad_requests(good, tmp_path):
    for factors in ([], [0.0], [100]):
        with pytest.raises(InputError, match="factors"):
            speed_perturb(good.dir, tmp_path / "sp", factors)
    with pytest.raises(InputError, match="input directory itself"):
        speed_perturb(good.dir, good.dir, [0.9])
    (good.dir / "wav.scp").write_text("a1 gone.wav\na2 gone.wav\nb1 gone.wav\nb2 gone.wav\n")
    with pytest.raises(InputError, match="no audio can be read"):
        speed_perturb(good.dir, tmp_path / "sp", [0.9])
