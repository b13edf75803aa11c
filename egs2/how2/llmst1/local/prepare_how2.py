"""Prepare How2 (300 h of English instructional videos, translated to Portuguese): train, val and dev5.

The layout expected is that of its archives, and what ``scripts/install.sh`` of srvk/how2-dataset leaves:

    <corpus_dir>/                          how2-300h-v1, the folder around it, or the repository
        data/{train,val,dev5}/
            segments                       <segment> <video> <start> <end>, in seconds
            id, text.en, text.pt           one segment a line, the same one in all three
            text.id.en, text.id.pt         <segment> <text>; either form will do, two must agree
            feats.scp, cmvn.scp            --feats_type kaldi: <segment or video> ARK_PATH/<archive>:<byte>
        translations.pt.bz2                in place of text.pt: <segment> <text> of all splits
        <anywhere>/<video>.{wav,flac,...}  --feats_type raw: audio, or in --audio_dir
        <anywhere>/*.{ark,scp}             --feats_type kaldi: archives, or in --feats_dir

A segment is called as its video, which is 11 characters, and one or more numbers: ``-fZc293MpJk_3_4``. Both
``-`` and ``_`` may stand anywhere in a video's name, so utterances are called ``how2_<segment>`` and speakers
``how2_<video>``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from how2_features import find_archives, prepare_features
from how2_tables import PREFIX, VIDEO, Tables, find_root, find_tables, read_split, stamp_of, times_of, walk

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.corpus import Dropped, Item, compare_counts, prepare_set
from espnet_llmst.datadir.kaldi import read_lines

PUBLISHED = {"train": 184949, "val": 2022, "dev5": 2305}  # utterances of How2 300 h v1
READABLE = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # by libsndfile; of several the first counts
UNREADABLE = (".m4a", ".mp4", ".webm", ".mkv", ".aac", ".mov")


def prepare_how2(
    corpus_dir: str | Path,
    out_dir: str | Path,
    directions: Sequence[str] = ("en-pt",),
    *,
    feats_type: str = "raw",
    audio_dir: str | Path | None = None,
    feats_dir: str | Path | None = None,
    nj: int = 1,
    force: bool = False,
) -> dict[str, dict]:
    """Write ``<out_dir>/{train,val,dev5}.en-pt``, each skipped when made of the same input before.

    Args:
        corpus_dir: see the top of this file.
        out_dir: where the data directories go.
        directions: en-pt is the only one.
        feats_type: "raw" for audio (wav.scp and segments), "kaldi" for the published features (feats.scp).
        audio_dir: where the audio is; None to look everywhere below ``corpus_dir``.
        feats_dir: where the features' archives are; None likewise.
        nj: processes that open audio.
        force: make everything again.
    Returns:
        for each set what `prepare_set` returns.
    Raises:
        InputError: a table is missing, tables disagree, an archive is cut off, no audio at all.
    """
    check_directions(directions)
    if feats_type not in ("raw", "kaldi"):
        raise InputError(f"--feats_type {feats_type}: must be raw (audio) or kaldi (the published features)")
    root, summaries = find_root(Path(corpus_dir)), {}
    tables = {split: find_tables(root, split) for split in PUBLISHED}
    place = Path((audio_dir if feats_type == "raw" else feats_dir) or corpus_dir)
    found = find_audio(place) if feats_type == "raw" else find_archives(place)
    for split in PUBLISHED:
        set_dir = Path(out_dir) / f"{split}.en-pt"
        if feats_type == "raw":
            summaries[set_dir.name] = prepare_audio(set_dir, split, tables[split], found, place, nj, force)
        else:
            summaries[set_dir.name] = prepare_features(set_dir, tables[split], found, place, split != "train", force)
    return summaries


def check_directions(directions: Sequence[str]) -> None:
    """Refuse all but en-pt."""
    wanted = " ".join(directions).replace(",", " ").split()
    for direction in wanted or [""]:
        if direction != "en-pt":
            raise InputError(f"direction {direction!r}: How2 has English speech with Portuguese text: give en-pt")


def find_audio(folder: Path) -> dict[str, Path]:
    """The audio of every video below a folder; of several files the most readable, then the first by path."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct --audio_dir")
    rank = {suffix: number for number, suffix in enumerate((*READABLE, *UNREADABLE))}
    best: dict[str, tuple[int, Path]] = {}
    for path in walk(folder):
        video, suffix = path.name[:VIDEO], path.suffix.lower()
        if suffix in rank and path.name[VIDEO:].startswith("."):
            entry = (rank[suffix], path)
            best[video] = min(best.get(video, entry), entry)
    return {video: path for video, (_, path) in best.items()}


