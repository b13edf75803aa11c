"""A small MuST-C in its genuine layout, to be spoiled by tests; and the recipe's module that prepares it."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile

RECIPE = Path(__file__).resolve().parents[3] / "egs2/must_c/llmst1"
V1 = "{{duration: {duration:.6f}, offset: {offset:.6f}, speaker_id: {speaker}, wav: {wav}}}"
V2 = "{{duration: {duration:.6f}, offset: {offset:.6f}, rW: 9, uW: 0, speaker_id: {speaker}, wav: {wav}}}"
SPLITS = ("train", "dev", "tst-COMMON", "tst-HE")


def load_prepare() -> ModuleType:
    """The module ``local/prepare_must_c.py``."""
    if str(RECIPE / "local") not in sys.path:
        sys.path.insert(0, str(RECIPE / "local"))
    return importlib.import_module("prepare_must_c")


def write_talk(path: Path, seconds: float, seed: int = 0) -> None:
    """A talk: 16 kHz mono noise of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(16000 * seconds))
    soundfile.write(path, samples, 16000, subtype="PCM_16")


def entries(talk: int, count: int, seconds: float = 1.5) -> list[dict]:
    """Segments of a talk, one after the other."""
    return [
        {"wav": f"ted_{talk}.wav", "speaker": f"spk.{talk}", "offset": 0.5 + i * seconds, "duration": seconds - 0.25}
        for i in range(count)
    ]


def write_tables(
    split_dir: Path,
    segments: list[dict | str],
    texts: dict[str, list[str]] | None = None,
    tgt: str = "de",
    form: str = V1,
) -> None:
    """``txt/<split>.{yaml,en,<tgt>}``; a segment may be a line of YAML, and texts may be given instead of made up."""
    lines = [f"- {form.format(**s)}" if isinstance(s, dict) else s for s in segments]
    made_up = {"en": [f"Sentence {i}." for i in range(len(lines))], tgt: [f"Satz {i}." for i in range(len(lines))]}
    txt = split_dir / "txt"
    txt.mkdir(parents=True, exist_ok=True)
    for kind, of_kind in {"yaml": lines, **made_up, **(texts or {})}.items():
        (txt / f"{split_dir.name}.{kind}").write_text("".join(f"{line}\n" for line in of_kind), "utf-8", newline="\n")


def write_corpus(root: Path, tgts: tuple[str, ...] = ("de",), form: str = V1, splits: tuple[str, ...] = SPLITS) -> Path:
    """A sound corpus: two talks of three segments in train, one in every other split."""
    for tgt in tgts:
        for number, split in enumerate(splits):
            split_dir = root / f"en-{tgt}" / "data" / split
            talks = (1, 12) if split == "train" else (20 + number,)
            for talk in talks:
                write_talk(split_dir / f"wav/ted_{talk}.wav", 6.0, talk)
            write_tables(split_dir, [entry for talk in talks for entry in entries(talk, 3)], tgt=tgt, form=form)
    return root
