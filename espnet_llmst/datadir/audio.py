"""Reading any audio a wav.scp may name as mono samples, and writing 16-bit files that know their origin."""

import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path

import numpy as np
import soundfile
import soxr

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.datadir.mp3 import with_length_header

# A file may hold this much less than its header says before it counts as cut off.
_TOLERATED_SHORTFALL = 0.1


class AudioError(Exception):
    """Audio that cannot be used: `reason` is the word for dropped.tsv, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def check_sources(path: str | Path, wav_scp: dict[str, str]) -> None:
    """Refuse Kaldi pipes in a wav.scp.

    Raises:
        InputError: a value is a command, not a file.
    """
    for key, value in wav_scp.items():
        if value.endswith("|") or value.startswith("|"):
            raise InputError(
                f"{path}: utterance {key} is a command ({value}), which is not run; "
                "write its output to a file and give that file's path"
            )


def fingerprint(source: str, *settings: object) -> str:
    """A short text that changes when the source file or what is made of it (times, rate, ...) changes.

    Raises:
        AudioError: missing_audio, empty_audio.
    """
    path = _ark_position(source)[0]
    try:
        stat = os.stat(path)
    except OSError as error:
        raise AudioError("missing_audio", f"{path}: {error.strerror}") from None
    if stat.st_size == 0:
        raise AudioError("empty_audio", f"{path}: 0 bytes")
    return sha1(repr((source, stat.st_size, stat.st_mtime_ns, *settings)).encode()).hexdigest()


def _ark_position(source: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+):(\d+)", source)
    if match and not os.path.exists(source):
        return match[1], int(match[2])
    return source, None


@contextmanager
def open_audio(source: str) -> Iterator[soundfile.SoundFile]:
    """Open a path, or `file.ark:offset`, for reading.

    Raises:
        AudioError: missing_audio, empty_audio or unreadable_audio.
    """
    fingerprint(source)  # it exists and is not empty
    path, offset = _ark_position(source)
    try:
        file = soundfile.SoundFile(with_length_header(path) if offset is None else _ark_audio(path, offset))
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError("unreadable_audio", f"{source}: {_reason(error)}") from None
    with file:
        _check_complete(file, source)
        yield file


def _reason(error: Exception) -> str:
    return str(error).split(": ", 1)[-1]  # libsndfile's messages begin with the path


def _ark_audio(path: str, offset: int) -> io.BytesIO:
    import kaldiio  # few need it

    buffer = io.BytesIO()
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            if file.read(3) == b"PKL":
                raise ValueError("holds a pickle, which could run anything")
            file.seek(offset)
            rate, samples = kaldiio.matio.read_kaldi(file)
        subtype = "DOUBLE" if samples.dtype == np.float64 else None
        soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    except Exception as error:  # whatever kaldiio trips over in damaged bytes
        raise AudioError("unreadable_audio", f"{path}:{offset}: no audio there ({error})") from None
    buffer.seek(0)
    return buffer


def _check_complete(file: soundfile.SoundFile, source: str) -> None:
    # libsndfile corrects a WAV header that promises more than there is, and mentions it only in its log.
    match = re.search(r"^data *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if match:
        promised, held = int(match[1]), int(match[2])
        streamed = promised >= 0x7FFFF000  # written to a pipe: the length was never filled in
        if not streamed and held < promised * (1 - _TOLERATED_SHORTFALL):
            raise AudioError("unreadable_audio", f"{source}: cut off, {held} of {promised} bytes of samples")


def read_mono(file: soundfile.SoundFile, start: int = 0, frames: int = -1) -> np.ndarray:
    """Samples from frame `start` on, channels averaged, float32 (T,) in [-1, 1].

    Args:
        file: from open_audio.
        start: first frame.
        frames: how many; -1 for all up to the end.
    Raises:
        AudioError: unreadable_audio: decoding fails, fewer frames than the header says, or NaN.
    """
    try:
        file.seek(start)
        samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable_audio", f"decoding fails: {_reason(error)}") from None
    expected = frames if frames >= 0 else file.frames - start
    if len(samples) < expected * (1 - _TOLERATED_SHORTFALL):
        raise AudioError("unreadable_audio", f"cut off, {len(samples)} of {expected} samples")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise AudioError("unreadable_audio", "not all samples are finite numbers")
    return mono


def resample(samples: np.ndarray, rate: int, fs: int) -> np.ndarray:
    """Mono samples (T,) at `rate` Hz brought to `fs` Hz."""
    return samples if rate == fs else soxr.resample(samples, rate, fs, quality="HQ")


def write_audio(path: str | Path, samples: np.ndarray, fs: int, made_from: str) -> None:
    """Write mono 16-bit audio, FLAC or WAV by the path's suffix.

    Args:
        path: where to; its directory is made.
        samples: float (T,) in [-1, 1]; louder ones are clipped.
        fs: sampling rate in Hz.
        made_from: fingerprint kept in the file, for `length_if_made_from`.
    Raises:
        InputError: the disk is full, or the like.
    """
    path = Path(path)
    integers = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    kind = path.suffix[1:].upper()
    buffer = io.BytesIO()  # a full disk would go unnoticed inside libsndfile
    with soundfile.SoundFile(buffer, "w", fs, 1, "PCM_16", format=kind) as file:
        file.comment = made_from
        file.write(integers)
    try:
        with atomic_write(path, binary=True) as out:
            out.write(buffer.getvalue())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room, then run again") from None


def length_if_made_from(path: str | Path, made_from: str) -> int | None:
    """Samples in a file that write_audio made from just this; None when there is no such file."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.frames if file.comment == made_from else None
    except soundfile.SoundFileError:
        return None


def audio_path(folder: str | Path, utt: str, audio_format: str) -> Path:
    """Where an utterance's audio goes: spread over 256 folders, since file systems dislike huge ones."""
    name = utt.replace("%", "%25").replace("/", "%2F")
    return Path(folder) / f"{zlib.crc32(utt.encode()) & 0xFF:02x}" / f"{name}.{audio_format}"
