"""Prepare CoVoST-2: speech and transcripts of Common Voice, translations of CoVoST-2's tables.

Expected on disk (Common Voice release 4; others have lost clips since; see common_voice.py):

    <corpus_dir>/[cv-corpus-4-2019-12-10/]<src>/
        clips/common_voice_<src>_<number>.mp3
        validated.tsv                               columns client_id, path, sentence and others
    <covost2_dir>/ or <corpus_dir>/ or <corpus_dir>/<src>/
        covost_v2.<src>_<tgt>.tsv                   columns path, translation, split; also as .tsv.tar.gz
      or, of CoVoST-2's get_covost_splits.py,
        covost_v2.<src>_<tgt>.{train,dev,test}.tsv  columns path, sentence, translation, client_id

Written are data directories <split>.<src>-<tgt>. As in CoVoST-2's own program, tables are joined on path, train
is made of the splits train and train_covost, dev and test of those of their name. Training utterances with bad text
are left out by name; dev and test keep all that can be heard.
"""

import re
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common_voice as cv

from espnet_llmst.cli import InputError, get_parser, read_yaml, run
from espnet_llmst.datadir.corpus import Dropped, Item, prepare_set

PUBLISHED = Path(__file__).resolve().parent / "published.yaml"
TO_ENGLISH = "fr de es ca it ru zh-CN pt fa et mn nl tr ar sv-SE lv sl ta ja id cy".split()
FROM_ENGLISH = "de tr fa sv-SE mn zh-CN cy ca sl et id ar ta lv ja".split()
SPLIT_OF = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
UNUSED = ("dev_covost", "test_covost")  # were CoVoST 1's
NAMES = {"zh-CN": ("zh-CN", "zh"), "sv-SE": ("sv-SE", "sv")}  # of languages in the names of tables
PLACEHOLDER = re.compile(r"\[[^\]]*(?i:remove|reject)[^\]]*\]|\bTO (?:REMOVED?|REJECT)\b")


class Row(NamedTuple):
    """A row of a translation table; sentence and client are empty where the table has no such columns."""

    path: str
    translation: str
    sentence: str
    client: str


class Source(NamedTuple):
    """Where a direction comes from: Common Voice's folder, and (split, translation table), split "" if one has all."""

    folder: Path
    tables: tuple[tuple[str, Path], ...]


def prepare_covost2(
    corpus_dir: str | Path,
    out_dir: str | Path,
    directions: Sequence[str],
    covost2_dir: str | Path | None = None,
    nj: int = 1,
    force: bool = False,
) -> dict[str, dict]:
    """Write the data directories of some directions.

    Args:
        corpus_dir: root of Common Voice.
        out_dir: where the data directories go.
        directions: such as ``fr-en``, ``en-zh-CN``.
        covost2_dir: folder with the translation tables, if they are not in ``corpus_dir``.
        nj: processes that open audio.
        force: make finished directories again.
    Returns:
        ``{set: summary}`` with the summaries of `prepare_set`.
    Raises:
        InputError: no such direction, a missing table or column, tables that do not belong together, no clips.
    """
    pairs = sorted(parse_directions(directions))  # those of one language one after the other
    for cached in (read_transcripts, read_translations):
        cached.cache_clear()  # files may have changed
    summaries = {}
    for src, tgt in pairs:
        source = find_source(Path(corpus_dir), Path(covost2_dir) if covost2_dir else None, src, tgt)
        inputs = [table for _, table in source.tables]
        if (validated := source.folder / "validated.tsv").is_file():
            inputs.append(validated)
        for split in cv.SPLITS:
            name = f"{split}.{src}-{tgt}"
            summaries[name] = prepare_set(
                Path(out_dir) / name,
                partial(read_split, source, src, tgt, split),
                inputs,
                whole=split != "train",
                nj=nj,
                force=force,
                settings={"clips": cv.clips_of(source.folder).stat().st_mtime_ns},  # completed clips are taken up
            )
    return summaries


def parse_directions(directions: Sequence[str]) -> list[tuple[str, str]]:
    """``["zh-CN-en"]`` as ``[("zh-CN", "en")]``; an InputError for what CoVoST-2 does not have."""
    known = {f"{src}-en": (src, "en") for src in TO_ENGLISH} | {f"en-{tgt}": ("en", tgt) for tgt in FROM_ENGLISH}
    for direction in directions:
        if direction not in known:
            raise InputError(
                f"direction '{direction}' is not of CoVoST-2; give <source>-en with one of {', '.join(TO_ENGLISH)}, "
                f"or en-<target> with one of {', '.join(FROM_ENGLISH)}"
            )
    if not directions:
        raise InputError("no direction: give at least one, such as --directions fr-en")
    return [known[direction] for direction in dict.fromkeys(directions)]


