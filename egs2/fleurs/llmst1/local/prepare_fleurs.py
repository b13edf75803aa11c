"""Prepare FLEURS for speech translation: recordings of one language with the same sentences in another.

Layout expected (google/fleurs on the Hugging Face hub), one of

    <corpus_dir>/data/<lang>/{train,dev,test}.tsv             the original form; "data" may be missing
    <corpus_dir>/data/<lang>/audio/{train,dev,test}.tar.gz    members <split>/<number>.wav
    <corpus_dir>/data/<lang>/audio/{train,dev,test}/*.wav     or unpacked
    <corpus_dir>/metadata/<lang>/{train,dev,test}.tsv         lhotse's form
    <corpus_dir>/<lang>/{train,dev,test}/*.wav
    <corpus_dir>/<lang>/fleurs-{train,validation,test}*.parquet   the hub's parquet form; without "fleurs-" too,
    <corpus_dir>/<lang>/{train,validation,test}/0000.parquet      or numbered in folders

<lang> is one of FLEURS's 102 codes, such as en_us or cmn_hans_cn. Of a target language only the tables are needed.

Layout made:

    <out_dir>/<split>.<src>-<tgt>/           split: train, dev, test
        wav.scp  text.tc.<src>  text.tc.<tgt>  utt2spk  spk2utt  utt2lang  dropped.tsv  unpaired.tsv
    <audio_dir>/<lang>/<split>/<number>.flac

FLEURS's ids are those of sentences, which are the same in all languages. Most sentences have two or three recordings:
each is an utterance, called ``<lang>_<sentence>_<number>``. Its source text is its own raw transcription, its
translation the raw transcription of the sentence's first recording, by file name, in the target language. A sentence
that the other language lacks is normal: its recordings are listed in unpaired.tsv. Speakers are unknown, so every
utterance is its own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fleurs_audio import find_audio, forget, processes, unpack
from fleurs_tables import Table, language_dirs, read_table, utterance_id

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.corpus import Dropped, Item, compare_counts, prepare_set
from espnet_llmst.datadir.kaldi import write_tsv

SPLITS = ("train", "dev", "test")
VERSION = 1  # raise it when the same corpus is to be prepared anew
# Recordings in train, dev and test, from the hub's description of google/fleurs.
PUBLISHED = {
    "cmn_hans_cn": (3246, 409, 945),
    "de_de": (2987, 363, 862),
    "en_us": (2602, 394, 647),
    "es_419": (2796, 408, 908),
    "fr_fr": (3193, 289, 676),
    "id_id": (2579, 350, 687),
    "it_it": (3030, 391, 865),
    "ja_jp": (2292, 266, 650),
    "ko_kr": (2307, 226, 382),
    "nl_nl": (2918, 171, 364),
    "pt_br": (2793, 386, 919),
    "ru_ru": (2562, 356, 775),
    "th_th": (2602, 439, 1021),
    "vi_vn": (2994, 361, 857),
    "yue_hant_hk": (1939, 362, 819),
}


class Side(NamedTuple):
    """A split of a language: its table and, where it is spoken, where its audio is and will be."""

    table: Table
    audio: list[Path]
    folder: Path


def prepare_fleurs(
    corpus_dir: str | Path,
    out_dir: str | Path,
    directions: Sequence[str],
    audio_dir: str | Path | None = None,
    nj: int = 1,
    force: bool = False,
) -> dict[str, Any]:
    """Write the data directories of some directions; finished ones are skipped, a killed run goes on.

    Args:
        corpus_dir: root of FLEURS.
        out_dir: where the data directories go.
        directions: such as ``en_us-de_de``; several may stand in one string.
        audio_dir: where archives are unpacked to (default ``<out_dir>/audio``).
        nj: processes that convert and open audio.
        force: make everything again.
    Returns:
        ``{"tables": {"<lang> <split>": recordings}, "sets": {name: summary of prepare_set and "unpaired"}}``
    Raises:
        InputError: a direction that cannot be, a missing or damaged table or archive, no usable recording.
    """
    pairs = parse_directions(directions)
    corpus_dir, out_dir = Path(corpus_dir).resolve(), Path(out_dir)
    audio_dir = Path(audio_dir or out_dir / "audio").resolve()
    sources = {src for src, _ in pairs}
    # Whatever is missing is told before hours of work.
    sides = {
        (lang, split): read_side(corpus_dir, audio_dir, lang, split, lang in sources)
        for lang in dict.fromkeys(lang for pair in pairs for lang in pair)
        for split in SPLITS
    }
    for src in sources if force else ():
        for split in SPLITS:
            forget(sides[src, split].folder)
    sets = {}
    for src, tgt in pairs:
        for split in SPLITS:
            name = f"{split}.{src}-{tgt}"
            sets[name] = _prepare_one(out_dir / name, src, tgt, sides[src, split], sides[tgt, split], nj, force)
    tables = {f"{lang} {split}": _count(side.table) for (lang, split), side in sides.items()}
    return {"tables": tables, "sets": sets}


def _prepare_one(set_dir: Path, src: str, tgt: str, source: Side, target: Side, nj: int, force: bool) -> dict:
    """Write one set, audio unpacked first; its summary."""
    translations = target.table.sentences
    unpaired = [r for r in source.table.recordings if r.sentence not in translations]
    if len(unpaired) == len(source.table.recordings):
        raise InputError(
            f"{source.table.files[0]}: none of its sentence ids is in {target.table.files[0]}; get both of one release"
        )

    def read() -> tuple[list[Item], list[Dropped]]:
        folder = unpack(source.audio, source.folder, nj)
        rows = [(utterance_id(src, r), f"no {tgt} recording of sentence {r.sentence}") for r in unpaired]
        write_tsv(set_dir / "unpaired.tsv", [("utt", "detail"), *rows])
        items, missing = make_items(source, folder, src, tgt, translations)
        return items, source.table.dropped + missing

    inputs = list(dict.fromkeys([*source.table.files, *target.table.files, *source.audio]))
    settings = {"prepare_fleurs": VERSION, "audio": str(source.folder)}
    whole = not set_dir.name.startswith("train")
    jobs = processes(nj, len(source.table.recordings))
    summary = prepare_set(set_dir, read, inputs, whole=whole, nj=jobs, force=force, settings=settings)
    return {**summary, "unpaired": len(unpaired)}


def parse_directions(directions: Sequence[str]) -> list[tuple[str, str]]:
    """``["en_us-de_de fr_fr-de_de"]`` as pairs; an InputError for what is no direction."""
    pairs = []
    for direction in dict.fromkeys(" ".join(directions).replace(",", " ").split()):
        src, _, tgt = direction.partition("-")
        if not src or not tgt or "-" in tgt or src == tgt:
            raise InputError(f"direction '{direction}': give <source>-<target>, such as en_us-de_de")
        pairs.append((src, tgt))
    if not pairs:
        raise InputError("no direction: give at least one, such as --directions en_us-de_de")
    return pairs


def read_side(corpus_dir: Path, audio_dir: Path, lang: str, split: str, spoken: bool) -> Side:
    """The table of a language's split and, if it is spoken, where its audio is."""
    dirs = language_dirs(corpus_dir, lang)
    table = read_table(dirs, lang, split)
    for lost in table.dropped:
        if lost.reason == "malformed_row" and not spoken:  # those of a source language are listed with its sets
            print(f"WARNING: {lost.reason}: {lost.detail}", file=sys.stderr)
    folder = audio_dir / lang / split
    files = {recording.file for recording in table.recordings}
    return Side(table, find_audio(dirs, split, files, folder) if spoken else [], folder)


