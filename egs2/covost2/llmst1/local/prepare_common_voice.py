"""Prepare Common Voice for transcription: data directories train.<lang>, dev.<lang>, test.<lang>.

Expected on disk (any release; see common_voice.py):

    <corpus_dir>/[cv-corpus-<release>/]<lang>/
        clips/common_voice_<lang>_<number>.mp3
        train.tsv  dev.tsv  test.tsv                columns client_id, path, sentence and others

Utterances are called as their clips. Training utterances with bad text are left out by name; dev and test keep all
that can be heard.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common_voice as cv

from espnet_llmst.cli import InputError, get_parser, read_yaml, run
from espnet_llmst.datadir.corpus import Dropped, Item, prepare_set
from espnet_llmst.datadir.kaldi import read_table

PUBLISHED = Path(__file__).resolve().parent / "published.yaml"


def prepare_common_voice(
    corpus_dir: str | Path,
    out_dir: str | Path,
    langs: Sequence[str],
    exclude: Sequence[str | Path] = (),
    nj: int = 1,
    force: bool = False,
) -> dict[str, dict]:
    """Write the data directories of some languages.

    Args:
        corpus_dir: root of Common Voice.
        out_dir: where the data directories go.
        langs: such as ``en``, ``zh-CN``; the names of Common Voice's folders.
        exclude: data directories whose utterances must not be trained on, such as another release's test set.
        nj: processes that open audio.
        force: make finished directories again.
    Returns:
        ``{set: summary}`` with the summaries of `prepare_set`.
    Raises:
        InputError: a missing language, table or column, no clips.
    """
    if not langs:
        raise InputError("no language: give at least one, such as --langs en")
    summaries = {}
    for lang in dict.fromkeys(langs):
        folder = cv.find_language(corpus_dir, lang)
        print(f"{lang}: {folder} ({cv.release_of(folder) or 'release unknown'})")
        for split in cv.SPLITS:
            if not (folder / f"{split}.tsv").is_file():
                raise InputError(f"{folder}/{split}.tsv: missing (delta segments have none); unpack a full release")
            shunned = [Path(directory) / "utt2spk" for directory in exclude] if split == "train" else []
            summaries[f"{split}.{lang}"] = prepare_set(
                Path(out_dir) / f"{split}.{lang}",
                partial(read_split, folder, lang, split, shunned),
                [folder / f"{split}.tsv", *_existing(shunned)],
                whole=split != "train",
                nj=nj,
                force=force,
                settings={"clips": cv.clips_of(folder).stat().st_mtime_ns},  # completed clips are taken up
            )
    return summaries


def _existing(paths: list[Path]) -> list[Path]:
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(f"{missing[0]}: missing; give prepared data directories with --exclude")
    return paths


def read_split(folder: Path, lang: str, split: str, shunned: list[Path]) -> tuple[list[Item], list[Dropped]]:
    """The utterances of one of Common Voice's own tables, and what has to be left out of it."""
    table, faults = folder / f"{split}.tsv", []
    audio_of = cv.clip_finder(folder)
    rows = [
        (cv.utt_of(path, lang), client, audio_of(path), cv.plain(sentence))
        for client, path, sentence in cv.read_tsv(table, ("client_id", "path", "sentence"), faults)
    ]
    items = [Item(utt, cv.speaker_of(client) or utt, lang, audio, {lang: text}) for utt, client, audio, text in rows]
    cv.warn_of_faults(faults)
    cv.check_clips(folder, items, table)
    items, repeated = cv.drop_duplicates(items, whole=split != "train")
    if split != "train":
        cv.warn_of_empty(f"{split}.{lang}", items)
    elsewhere = {utt: path.parent.name for path in shunned for utt in read_table(path)}
    dropped = [Dropped(item.utt, "excluded", f"in {elsewhere[item.utt]}") for item in items if item.utt in elsewhere]
    items = [item for item in items if item.utt not in elsewhere]
    return items, faults + repeated + dropped


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("prepare_common_voice.py", "Prepare Common Voice for transcription")
    parser.add_argument("--corpus_dir", required=True, help="root of Common Voice")
    parser.add_argument("--out_dir", default="data", help="where the data directories go")
    parser.add_argument("--langs", nargs="+", required=True, help='such as "en de zh-CN"')
    parser.add_argument("--exclude", nargs="+", default=[], help="data directories that must not be trained on")
    parser.add_argument("--nj", type=int, default=1, help="processes that open audio")
    parser.add_argument("--force", action="store_true", help="make finished directories again")
    args = parser.parse_args(argv)
    langs = " ".join(args.langs).replace(",", " ").split()
    summaries = prepare_common_voice(args.corpus_dir, args.out_dir, langs, args.exclude, args.nj, args.force)
    published = read_yaml(PUBLISHED)["common_voice_4"]
    for name, summary in summaries.items():
        split, _, lang = name.partition(".")
        counts = {"Common Voice 4": published[lang][cv.SPLITS.index(split)]} if lang in published else {}
        print(cv.report(Path(args.out_dir) / name, summary, counts))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
