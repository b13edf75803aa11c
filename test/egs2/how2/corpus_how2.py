"""Writes a small How2 in its genuine layout: odd video names, merged segments, both forms of its texts.

In the audio of a video, segment number n sounds at ``hertz(n)``, so that a test can tell whose audio it has.
"""

import bz2
import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import kaldiio
import numpy as np
import soundfile

REPO = Path(__file__).resolve().parents[3]
LOCAL = REPO / "egs2/how2/llmst1/local"
ARCHIVES = "features/fbank_pitch_181506"
# Names as YouTube gives them: they begin with - and _, and contain both.
VIDEOS = {
    "train": ["-aB3dE5gH7_", "_-q2W4e6R8t", "Zx9_cV7-bN5"],
    "val": ["0_1-2__3--4"],
    "dev5": ["--Kd9sLw_2x", "__0_1_2_3_4"],
}


def load(name: str) -> ModuleType:
    """The module ``local/<name>.py`` of the recipe."""
    if str(LOCAL) not in sys.path:
        sys.path.insert(0, str(LOCAL))
    return importlib.import_module(name)


def copy_recipe(root: Path) -> Path:
    """The recipe as it is, beside the real TEMPLATE and package."""
    folder = root / "egs2/how2/llmst1"
    ignore = shutil.ignore_patterns("data", "dump", "exp", "downloads", "__pycache__")
    shutil.copytree(REPO / "egs2/how2/llmst1", folder, symlinks=True, ignore=ignore)
    for name in ("egs2/TEMPLATE", "egs2/mini_st", "tools", "espnet_llmst"):
        (root / name).symlink_to(REPO / name)
    return folder


def hertz(number: int) -> int:
    """What segment ``number`` of a video sounds like."""
    return 300 + 100 * number


def numbers(segment: str) -> list[int]:
    """The numbers behind a segment's video."""
    return [int(part) for part in segment[12:].split("_")]


class How2:
    """A corpus under construction: change its tables and files, then ``write``."""

    def __init__(self, root: Path, pieces: int = 4) -> None:
        """``pieces``: segments a video; in each video the last one is merged of two."""
        self.root = root / "how2-300h-v1"
        self.segments: dict[str, dict[str, str]] = {}
        self.texts: dict[str, dict[str, dict[str, str]]] = {}
        self.forms = {"en": {"plain", "keyed"}, "pt": {"plain", "keyed"}}
        self.dropped_tables: set[str] = set()  # "<split>/<name>", not written
        for split, videos in VIDEOS.items():
            self.segments[split], self.texts[split] = {}, {"en": {}, "pt": {}}
            for video in videos:
                for number in range(pieces):
                    name = f"{number}_{number + 1}" if number == pieces - 1 else str(number)
                    self.add(split, f"{video}_{name}", 0.25 + number, 1.05 + number)

    def add(self, split: str, segment: str, start: float, end: float) -> None:
        """A segment with its texts."""
        self.segments[split][segment] = f"{segment[:11]} {start:.2f} {end:.2f}"
        self.texts[split]["en"][segment] = f"Now, this is step {segment[12:]}; don't worry."
        self.texts[split]["pt"][segment] = f"Agora, este é o passo {segment[12:]}; não se preocupe."

    def audio(self, video: str, name: str = "", rate: int = 44100, seconds: float = 5.0, place: str = "audio") -> Path:
        """A stereo recording, one tone a second."""
        path = self.root / place / (name or f"{video}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(int(seconds * rate)) / rate
        wave = 0.3 * np.sin(2 * np.pi * hertz(np.floor(time)) * time)
        soundfile.write(path, np.stack([wave, 0.5 * wave], axis=1), rate)
        return path

    def all_audio(self) -> None:
        """Audio of every video, of several kinds and in several folders."""
        for number, video in enumerate(video for videos in VIDEOS.values() for video in videos):
            suffix, rate = ((".wav", 44100), (".flac", 48000), (".mp3", 44100))[number % 3]
            self.audio(video, f"{video}{suffix}", rate, place=f"audio/{number % 2}")

    def write(self) -> Path:
        """All tables, in C order."""
        for split, segments in self.segments.items():
            order = sorted(segments)
            self.table(split, "id", [*order])
            self.table(split, "segments", [f"{segment} {segments[segment]}" for segment in order])
            self.table(split, "utt2spk", [f"{segment} {segment[:11]}" for segment in order])
            for lang, texts in self.texts[split].items():
                if "plain" in self.forms[lang]:
                    self.table(split, f"text.{lang}", [texts[segment] for segment in order])
                if "keyed" in self.forms[lang]:
                    self.table(split, f"text.id.{lang}", [f"{segment} {texts[segment]}" for segment in order])
        return self.root

    def table(self, split: str, name: str, lines: list[str]) -> Path:
        """One table, unless it is to be missing."""
        path = self.root / "data" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if f"{split}/{name}" not in self.dropped_tables:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    def pack_translations(self) -> Path:
        """translations.pt.bz2 in place of text.pt and text.id.pt."""
        self.forms["pt"] = set()
        lines = [f"{seg} {text}\n" for texts in self.texts.values() for seg, text in texts["pt"].items()]
        path = self.root / "translations.pt.bz2"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bz2.compress("".join(lines).encode("utf-8")))
        return path

    def features(self, columns: int = 43) -> Path:
        """Archives as published: compressed matrices, statistics by video, lists with ARK_PATH for the folder."""
        folder = self.root / ARCHIVES
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        matrices, places = {}, {}
        for segments in self.segments.values():
            for segment, value in segments.items():
                start, end = map(float, value.split()[1:])
                frames = int((end - start - 0.025) / 0.010 + 1e-6) + 1
                matrices[segment] = (3 * random.standard_normal((frames, columns)) + 12).astype(np.float32)
        for part in (1, 2):
            own = {segment: matrices[segment] for segment in sorted(matrices)[part - 1 :: 2]}
            archive = folder / f"raw_fbank_pitch_all_181506.{part}.ark"
            places |= save(archive, own, compression_method=2)
        statistics: dict[str, np.ndarray] = {}
        for segment, matrix in matrices.items():
            sums = np.stack([np.append(matrix.sum(0), len(matrix)), np.append(np.square(matrix).sum(0), 0)])
            statistics[segment[:11]] = statistics.get(segment[:11], 0) + sums.astype(np.float64)
        cmvn = save(folder / "cmvn_all_181506.ark", statistics)
        for split, segments in self.segments.items():
            self.table(split, "feats.scp", [f"{segment} {places[segment]}" for segment in sorted(segments)])
            videos = sorted({segment[:11] for segment in segments})
            self.table(split, "cmvn.scp", [f"{video} {cmvn[video]}" for video in videos])
        return folder


def save(archive: Path, matrices: dict[str, np.ndarray], **options) -> dict[str, str]:
    """Write an archive and its list; returns the list, with ARK_PATH for the folder."""
    scp = archive.with_suffix(".scp")
    kaldiio.save_ark(str(archive), matrices, scp=str(scp), **options)
    lines = [line.split() for line in scp.read_text().splitlines()]
    places = {key: f"ARK_PATH/{archive.name}:{value.rpartition(':')[2]}" for key, value in lines}
    scp.write_text("".join(f"{key} {value}\n" for key, value in places.items()))
    return places
