"""Reading and writing audio."""

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_llmst.cli import InputError
from espnet_llmst.datadir import audio

RNG = np.random.default_rng(0)
NOISE = RNG.integers(-3000, 3000, 16000).astype(np.int16)


def read(source):
    with audio.open_audio(str(source)) as file:
        return audio.read_mono(file)


def reason(source):
    with pytest.raises(audio.AudioError) as error:
        read(source)
    return error.value.reason


def test_16_bit_audio_survives_bit_for_bit(tmp_path):
    soundfile.write(tmp_path / "x.wav", NOISE, 16000)
    audio.write_audio(tmp_path / "sub/x.flac", read(tmp_path / "x.wav"), 16000, "mark")
    samples, rate = soundfile.read(tmp_path / "sub/x.flac", dtype="int16")
    assert rate == 16000 and (samples == NOISE).all()
    assert audio.length_if_made_from(tmp_path / "sub/x.flac", "mark") == 16000
    assert audio.length_if_made_from(tmp_path / "sub/x.flac", "other") is None
    assert audio.length_if_made_from(tmp_path / "none.flac", "mark") is None


def test_loud_float_audio_is_clipped_not_wrapped(tmp_path):
    audio.write_audio(tmp_path / "x.wav", np.array([1.5, -1.5, 0.5]), 16000, "mark")
    assert soundfile.read(tmp_path / "x.wav", dtype="int16")[0].tolist() == [32767, -32768, 16384]


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        audio.write_audio(tmp_path / "file/x.flac", np.zeros(9), 16000, "mark")


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.stack([NOISE, np.zeros_like(NOISE)], axis=1), 16000)
    np.testing.assert_allclose(read(tmp_path / "x.wav"), NOISE / 65536, atol=1e-7)


def test_resampling_keeps_a_tone(corpus):
    resampled = audio.resample(corpus.tone(1, 48000), 48000, 16000)
    assert len(resampled) == 16000
    assert np.abs(resampled - corpus.tone(1, 16000))[500:-500].max() < 1e-3


@pytest.mark.parametrize("write_function", [None, "soundfile"])
def test_archives(tmp_path, write_function):
    ark, scp = str(tmp_path / "x.ark"), str(tmp_path / "x.scp")
    kaldiio.save_ark(ark, {"a": (16000, NOISE), "b": (16000, NOISE[:999])}, scp=scp, write_function=write_function)
    values = dict(line.split(" ", 1) for line in open(scp).read().splitlines())
    np.testing.assert_array_equal(read(values["a"]) * 32768, NOISE)
    np.testing.assert_array_equal(read(values["b"]) * 32768, NOISE[:999])
    assert reason(f"{ark}:7") == "unreadable_audio"


def test_archive_with_a_pickle_is_not_run(tmp_path):
    (tmp_path / "x.ark").write_bytes(b"a PKL\x80\x04cos\nsystem\n")
    assert reason(f"{tmp_path}/x.ark:2") == "unreadable_audio"


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_cut_off_files_are_unreadable(tmp_path, corpus, suffix):
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, corpus.tone(4) + NOISE[0] * 1e-6, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path) == "unreadable_audio"


def test_a_wav_header_a_little_wrong_or_never_filled_in_is_tolerated(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE, 16000)
    data = path.read_bytes()
    path.write_bytes(data[:-44])
    assert len(read(path)) == 16000 - 22
    at = data.index(b"data") + 4
    path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert len(read(path)) == 16000


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio at all")
    soundfile.write(tmp_path / "nan.wav", np.full(99, np.nan), 16000, subtype="FLOAT")
    assert reason(tmp_path / "none.wav") == "missing_audio"
    assert reason(tmp_path / "none.ark:12") == "missing_audio"
    assert reason(tmp_path / "empty.wav") == "empty_audio"
    assert reason(tmp_path / "text.wav") == "unreadable_audio"
    assert reason(tmp_path / "nan.wav") == "unreadable_audio"
    assert reason(tmp_path) == "unreadable_audio"


def test_pipes_are_refused_with_a_remedy():
    with pytest.raises(InputError, match="wav.scp: utterance u2 .*sox x.*write its output"):
        audio.check_sources("wav.scp", {"u1": "a.wav", "u2": "sox x.sph -t wav - |"})


def test_fingerprint_follows_file_and_settings(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE, 16000)
    first = audio.fingerprint(str(path), 0, 5)
    assert first == audio.fingerprint(str(path), 0, 5) != audio.fingerprint(str(path), 0, 6)
    soundfile.write(path, NOISE[:-1], 16000)
    assert first != audio.fingerprint(str(path), 0, 5)


def test_paths_are_distinct_and_stay_inside(tmp_path):
    ids = ["a/b", "a%2Fb", "../x", "..", "-x", "é" * 60]
    paths = [audio.audio_path(tmp_path, utt, "flac") for utt in ids]
    assert len(set(paths)) == len(ids)
    assert all(path.resolve().parent.parent == tmp_path.resolve() for path in paths)
