"""Synthetic speech for mini_st: espeak-ng from the PyPI package espeakng-loader, called through ctypes.

espeak keeps counters from one sentence to the next (flutter, wave phase, noise), so the same sentence would
sound a little different after another one. ``speak`` therefore loads the library afresh every time, which
costs three milliseconds and makes speech depend on its arguments alone.
"""

import _ctypes
import ctypes
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from espnet_llmst.cli import InputError

SAMPLE_RATE = 16000
VOICES = {"en": "en", "de": "de", "fr": "fr", "es": "es", "pt": "pt-br"}
SYNCHRONOUS, UTF8, DONT_EXIT = 2, 1, 0x8000  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8, ..._DONT_EXIT
RATE, PITCH = 1, 3  # espeakRATE (words per minute), espeakPITCH (0 to 100)
LONGEST_DATA_PATH = 140  # espeak cuts longer ones off
MARGIN = 0.07  # seconds of silence kept at either end
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker(NamedTuple):
    """A way to speak: espeak's voice variant ("" is its own voice), pitch and words per minute."""

    variant: str
    pitch: int
    rate: int


# The same for every language. Those of dev and test lie between the ones of train, but are none of them.
SPEAKERS = {
    "train": {
        "m01": Speaker("m1", 38, 165),
        "m02": Speaker("m2", 45, 180),
        "m03": Speaker("m3", 40, 190),
        "m04": Speaker("m3", 62, 165),
        "m05": Speaker("m4", 50, 175),
        "m06": Speaker("m6", 55, 185),
        "m07": Speaker("", 50, 170),
        "f01": Speaker("f1", 42, 175),
        "f02": Speaker("f2", 40, 185),
        "f03": Speaker("f2", 60, 165),
        "f04": Speaker("f3", 50, 175),
        "f05": Speaker("f4", 48, 180),
    },
    "dev": {"m08": Speaker("m1", 50, 175), "m09": Speaker("m4", 42, 170), "f06": Speaker("f2", 50, 175)},
    "test": {
        "m10": Speaker("Mike", 50, 175),
        "m11": Speaker("m3", 52, 180),
        "f07": Speaker("f1", 50, 170),
        "f08": Speaker("f4", 55, 175),
    },
}


def speak(text: str, voice: str, rate: int = 200, pitch: int = 50, seed: int = 0) -> tuple[np.ndarray, int]:
    """Say ``text``; the same arguments give the same samples.

    Args:
        text: What to say.
        voice: espeak's voice, with a variant if wanted, such as ``fr`` or ``fr+f2``.
        rate: Words per minute.
        pitch: 0 to 100; 50 is the voice's own.
        seed: Of espeak's noise (breath).

    Returns:
        Samples (int16) and their rate in Hz, as espeak makes them, with silence at the ends.

    Raises:
        InputError: espeak is missing, knows no such voice or stays silent.
    """
    pieces: list[np.ndarray] = []

    @CALLBACK
    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library_path, data_path = _package()
    library = ctypes.CDLL(library_path)
    try:
        sample_rate = library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data_path), DONT_EXIT)
        if sample_rate <= 0:
            raise InputError(f"{data_path}: espeak cannot read its data: install espeakng-loader again")
        library.espeak_SetSynthCallback(collect)
        _set_voice(library, voice, rate, pitch, seed)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, UTF8, None, None)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)
    if not any(piece.any() for piece in pieces):
        raise InputError(f"{text!r}: voice {voice} says nothing; give it a text with words")
    return np.concatenate(pieces), sample_rate


def _set_voice(library: ctypes.CDLL, voice: str, rate: int, pitch: int, seed: int) -> None:
    """Choose voice, rate, pitch and noise."""
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise InputError(f"{voice}: espeak has no such voice; see espeak-ng-data/lang")
    library.espeak_SetParameter(RATE, rate, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))


@functools.cache
def _package() -> tuple[str, str]:
    """espeak's library and data folder, the latter by a short name."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError("espeakng-loader is not installed: run `pip install espeakng-loader`") from error
    data_path = str(espeakng_loader.get_data_path())
    if len(os.fsencode(data_path)) > LONGEST_DATA_PATH:
        short = Path(tempfile.mkdtemp(prefix="espeak")) / "espeak-ng-data"
        short.symlink_to(data_path)
        data_path = str(short)
    return str(espeakng_loader.get_library_path()), data_path


def record(text: str, lang: str, speaker: Speaker, utterance: str, seed: int = 0) -> np.ndarray:
    """One utterance as in a recording: 16 kHz, trimmed, of varying loudness, with light noise.

    Args:
        text: What to say.
        lang: One of ``VOICES``.
        speaker: Who says it.
        utterance: Its id; with ``seed`` it decides loudness and noise.
        seed: Of the corpus.

    Returns:
        Samples (int16) at ``SAMPLE_RATE``.
    """
    digest = hashlib.sha256(f"{seed} {utterance}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    voice = f"{VOICES[lang]}+{speaker.variant}" if speaker.variant else VOICES[lang]
    samples, rate = speak(text, voice, speaker.rate, speaker.pitch, seed=int(rng.integers(1, 2**31)))
    speech = _trim(soxr.resample(samples.astype(np.float32) / 32768, rate, SAMPLE_RATE))
    speech *= rng.uniform(0.3, 0.8) / np.abs(speech).max()
    snr = rng.uniform(25, 35)  # dB
    noise_rms = np.sqrt(np.mean(speech**2)) * 10 ** (-snr / 20)
    noisy = speech + noise_rms * rng.standard_normal(len(speech))
    return np.clip(np.round(noisy * 32767), -32768, 32767).astype(np.int16)


def _trim(speech: np.ndarray) -> np.ndarray:
    """Cut silence at both ends down to ``MARGIN``, or lengthen it to that."""
    margin = int(MARGIN * SAMPLE_RATE)
    (loud,) = np.nonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return np.pad(speech, margin)[loud[0] : loud[-1] + 1 + 2 * margin]
