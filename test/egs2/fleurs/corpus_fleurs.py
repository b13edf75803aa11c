"""A small FLEURS in every form in which it is found: archives, folders, lhotse's folders, parquet files."""

import importlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import soundfile

RECIPE = Path(__file__).resolve().parents[3] / "egs2" / "fleurs" / "llmst1"
SPLITS = ("train", "dev", "test")
TEXTS = {
    1: {"en_us": "The train leaves at seven.", "de_de": "Der Zug fährt um sieben ab.", "cmn_hans_cn": "火车七点开。"},
    2: {"en_us": "Where is the station?", "de_de": "Wo ist der Bahnhof?", "cmn_hans_cn": "车站在哪里？"},
    3: {"en_us": "She buys two tickets.", "de_de": "Sie kauft zwei Fahrkarten."},
    4: {"en_us": "It rains.", "cmn_hans_cn": "下雨了。"},
    11: {"en_us": "He was born in 1769.", "de_de": "Er wurde 1769 geboren.", "cmn_hans_cn": "他生于1769年。"},
    1914: {"en_us": "The museum is closed.", "de_de": "Das Museum ist zu.", "cmn_hans_cn": "博物馆关门了。"},
    1675: {"en_us": "We met at the harbour.", "cmn_hans_cn": "我们在港口见面。"},
}
# Sentences of a split, each with its number of recordings per language (0: none).
SENTENCES = {
    "train": {1: 2, 2: 1, 3: 1, 4: 1},
    "dev": {11: 2},
    "test": {1914: 3, 1675: 1},
}


def load(name: str):
    """A module of the recipe's ``local`` folder."""
    folder = str(RECIPE / "local")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


class Row:
    """A recording as FLEURS lists it."""

    def __init__(self, sentence: int, number: int, text: str, seconds: float = 0.6) -> None:
        self.sentence, self.file, self.text = sentence, f"{number}.wav", text
        self.samples = round(seconds * 16000)

    def line(self) -> str:
        plain = self.text.lower().replace("?", "").replace(".", "")
        characters = " ".join("|".join(plain.split())) + " |"
        fields = [self.sentence, self.file, self.text, plain, characters, self.samples, "FEMALE"]
        return "\t".join(map(str, fields))

    def wav(self, subtype: str = "FLOAT") -> bytes:
        """A tone of its own; the hub's archives hold 32-bit samples."""
        time = np.arange(self.samples) / 16000
        pitch = 200 + int(self.file[-8:-4]) % 700
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * pitch * time), 16000, subtype=subtype, format="WAV")
        return buffer.getvalue()


def rows_of(lang: str, split: str) -> list[Row]:
    """A table in the corpus's order, which is none: numbers of 19 or 20 digits, recordings of a sentence apart."""
    rows = []
    for sentence, count in SENTENCES[split].items():
        for take in range(count if lang in TEXTS[sentence] else 0):
            number = int(f"{4 - take}{sum(map(ord, lang + split)):05d}{sentence:06d}{take:07d}")
            rows.append(Row(sentence, number, TEXTS[sentence][lang]))
    return rows[::2] + rows[1::2]


def table_path(root: Path, lang: str, split: str) -> Path:
    return root / "data" / lang / f"{split}.tsv"


def edit_table(root: Path, lang: str, split: str, change) -> None:
    """Replace the lines of a table by what ``change`` makes of them."""
    path = table_path(root, lang, split)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    path.write_text("".join(f"{line}\n" for line in change(lines)), encoding="utf-8")


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    """A tar.gz with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_corpus(root: Path, form: str = "archive", langs=("en_us", "de_de", "cmn_hans_cn"), **wav) -> Path:
    """Write the corpus in a form: archive, folder, nested, bare, lhotse, parquet, numbered or sharded."""
    for lang in langs:
        for split in SPLITS:
            rows = rows_of(lang, split)
            {"parquet": _parquet, "numbered": _parquet, "sharded": _parquet}.get(form, _table)(
                root, form, lang, split, rows, {row.file: row.wav(**wav) for row in rows}
            )
    return root


def _table(root, form, lang, split, rows, wavs) -> None:
    data = root / "data" / lang
    table, audio = {
        "archive": (data, data / "audio"),
        "folder": (data, data / "audio" / split),
        "nested": (data, data / "audio" / split / split),
        "bare": (root / lang, root / lang / "audio"),
        "lhotse": (root / "metadata" / lang, root / lang / split),
    }[form]
    table.mkdir(parents=True, exist_ok=True)
    (table / f"{split}.tsv").write_text("".join(f"{row.line()}\n" for row in rows), encoding="utf-8")
    if form in ("archive", "bare"):
        write_archive(audio / f"{split}.tar.gz", {f"{split}/{name}": data for name, data in wavs.items()})
    else:
        audio.mkdir(parents=True)
        for name, data in wavs.items():
            (audio / name).write_bytes(data)


def _parquet(root, form, lang, split, rows, wavs) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    folder, name = root / lang, {"dev": "validation"}.get(split, split)
    shards = [rows[:1], rows[1:]] if form == "sharded" else [rows]
    for index, shard in enumerate(shards):
        path = {
            "parquet": folder / f"fleurs-{name}.parquet",
            "numbered": folder / name / f"{index:04d}.parquet",
            "sharded": folder / f"fleurs-{name}-{index:05d}-of-{len(shards):05d}.parquet",
        }[form]
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            "id": [row.sentence for row in shard],
            "num_samples": [row.samples for row in shard],
            "path": [f"/root/cache/{lang}/{row.file}" for row in shard],
            "audio": [{"bytes": wavs[row.file], "path": f"{split}/{row.file}"} for row in shard],
            "transcription": [row.text.lower() for row in shard],
            "raw_transcription": [row.text for row in shard],
            "gender": [1 for _ in shard],
        }
        write_table(Table.from_pydict(columns), path)


def write_common_voice(root: Path, lang: str = "en", count: int = 4) -> Path:
    """A language of Common Voice with as many clips in each split."""
    clips = root / lang / "clips"
    clips.mkdir(parents=True)
    columns = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"]
    for start, split in enumerate(SPLITS):
        lines = ["\t".join(columns)]
        for number in range(start * count, (start + 1) * count):
            name = f"common_voice_{lang}_{number}.mp3"
            soundfile.write(clips / name, 0.1 * np.random.default_rng(number).standard_normal(48000), 48000)
            lines.append(f"{number:0128x}\t{name}\tIt is number {number}.\t2\t0\t\t\t")
        (root / lang / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return root