# ---- where the tables are


def find_source(corpus_dir: Path, covost2_dir: Path | None, src: str, tgt: str) -> Source:
    """The files of a direction.

    Raises:
        InputError: naming what is missing, and where it was looked for.
    """
    folder = cv.find_language(corpus_dir, src)
    print(f"{src}-{tgt}: {folder} ({cv.release_of(folder) or 'release unknown'}; CoVoST-2 was made of release 4)")
    roots = [*([covost2_dir] if covost2_dir else []), folder, corpus_dir]
    places = [root / below for root in roots for below in ("", src, f"{src}_{tgt}", f"{src}-{tgt}")]
    stems = [f"covost_v2.{s}_{t}" for s in NAMES.get(src, (src,)) for t in NAMES.get(tgt, (tgt,))]
    for path in (place / stem for place in places for stem in stems):
        if tables := _tables(path):
            return Source(folder, tables)
    raise InputError(
        f"{stems[0]}.tsv: neither this table nor its .tar.gz nor its splits are in {', '.join(map(str, roots))}; "
        "get it from CoVoST-2 (README.md) and name its folder with --covost2_dir"
    )


def _tables(path: Path) -> tuple[tuple[str, Path], ...]:
    """The tables of this name without suffix: one, packed or not, or one for each split."""
    for suffix in (".tsv", ".tsv.tar.gz", ".tar.gz"):
        if (table := Path(f"{path}{suffix}")).is_file():
            return (("", table),)
    splits = tuple((split, Path(f"{path}.{split}.tsv")) for split in cv.SPLITS)
    missing = [table for _, table in splits if not table.is_file()]
    if 0 < len(missing) < len(splits):
        raise InputError(f"{missing[0]}: missing beside the other splits; run get_covost_splits.py again")
    return () if missing else splits


# ---- what is in them


@lru_cache(maxsize=1)  # for three splits; English tables are large
def read_translations(tables: tuple[tuple[str, Path], ...]) -> tuple[dict[str, list[Row]], list[Dropped]]:
    """The rows of each split, and what could not be read as rows."""
    rows: dict[str, list[Row]] = {split: [] for split in cv.SPLITS}
    faults: list[Dropped] = []
    for split, table in tables:
        if split:
            found = cv.read_tsv(table, ("path", "translation"), faults, ("sentence", "client_id"))
            rows[split] += [Row(*values) for values in found]
            continue
        for path, translation, name in cv.read_tsv(table, ("path", "translation", "split"), faults):
            if name in SPLIT_OF:
                rows[SPLIT_OF[name]].append(Row(path, translation, "", ""))
            elif name not in UNUSED:
                faults.append(_strange_split(table, path, name))
    cv.warn_of_faults(faults)
    return rows, faults


def _strange_split(table: Path, path: str, name: str) -> Dropped:
    if any(known.startswith(name) for known in (*SPLIT_OF, *UNUSED)):
        raise InputError(f"{table}: the row of {path} ends within its split ('{name}'); get the table again")
    return Dropped(path, "unknown_split", f"{table}: {path} has the split '{name}'")


@lru_cache(maxsize=1)  # for all directions from a language
def read_transcripts(table: Path, lang: str) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """{utterance: (client, sentence)} of validated.tsv, and utterances that it has with different sentences."""
    if not table.is_file():
        raise InputError(f"{table}: missing (delta segments have none); unpack a full release of Common Voice")
    faults: list[Dropped] = []
    clients: dict[str, str] = {}
    transcripts: dict[str, tuple[str, str]] = {}
    contradicted = set()
    for client, path, sentence in cv.read_tsv(table, ("client_id", "path", "sentence"), faults):
        found = (clients.setdefault(client, client), sentence)
        if transcripts.setdefault(utt := cv.utt_of(path, lang), found)[1] != sentence:
            contradicted.add(utt)
    cv.warn_of_faults(faults)
    return transcripts, contradicted


