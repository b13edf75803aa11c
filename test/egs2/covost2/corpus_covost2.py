"""A small Common Voice with CoVoST-2's tables, in the layout of the real ones; sounds are noise."""

from pathlib import Path

import numpy as np
import soundfile

REPO = Path(__file__).resolve().parents[3]
LOCAL = REPO / "egs2/covost2/llmst1/local"
RELEASE_4 = "cv-corpus-4-2019-12-10"
# Column names as releases have them.
COLUMNS_4 = "client_id path sentence up_votes down_votes age gender accent"
COLUMNS_17 = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)
SPLITS = ("train", "train", "train", "train_covost", "dev", "dev_covost", "test", "test", "test_covost")


def write_clip(path: Path, seconds: float = 0.3, seed: int = 0) -> None:
    """An MP3 like Common Voice's: 48 kHz, mono."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(48000 * seconds))
    soundfile.write(path, samples, 48000, format="MP3")


def write_rows(path: Path, columns: str, rows: list[dict[str, str]]) -> None:
    """A table as CorporaCreator writes it: no quoting, missing values empty."""
    names = columns.split()
    lines = [names, *([row.get(name, "") for name in names] for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8", newline="\n")


class Corpus:
    """A language with its clips and tables; tests change ``clips`` (rows by number), then call ``write``."""

    def __init__(self, root: Path, src: str, tgts: tuple[str, ...] = ("en",), columns: str = COLUMNS_4):
        self.root, self.src, self.tgts, self.columns = root, src, tgts, columns
        self.folder = root / RELEASE_4 / src
        self.clips = {number: self._row(number, split) for number, split in enumerate(SPLITS)}

    def _row(self, number: int, split: str) -> dict[str, str]:
        return {
            "client_id": f"{number % 3:x}" * 128,
            "path": f"common_voice_{self.src}_{100000 + number}.mp3",
            "sentence": f"Phrase {number}.",
            "up_votes": "2",
            "age": "twenties",
            "locale": self.src,
            "split": split,
            **{f"translation.{tgt}": f"Sentence {number}." for tgt in self.tgts},
        }

    def add(self, split: str, **changes: str) -> str:
        """One more clip; returns its utterance id."""
        number = len(self.clips)
        self.clips[number] = self._row(number, split) | changes
        return self.utt(number)

    def utt(self, number: int) -> str:
        return f"common_voice_{self.src}_{100000 + number}"

    def clip(self, number: int) -> Path:
        return self.folder / "clips" / f"{self.utt(number)}.mp3"

    def write(self, seconds: float = 0.3) -> Path:
        """Clips, Common Voice's tables, a translation table for each target; returns the root."""
        rows = list(self.clips.values())
        for number in self.clips:
            write_clip(self.clip(number), seconds, seed=number)
        write_rows(self.folder / "validated.tsv", self.columns, rows)
        for split in ("train", "dev", "test"):
            own = [row for row in rows if row["split"] == split]
            write_rows(self.folder / f"{split}.tsv", self.columns, own)
        for tgt in self.tgts:
            translated = [row | {"translation": row[f"translation.{tgt}"]} for row in rows]
            write_rows(self.table(tgt), "path translation split", translated)
        return self.root

    def table(self, tgt: str = "en") -> Path:
        return self.folder / f"covost_v2.{self.src}_{tgt}.tsv"


def read(path: Path) -> dict[str, str]:
    """A Kaldi table, which must be in C order."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert lines == sorted(lines)
    return dict(line.split(" ", 1) if " " in line else (line, "") for line in lines)


def dropped(set_dir: Path) -> dict[str, str]:
    """Reasons by utterance, of dropped.tsv."""
    lines = (set_dir / "dropped.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}
