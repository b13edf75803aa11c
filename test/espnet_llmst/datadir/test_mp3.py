"""MP3 files that do not state their length are read to the end."""

import numpy as np
import pytest
import soundfile

from espnet_llmst.datadir.mp3 import _frame_bytes, with_length_header


def speech_like(rate, channels):
    """4 s, quiet then loud: a variable bit rate, so that the first frame is a bad guess of the length."""
    noise = np.random.default_rng(0).standard_normal(4 * rate).astype(np.float32)
    samples = np.where(np.arange(4 * rate) > 2 * rate, 0.1, 0.001) * noise
    return np.stack([samples] * channels, axis=1)


@pytest.mark.parametrize("rate", [48000, 44100, 22050, 16000, 8000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + bytes(256)])
def test_length_is_exact_without_a_header(tmp_path, rate, channels, tag):
    path = tmp_path / "x.mp3"
    soundfile.write(path, speech_like(rate, channels), rate)
    assert with_length_header(path) == str(path)  # its first frame states the length
    expected, _ = soundfile.read(path)
    data = path.read_bytes()
    path.write_bytes(tag + data[_frame_bytes(data) :])
    with soundfile.SoundFile(path) as file:
        assert file.frames < 0.8 * len(expected)  # what libsndfile would read of it
    samples, _ = soundfile.read(with_length_header(path))
    # Without its first frame, nothing says how much of the encoder's delay to remove.
    delay = len(samples) - len(expected)
    assert 0 < delay < 4 * 1152
    window, loud = 500, 3 * rate
    shifts = [np.abs(samples[loud + shift :][:window] - expected[loud:][:window]).max() for shift in range(1200)]
    assert min(shifts) < 1e-6


def test_other_formats_are_opened_as_they_are(tmp_path):
    for name in ("x.wav", "x.flac", "x.ogg"):
        soundfile.write(tmp_path / name, speech_like(16000, 1), 16000)
        assert with_length_header(tmp_path / name) == str(tmp_path / name)
    (tmp_path / "junk").write_bytes(b"ID3\x04\0\0\0\0\0\x01" + bytes(range(256)) * 40)
    assert with_length_header(tmp_path / "junk") == str(tmp_path / "junk")