def read_split(source: Source, src: str, tgt: str, split: str) -> tuple[list[Item], list[Dropped]]:
    """The utterances of one set, and what has to be left out of it."""
    rows, faults = read_translations(source.tables)
    table = source.tables[-1][1]
    if not rows[split]:
        raise InputError(f"{table}: no row of split {split}; get the table of {src}-{tgt} again")
    items, dropped, contradicted = join(source.folder, rows[split], src, tgt)
    if not items:
        raise InputError(
            f"{source.folder}/validated.tsv: has none of the {len(dropped)} clips of {table}, split {split} "
            f"(e.g. {rows[split][0].path}); CoVoST-2 needs {src} of Common Voice release 4"
        )
    cv.check_clips(source.folder, items, table)
    items, repeated = cv.drop_duplicates(items, whole=split != "train")
    dropped += repeated
    if split == "train":
        tested = {cv.utt_of(row.path, src) for other in ("dev", "test") for row in rows[other]}
        items, unfit = drop_unfit(items, tgt, contradicted, tested)
        return items, faults + dropped + unfit
    warn_of_texts(f"{split}.{src}-{tgt}", items, tgt, contradicted)
    return items, dropped


def join(folder: Path, rows: list[Row], src: str, tgt: str) -> tuple[list[Item], list[Dropped], set[str]]:
    """Rows with transcript, speaker and audio; those without transcript; utterances with several transcripts."""
    validated = folder / "validated.tsv"
    complete = all(row.sentence for row in rows) and not validated.is_file()
    transcripts, contradicted = ({}, set()) if complete else read_transcripts(validated, src)
    audio_of = cv.clip_finder(folder)
    items, dropped = [], []
    for row in rows:
        utt = cv.utt_of(row.path, src)
        client, sentence = (row.client, row.sentence) if row.sentence else transcripts.get(utt, ("", None))
        if sentence is None:
            dropped.append(Dropped(utt, "not_validated", f"{validated} has no row of it"))
            continue
        texts = {src: cv.plain(sentence), tgt: cv.plain(row.translation)}
        items.append(Item(utt, cv.speaker_of(client) or utt, src, audio_of(row.path), texts))
    return items, dropped, contradicted


def drop_unfit(
    items: list[Item], tgt: str, contradicted: set[str], tested: set[str]
) -> tuple[list[Item], list[Dropped]]:
    """Items to train on, and those that are also tested on or whose text is not the speech's."""
    kept, dropped = [], []
    for item in items:
        if item.utt in tested:
            dropped.append(Dropped(item.utt, "in_dev_or_test", "the same clip"))
        elif item.utt in contradicted:
            dropped.append(Dropped(item.utt, "contradicting_row", "validated.tsv has it with different sentences"))
        elif PLACEHOLDER.search(item.texts[tgt]):
            dropped.append(Dropped(item.utt, "placeholder_text", item.texts[tgt]))
        else:
            kept.append(item)
    return kept, dropped


def warn_of_texts(name: str, items: list[Item], tgt: str, contradicted: set[str]) -> None:
    """Say what is wrong with texts of a set that keeps all its utterances."""
    cv.warn_of_empty(name, items)
    for item in items:
        if item.utt in contradicted:
            cv.warn(f"{name}: {item.utt} is kept with the first of its different sentences in validated.tsv")
        if PLACEHOLDER.search(item.texts[tgt]):
            cv.warn(f"{name}: {item.utt} is kept, though its {tgt} text is a placeholder: {item.texts[tgt]}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("prepare_covost2.py", "Prepare CoVoST-2: Common Voice with translations")
    parser.add_argument("--corpus_dir", required=True, help="root of Common Voice")
    parser.add_argument("--covost2_dir", help="folder of the translation tables, if not in corpus_dir")
    parser.add_argument("--out_dir", default="data", help="where the data directories go")
    parser.add_argument("--directions", nargs="+", required=True, help='such as "fr-en en-zh-CN"')
    parser.add_argument("--nj", type=int, default=1, help="processes that open audio")
    parser.add_argument("--force", action="store_true", help="make finished directories again")
    args = parser.parse_args(argv)
    directions = " ".join(args.directions).replace(",", " ").split()
    summaries = prepare_covost2(args.corpus_dir, args.out_dir, directions, args.covost2_dir, args.nj, args.force)
    published = read_yaml(PUBLISHED)["covost2"]
    for name, summary in summaries.items():
        split, _, direction = name.partition(".")
        counts = published["en" if direction.startswith("en-") else direction]
        print(cv.report(Path(args.out_dir) / name, summary, {"CoVoST-2": counts[cv.SPLITS.index(split)]}))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
