"""Fixtures: a small data directory whose audio and texts tests then spoil."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_llmst.datadir.kaldi import invert_utt2spk, write_table


class Corpus:
    """A data directory under construction: add utterances, then write()."""

    def __init__(self, root: Path):
        self.root, self.dir = root, root / "data"
        self.tables: dict[str, dict[str, str]] = {}

    @staticmethod
    def tone(seconds: float, rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
        return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)

    def audio(self, name: str, samples: np.ndarray, rate: int = 16000, **kwargs) -> str:
        path = self.root / "audio" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(path, samples, rate, **kwargs)
        return str(path)

    def add(self, utt: str, path: str, **changes: str | None) -> None:
        """An utterance with all its entries; `text_tc_de=None` leaves that one out."""
        entries = {"wav.scp": path, "utt2spk": f"spk-{utt[0]}", "utt2lang": "en"}
        entries |= {"text.tc.en": f"hello {utt}", "text.tc.de": f"hallo {utt}"}
        entries |= {name.replace("_", "."): value for name, value in changes.items()}
        for name, value in entries.items():
            if value is not None:
                self.tables.setdefault(name, {})[utt] = value

    def write(self) -> Path:
        self.tables["spk2utt"] = invert_utt2spk(self.tables["utt2spk"])
        for name, table in self.tables.items():
            write_table(self.dir / name, table)
        return self.dir


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return Corpus(tmp_path / "corpus")


@pytest.fixture
def good(corpus) -> Corpus:
    """Four good utterances of two speakers, 1 s of 16 kHz WAV each."""
    for utt in ("a1", "a2", "b1", "b2"):
        corpus.add(utt, corpus.audio(f"{utt}.wav", corpus.tone(1)))
    corpus.write()
    return corpus