def prepare_audio(
    set_dir: Path, split: str, tables: Tables, audio: dict[str, Path], place: Path, nj: int, force: bool
) -> dict:
    """Write one set with wav.scp and segments; ``audio`` has what was found in ``place``."""
    for name in ("cmvn.scp", "feats_type"):  # of an earlier run with --feats_type kaldi
        (set_dir / name).unlink(missing_ok=True)
    return prepare_set(
        set_dir,
        lambda: read_items(tables, audio, place),
        list(tables.values()),
        whole=split != "train",
        nj=nj,
        force=force,
        settings={"audio": stamp_of(audio.values())},
    )


def read_items(tables: Tables, audio: dict[str, Path], place: Path) -> tuple[list[Item], list[Dropped]]:
    """The utterances of a split, and those without audio or with impossible times.

    Raises:
        InputError: no audio at all, or none that can be read.
    """
    segments, texts = read_split(tables)
    check_any_audio({segment[:VIDEO] for segment in segments}, audio, place)
    items, dropped = [], []
    for segment, value in segments.items():
        utt, video = PREFIX + segment, segment[:VIDEO]
        path = audio.get(video)
        try:
            start, end = times_of(tables["segments"], segment, value)
        except InputError as error:
            dropped.append(Dropped(utt, "bad_times", str(error)))
            continue
        if path is None:
            dropped.append(Dropped(utt, "missing_audio", f"no {video}.wav or the like below {place}"))
        elif path.suffix.lower() in UNREADABLE:
            dropped.append(Dropped(utt, "unreadable_audio", convert(path)))
        else:
            text = {lang: of_lang[segment] for lang, of_lang in texts.items()}
            items.append(Item(utt, PREFIX + video, "en", str(path), text, PREFIX + video, start, end))
    return items, dropped


def check_any_audio(videos: set[str], audio: dict[str, Path], place: Path) -> None:
    """Refuse a split none of whose videos has audio that can be read."""
    found = sorted(audio[video] for video in videos if video in audio)
    if not found:
        raise InputError(
            f"{place}: no audio of any of {len(videos)} videos (<video>.wav, .flac, ...); give --audio_dir, or take "
            "the published features: --feats_type kaldi"
        )
    if all(path.suffix.lower() in UNREADABLE for path in found):
        raise InputError(convert(found[0]))


def convert(path: Path) -> str:
    """What to do with audio in a film's container."""
    kind = path.suffix
    loop = f'for f in *{kind}; do ffmpeg -i "./$f" -vn -ac 1 -ar 16000 "./${{f%{kind}}}.wav"; done'
    return f"{path}: {kind} cannot be read; convert with ffmpeg, in its folder: {loop}"


def missing_videos(set_dir: Path) -> list[str]:
    """The videos without audio, by a set's dropped.tsv."""
    rows = [line.split("\t") for line in read_lines(set_dir / "dropped.tsv")]
    return sorted({row[0][len(PREFIX) :][:VIDEO] for row in rows if row[1] == "missing_audio"})


def report(set_dir: Path, summary: dict) -> None:
    """Print what there is of a set, and what is missing."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["reasons"].items())
    lost = f", dropped {summary['dropped']} ({reasons}; see {set_dir}/dropped.tsv)" if reasons else ""
    clamped = f", {summary['clamped']} clamped to their audio" if summary["clamped"] else ""
    print(f"{set_dir}: {summary['utterances']} utterances, {summary['hours']} h{lost}{clamped}")
    videos = missing_videos(set_dir)
    if videos:
        more = f" and {len(videos) - 5} more" if len(videos) > 5 else ""
        print(f"{set_dir}: {len(videos)} videos have no audio: {' '.join(videos[:5])}{more}")
    published = {"How2 300 h": PUBLISHED[set_dir.name.partition(".")[0]]}
    print(compare_counts(set_dir.name, summary["utterances"], published))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = get_parser("prepare_how2.py", "Prepare How2: data directories of train, val and dev5")
    parser.add_argument("--corpus_dir", type=Path, required=True, help="how2-300h-v1, or the folder around it")
    parser.add_argument("--out_dir", type=Path, default=Path("data"), help="where the data directories go")
    parser.add_argument("--directions", nargs="+", default=["en-pt"], help="en-pt, the only one")
    parser.add_argument("--feats_type", default="raw", choices=("raw", "kaldi"), help="audio, or published features")
    parser.add_argument("--audio_dir", type=Path, help="where the audio is; default: anywhere below --corpus_dir")
    parser.add_argument("--feats_dir", type=Path, help="where the features are; default: likewise")
    parser.add_argument("--nj", type=int, default=1, help="processes that open audio")
    parser.add_argument("--force", action="store_true", help="make everything again")
    args = parser.parse_args(argv)
    del args.config
    for name, summary in prepare_how2(**vars(args)).items():
        report(args.out_dir / name, summary)


if __name__ == "__main__":
    sys.exit(run(main))
