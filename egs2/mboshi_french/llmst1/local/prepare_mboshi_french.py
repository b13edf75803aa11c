"""Prepare the Mboshi-French parallel corpus (arXiv:1710.03501): Mboshi speech with French translations.

Layout expected: a clone of github.com/besacier/mboshi-french-parallel-corpus, or its folder full_corpus_newsplit

    <corpus_dir>/full_corpus_newsplit/{train,dev}/<id>.wav          16 kHz mono
    <corpus_dir>/full_corpus_newsplit/{train,dev}/<id>.{mb,fr}      a sentence each, Mboshi and French
    <corpus_dir>/full_corpus_newsplit/{train,dev}/<id>.{mb,fr}.cleaned   lower-cased, without punctuation; not read

Layout made:

    <out_dir>/{train,dev,test}.mdw-fr/    wav.scp text.tc.mdw text.tc.fr utt2spk spk2utt utt2lang dropped.tsv
    <out_dir>/test.mdw-fr.groups          "<id> seen", where the same French sentence occurs in the corpus's train;
                                          else "<id> unseen"
    <audio_dir>/<id>.flac                 recordings whose header promises more samples than there are

The corpus has no test set: its dev is ours to test on, and dev is a slice of its train, chosen by utterance id among
sentences that are said only once. An id begins with the speaker's name. Mboshi's code is mdw (ISO 639-3).
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import soundfile

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.audio import AudioError, audio_path, fingerprint, length_if_made_from, read_mono, write_audio
from espnet_llmst.datadir.clean import clean_text
from espnet_llmst.datadir.corpus import Dropped, Item, compare_counts, prepare_set
from espnet_llmst.datadir.kaldi import write_table

DIRECTION = "mdw-fr"
TEXTS = {"mdw": "mb", "fr": "fr"}  # language and suffix
PUBLISHED = {"train": 4616, "dev": 514}
NUM_VALID = 200
VERSION = 1  # raise it when the same corpus is to be prepared anew


def prepare_mboshi_french(
    corpus_dir: str | Path,
    out_dir: str | Path,
    audio_dir: str | Path | None = None,
    num_valid: int = NUM_VALID,
    nj: int = 1,
    force: bool = False,
) -> dict[str, dict]:
    """Write the data directories train, dev and test; finished ones are skipped.

    Args:
        corpus_dir: the clone, or its folder full_corpus_newsplit.
        out_dir: where the data directories go.
        audio_dir: where recordings with a wrong header are written anew (default ``<out_dir>/audio``).
        num_valid: utterances of the corpus's train that become dev.
        nj: processes that open audio.
        force: make everything again.
    Returns:
        ``{"train", "dev", "test": summary of prepare_set, "groups": {"seen": count, "unseen": count}}``
    Raises:
        InputError: no such folder, fewer sentences than ``num_valid``, no usable recording.
    """
    folders = find_splits(Path(corpus_dir).resolve())
    out_dir = Path(out_dir)
    audio_dir = Path(audio_dir or out_dir / "audio").resolve()
    train, dropped = read_split(folders["train"])
    valid = held_out(train, num_valid)
    test, test_dropped = read_split(folders["dev"])
    parts = {
        "train": ([item for item in train if item.utt not in valid], dropped, folders["train"]),
        "dev": ([item for item in train if item.utt in valid], [], folders["train"]),
        "test": (test, test_dropped, folders["dev"]),
    }
    summaries = {}
    for name, (items, lost, folder) in parts.items():
        digest = hashlib.sha256(repr([item.texts for item in items]).encode()).hexdigest()
        summaries[name] = prepare_set(
            out_dir / f"{name}.{DIRECTION}",
            lambda items=items, lost=lost: ([with_whole_audio(item, audio_dir) for item in items], lost),
            [folder],
            whole=name == "test",
            nj=nj,
            force=force,
            settings={"prepare_mboshi_french": VERSION, "num_valid": num_valid, "texts": digest},
        )
    groups = translation_groups(train, test)
    write_table(out_dir / f"test.{DIRECTION}.groups", groups)
    return {**summaries, "groups": dict(Counter(groups.values()))}


def find_splits(corpus_dir: Path) -> dict[str, Path]:
    """The folders of train and dev."""
    for root in (corpus_dir / "full_corpus_newsplit", corpus_dir):
        folders = {name: root / name for name in PUBLISHED}
        if all(folder.is_dir() for folder in folders.values()):
            return folders
    raise InputError(
        f"{corpus_dir}: no full_corpus_newsplit/train and dev; give the clone of mboshi-french-parallel-corpus"
    )


def read_split(folder: Path) -> tuple[list[Item], list[Dropped]]:
    """Utterances whose two texts can be read, and the others."""
    items, dropped = [], []
    for wav in sorted(folder.glob("*.wav")):
        utt = wav.stem
        try:
            texts = {lang: read_text(wav.with_suffix(f".{suffix}")) for lang, suffix in TEXTS.items()}
        except (OSError, UnicodeDecodeError) as error:
            dropped.append(Dropped(utt, "unreadable_text", str(error)))
            continue
        items.append(Item(utt, utt.partition("_")[0], "mdw", str(wav), texts))
    return items, dropped


def read_text(path: Path) -> str:
    """A sentence on one clean line; many files end in CR."""
    return clean_text(path.read_text(encoding="utf-8-sig"))


def held_out(items: Sequence[Item], count: int) -> set[str]:
    """Ids of ``count`` utterances, the first by a hash of the id, whose Mboshi sentence no other utterance has."""
    times = Counter(item.texts["mdw"] for item in items)
    once = [item.utt for item in items if times[item.texts["mdw"]] == 1 and all(item.texts.values())]
    if len(once) <= count:
        raise InputError(f"{len(once)} sentences occur once, too few to hold out {count}; lower --num_valid")
    return set(sorted(once, key=lambda utt: hashlib.sha1(utt.encode()).hexdigest())[:count])


def with_whole_audio(item: Item, audio_dir: Path) -> Item:
    """The item; a recording whose header promises more samples than there are is written anew with those it has."""
    try:
        with soundfile.SoundFile(item.audio) as file:
            if not re.search(r"^data *: \d+ \(should be \d+\)", file.extra_info, re.MULTILINE):
                return item
            made_from, new = fingerprint(item.audio), audio_path(audio_dir, item.utt, "flac")
            if length_if_made_from(new, made_from) is None:
                write_audio(new, read_mono(file), file.samplerate, made_from)
    except (soundfile.SoundFileError, OSError, AudioError):  # prepare_set names it
        return item
    return item._replace(audio=str(new))


def translation_groups(train: Sequence[Item], test: Sequence[Item]) -> dict[str, str]:
    """Whether a test utterance's translation is one of a training utterance: utterance -> seen or unseen."""
    known = {item.texts["fr"] for item in train}
    return {item.utt: "seen" if item.texts["fr"] in known else "unseen" for item in test}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("prepare_mboshi_french.py", "Prepare the Mboshi-French parallel corpus")
    parser.add_argument("--corpus_dir", required=True, help="clone of mboshi-french-parallel-corpus")
    parser.add_argument("--out_dir", default="data", help="where the data directories go")
    parser.add_argument("--audio_dir", help="where repaired recordings go; unset: <out_dir>/audio")
    parser.add_argument("--num_valid", type=int, default=NUM_VALID, help="training utterances held out as dev")
    parser.add_argument("--nj", type=int, default=1, help="processes that open audio")
    parser.add_argument("--force", action="store_true", help="make everything again")
    args = parser.parse_args(argv)
    del args.config
    summary = prepare_mboshi_french(**vars(args))
    groups = summary.pop("groups")
    for name, found in summary.items():
        print(f"{args.out_dir}/{name}.{DIRECTION}: {found['utterances']} utterances, {found['hours']} hours,", end=" ")
        print(f"{found['dropped']} dropped {found['reasons'] or ''}")
    counts = {name: summary[name]["utterances"] + summary[name]["dropped"] for name in summary}
    for name, found in {"train": counts["train"] + counts["dev"], "dev": counts["test"]}.items():
        print(compare_counts(f"Mboshi-French {name}", found, {"full_corpus_newsplit": PUBLISHED[name]}))
    print(f"translations of test that occur in the corpus's train: {groups.get('seen', 0)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
