"""Writes a small Mboshi-French in the layout of its repository, with its real defects, and copies the recipe.

Sentences are made up. Many .fr files end in CR; some recordings claim more samples than they hold.
"""

import importlib
import itertools
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile

REPO = Path(__file__).resolve().parents[3]
LOCAL = REPO / "egs2/mboshi_french/llmst1/local"
WORDS = {"wa": "il", "bána": "les enfants", "kyéma": "le singe", "ngá": "moi", "sωndω": "forêt", "oyoá": "mange"}
RATE = 16000
LIAR = "kouarata_2015-08-13_mdw_elicit_Part2_3"  # its header promises ten times what there is


def load(name: str) -> ModuleType:
    """The module ``local/<name>.py`` of the recipe."""
    if str(LOCAL) not in sys.path:
        sys.path.insert(0, str(LOCAL))
    return importlib.import_module(name)


def copy_recipe(root: Path) -> Path:
    """The recipe as it is, beside the real TEMPLATE and package."""
    folder = root / "egs2/mboshi_french/llmst1"
    ignore = shutil.ignore_patterns("data", "dump", "exp", "downloads", "__pycache__")
    shutil.copytree(REPO / "egs2/mboshi_french/llmst1", folder, symlinks=True, ignore=ignore)
    for name in ("egs2/TEMPLATE", "egs2/mini_st", "tools", "espnet_llmst"):
        (root / name).symlink_to(REPO / name)
    return folder


def write_corpus(root: Path) -> Path:
    """A clone with 24 + 6 utterances of three speakers; the last two of dev are translated as some of train."""
    pairs = list(itertools.permutations(WORDS, 2))[:30]
    for number, words in enumerate(pairs):
        split = "train" if number < 24 else "dev"
        speaker, part = (("kouarata", "Part2"), ("abiayi", "Dico18"), ("martial", "Dico3"))[number % 3]
        utt = f"{speaker}_2015-08-13_mdw_elicit_{part}_{number}"
        source = " ".join(words).capitalize()
        target = " ".join(WORDS[word] for word in (pairs[number - 20] if number >= 28 else words)).capitalize()
        write_utterance(root / "full_corpus_newsplit" / split / utt, source, target, number)
    spoil_header(root / f"full_corpus_newsplit/train/{LIAR}.wav")
    return root


def write_utterance(stem: Path, source: str, target: str, number: int) -> None:
    """The files of an utterance."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    hertz, times = 200 + 40 * number, np.arange(RATE // 2 + 400 * number) / RATE
    soundfile.write(f"{stem}.wav", 0.2 * np.sin(2 * np.pi * hertz * times), RATE, subtype="PCM_16")
    end = "\r\n" if number % 2 else "\n"
    for suffix, text in (("mb", source), ("fr", target)):
        Path(f"{stem}.{suffix}").write_bytes(f"{text}{end}".encode())
        Path(f"{stem}.{suffix}.cleaned").write_text(text.lower() + "\n", encoding="utf-8")


def spoil_header(wav: Path) -> None:
    """Have the data chunk claim ten times its size."""
    content = bytearray(wav.read_bytes())
    place = content.index(b"data") + 4
    (size,) = struct.unpack_from("<I", content, place)
    struct.pack_into("<I", content, place, 10 * size)
    wav.write_bytes(content)