def make_items(
    source: Side, folder: Path, src: str, tgt: str, translations: dict[int, str]
) -> tuple[list[Item], list[Dropped]]:
    """The utterances with a translation, and those of them whose audio is not there."""
    there = {path.name for path in folder.iterdir()}
    items, missing = [], []
    for recording in source.table.recordings:
        if recording.sentence not in translations:
            continue
        utt, stem = utterance_id(src, recording), Path(recording.file).stem
        name = next((n for n in (f"{stem}.flac", recording.file, f"{stem}.wav") if n in there), None)
        if name:
            texts = {src: recording.text, tgt: translations[recording.sentence]}
            items.append(Item(utt, utt, src, str(folder / name), texts))
        else:
            missing.append(Dropped(utt, "missing_audio", f"{recording.file} is not in {source.audio[0]}"))
    return items, missing


def _count(table: Table) -> int:
    return len(table.recordings) + len(table.dropped)


def describe(name: str, summary: dict) -> str:
    """A line about a set."""
    parts = [f"{name}: {summary['utterances']} utterances, {summary['hours']} hours"]
    tgt = name.partition("-")[2]
    if summary["unpaired"]:
        parts.append(f"{summary['unpaired']} more recordings have no {tgt} sentence (unpaired.tsv)")
    if summary["dropped"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary["reasons"].items())
        parts.append(f"{summary['dropped']} dropped (dropped.tsv): {reasons}")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("prepare_fleurs.py", "Prepare FLEURS: pairs of speech and translation")
    parser.add_argument("--corpus_dir", required=True, help="root of FLEURS: the folder that holds data/")
    parser.add_argument("--out_dir", default="data", help="where the data directories go")
    parser.add_argument("--audio_dir", help="where archives are unpacked to; unset: <out_dir>/audio")
    parser.add_argument("--directions", nargs="+", required=True, help="such as en_us-de_de fr_fr-de_de")
    parser.add_argument("--nj", type=int, default=1, help="processes that convert and open audio")
    parser.add_argument("--force", action="store_true", help="make everything again")
    args = parser.parse_args(argv)
    del args.config
    summary = prepare_fleurs(**vars(args))
    for name, count in summary["tables"].items():
        lang, split = name.split()
        published = {"google/fleurs": PUBLISHED[lang][SPLITS.index(split)]} if lang in PUBLISHED else {}
        print(compare_counts(f"FLEURS {name}", count, published))
    for name, found in summary["sets"].items():
        print(f"{args.out_dir}/{describe(name, found)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
