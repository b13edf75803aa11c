"""Prepare MuST-C, releases 1 to 3: TED talks in English, translated into up to 14 languages.

Layout expected, as the archives MUSTC_v*_en-<tgt>.tar.gz unpack:

    <corpus_dir>/en-<tgt>/data/<split>/         split: train, dev, tst-COMMON and, where the release has it, tst-HE
        wav/ted_<n>.wav                         a whole talk
        txt/<split>.yaml                        a segment per entry: wav, offset, duration (seconds), speaker_id
        txt/<split>.en  txt/<split>.<tgt>       texts; line i belongs to entry i of the yaml

Layout made:

    <out_dir>/<split>.en-<tgt>/
        wav.scp  segments  text.tc.en  text.tc.<tgt>  utt2spk  spk2utt  utt2lang  dropped.tsv  clamped.tsv

Utterances are called ``<speaker>-<talk>-<split>.<tgt>-<position in the yaml, from 1>``: a talk is cut differently for
every target, and may come back anywhere in the yaml.
"""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.clean import clean_text
from espnet_llmst.datadir.corpus import Dropped, Item, compare_counts, prepare_set
from espnet_llmst.datadir.kaldi import read_lines
from espnet_llmst.languages import english_name

NEEDED, OPTIONAL = ("train", "dev", "tst-COMMON"), ("tst-HE",)
# Lines of the tables as released, where they are documented.
PUBLISHED = {
    "v1": {
        "en-de": {"train": 229703, "dev": 1423, "tst-COMMON": 2641, "tst-HE": 600},
        "en-es": {"train": 265625, "dev": 1316, "tst-COMMON": 2502},
    }
}
_PLAIN_ENTRY = re.compile(r""" *- +\{([\w .:,+/~()='"-]*)\} *""")  # nothing that means more to YAML
_CHUNK = 2000  # entries; libyaml needs gigabytes for the whole of train


class Segment(NamedTuple):
    """An entry of a split's yaml, as written there."""

    wav: str
    offset: str
    duration: str
    speaker: str


def prepare_must_c(
    corpus_dir: str | Path, out_dir: str | Path, directions: str | Sequence[str], nj: int = 1, force: bool = False
) -> dict[str, Any]:
    """Write the data directories of some directions; those made before of the same files are skipped.

    Args:
        corpus_dir: The folder that holds en-de/data, en-fr/data, ...
        out_dir: Where the data directories go.
        directions: Such as ``["en-de", "en-fr"]`` or ``"en-de en-fr"``.
        nj: Processes that open audio.
        force: Make everything again.

    Returns:
        ``{"releases": {direction: "v1" or "v2 or v3"}, "sets": {name: summary of prepare_set}, "absent": [name]}``

    Raises:
        InputError: A direction, split or file is missing, or the tables of a split do not fit together.
    """
    corpus_dir, out_dir = Path(corpus_dir).absolute(), Path(out_dir)
    splits = {direction: find_splits(corpus_dir, direction) for direction in parse_directions(directions)}
    absent = [f"{split}.{direction}" for direction, found in splits.items() for split in OPTIONAL if split not in found]
    _refuse_left_overs(out_dir, absent)
    releases, sets = {}, {}
    for direction, found in splits.items():
        data = corpus_dir / direction / "data"
        releases[direction] = recognise_release(data / "train/txt/train.yaml")
        for split in found:
            files = _tables(data, split, direction)
            read = partial(read_split, data, split, direction)
            sets[f"{split}.{direction}"] = prepare_set(
                out_dir / f"{split}.{direction}", read, files, whole=split != "train", nj=nj, force=force
            )
    return {"releases": releases, "sets": sets, "absent": absent}


# ---- what there is


def parse_directions(directions: str | Sequence[str]) -> list[str]:
    """Every direction once; blanks and commas separate them too."""
    text = directions if isinstance(directions, str) else " ".join(directions)
    found = list(dict.fromkeys(text.replace(",", " ").split()))
    for direction in found:
        languages = direction.split("-")
        if len(languages) != 2 or languages[0] == languages[1]:
            raise InputError(f"direction '{direction}': write <source>-<target>, e.g. en-de")
        for language in languages:
            english_name(language)
    if not found:
        raise InputError("no direction: give at least one, e.g. --directions en-de")
    return found


def find_splits(corpus_dir: Path, direction: str) -> list[str]:
    """The splits of a direction on disk; only tst-HE may be absent."""
    data = corpus_dir / direction / "data"
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; {_advice(corpus_dir, direction)}")
    missing = [split for split in NEEDED if not (data / split).is_dir()]
    if missing:
        raise InputError(f"{data}: no {', '.join(missing)} in it; unpack the archive of {direction} again")
    return [split for split in (*NEEDED, *OPTIONAL) if (data / split).is_dir()]


def _advice(corpus_dir: Path, direction: str) -> str:
    archives = sorted(corpus_dir.glob(f"*{direction}*.tar*")) + sorted(corpus_dir.glob(f"*{direction}*.tgz"))
    if archives:
        return f"unpack it: tar -xf {archives[0]} -C {corpus_dir}"
    if (corpus_dir / "data").is_dir():
        return f"give the folder above, {corpus_dir.parent}, which holds {corpus_dir.name}/data"
    found = sorted(path.parent.name for path in corpus_dir.glob("*-*/data"))
    if found:
        return f"there are: {', '.join(found)}"
    return "set MUST_C in db.sh to the folder that holds en-de/data and the like"


def recognise_release(path: Path) -> str:
    """v1, or "v2 or v3", whose entries carry two counters, rW and uW. The layout is the same."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.read(1000)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; unpack the archive again") from None
    return "v2 or v3" if re.search(r"\b[ru]W['\"]?:", first) else "v1"


def _refuse_left_overs(out_dir: Path, absent: list[str]) -> None:
    """A test set of another release would be scored without a word."""
    for name in absent:
        if (out_dir / name).exists():
            raise InputError(f"{out_dir / name}: is of another release, this one has no such split; delete it")


# ---- the tables of a split


def _tables(data: Path, split: str, direction: str) -> list[Path]:
    return [data / split / "txt" / f"{split}.{kind}" for kind in ("yaml", *direction.split("-"))]


def read_split(data: Path, split: str, direction: str) -> tuple[list[Item], list[Dropped]]:
    """The segments of a split with their texts, and those that must be left out.

    Args:
        data: The folder ``en-<tgt>/data``.
        split: Such as train; only there are repeated segments left out.
        direction: Such as en-de.

    Raises:
        InputError: The three tables are not equally long, or an entry is incomplete.
    """
    src, tgt = direction.split("-")
    yaml_file, *texts = _tables(data, split, direction)
    segments = list(read_segments(yaml_file))
    sources, targets = (read_lines(path) for path in texts)
    if not len(segments) == len(sources) == len(targets):
        raise InputError(
            f"{yaml_file.parent}: {split}.yaml has {len(segments)} entries, {split}.{src} {len(sources)} lines and "
            f"{split}.{tgt} {len(targets)} lines; they belong together line by line, so unpack the archive again"
        )
    items, dropped = [], []
    first_at: dict[tuple[str, float, float], Item] = {}
    contradicted: set[str] = set()  # another text stands at the same times: the audio cannot be both
    for position, (segment, source, target) in enumerate(zip(segments, sources, targets, strict=True), 1):
        talk = _id(segment.wav.removesuffix(".wav"))
        recording = f"{talk}-{split}.{tgt}"
        speaker = _id(segment.speaker) or talk
        utt = f"{speaker}-{recording}-{position:06d}"
        times, texts_of = _times(segment), {src: source, tgt: target}
        if times is None:
            dropped.append(Dropped(utt, "bad_times", f"offset {segment.offset}, duration {segment.duration}"))
            continue
        if split == "train" and source.strip() and target.strip():
            same = first_at.setdefault((segment.wav, *times), Item(utt, speaker, src, "", texts_of))
            if same.utt != utt:
                dropped.append(Dropped(utt, "duplicate_segment", f"same talk and times as {same.utt}"))
                if any(clean_text(same.texts[lang]) != clean_text(text) for lang, text in texts_of.items()):
                    contradicted.add(same.utt)
                continue
        audio = f"{data}/{split}/wav/{segment.wav}"
        items.append(Item(utt, speaker, src, audio, texts_of, recording, *times))
    dropped += [Dropped(utt, "contradicting_segment", "other texts at the same times") for utt in sorted(contradicted)]
    items = [item for item in items if item.utt not in contradicted]
    if split != "train":
        _warn_of_empty(f"{split}.{direction}", items)
    return items, dropped


def _warn_of_empty(name: str, items: list[Item]) -> None:
    for item in items:
        for lang, text in item.texts.items():
            if not clean_text(text):
                print(f"WARNING: {name}: {item.utt} is kept, though its {lang} text is empty", file=sys.stderr)


@cache
def _id(name: str) -> str:
    """A name as part of an id: different names stay different, without white space or folders."""
    return quote(name, safe="")


def _times(segment: Segment) -> tuple[float, float] | None:
    """Start and end in seconds; None for what is no number."""
    try:
        start, duration = float(segment.offset), float(segment.duration)
    except ValueError:
        return None
    return (start, start + duration) if math.isfinite(start) and math.isfinite(duration) else None


def read_segments(path: Path) -> Iterator[Segment]:
    """The entries of a yaml in order; keys in any order, others are passed over.

    Raises:
        InputError: Not YAML, or an entry without wav, offset or duration.
    """
    for number, entry in enumerate(_entries(read_lines(path), path), 1):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: entry {number} is no mapping of wav, offset, duration; unpack the archive again")
        values = [entry.get(key, "") for key in ("wav", "offset", "duration", "speaker_id")]
        for key, value in zip(("wav", "offset", "duration"), values, strict=False):
            if not value or not isinstance(value, str):
                raise InputError(f"{path}: entry {number} has no '{key}'; unpack the archive again")
        yield Segment(*map(str, values))


def _entries(lines: list[str], path: Path) -> Iterator[Any]:
    """All entries with their values as text; YAML's own parser sees only what is not plain."""
    for begin, end in _chunks(lines):
        chunk = lines[begin:end]
        plain = [_plain_entry(line) for line in chunk]
        yield from plain if all(plain) else _load_yaml(chunk, begin, path)


def _chunks(lines: list[str]) -> Iterable[tuple[int, int]]:
    """Pairs of line numbers that cut a list where entries of its outermost level start."""
    first = next((line for line in lines if line.lstrip(" ").startswith("- ")), "- ")
    dash = first[: first.index("-") + 2]
    starts = [number for number, line in enumerate(lines) if line.startswith(dash)]
    cuts = [0, *starts[_CHUNK::_CHUNK], len(lines)]
    return zip(cuts, cuts[1:], strict=False)


def _plain_entry(line: str) -> dict[str, str] | None:
    """The mapping in a line such as ``- {offset: 16.08, wav: ted_1.wav}``; None for all that is less plain."""
    match = _PLAIN_ENTRY.fullmatch(line)
    if match is None:
        return None
    entry = {}
    for part in match[1].split(","):
        key, colon, value = part.partition(": ")
        key, value = _unquoted(key.strip()), _unquoted(value.strip())
        if not colon or key is None or value is None or ": " in value:
            return None
        entry[key] = value
    return entry


def _unquoted(text: str) -> str | None:
    quoted = len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]
    inner = text[1:-1] if quoted else text
    return None if "'" in inner or '"' in inner else inner


def _load_yaml(lines: list[str], before: int, path: Path) -> list[Any]:
    # The base loader leaves numbers as text: they are Python's to read, YAML's 9.5E1 and 1e-05 are no numbers.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        entries = yaml.load("\n".join(lines), Loader=loader) or []
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{before + mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{where}: no valid YAML ({what}); unpack the archive again") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}:{before + 1}: a list of segments is expected; unpack the archive again")
    return entries


# ---- command line


def describe(name: str, summary: dict[str, Any], release: str) -> str:
    """A line about a set."""
    split, direction = name.rsplit(".", 1)
    count = PUBLISHED.get(release, {}).get(direction, {}).get(split)
    published = {release: count} if count else {}
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["reasons"].items())
    return (
        f"{compare_counts(name, summary['utterances'], published)}; {summary['hours']} hours, "
        f"dropped {summary['dropped']}{f' ({reasons})' if reasons else ''}, clamped {summary['clamped']}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("prepare_must_c.py", "Make the data directories of MuST-C")
    parser.add_argument("--corpus_dir", required=True, help="folder that holds en-de/data, en-fr/data, ...")
    parser.add_argument("--out_dir", default="data", help="where the data directories go")
    parser.add_argument("--directions", nargs="+", default=["en-de"], help="such as en-de en-fr")
    parser.add_argument("--nj", type=int, default=2, help="processes that open audio")
    parser.add_argument("--force", action="store_true", help="make everything again")
    args = parser.parse_args(argv)
    del args.config
    summary = prepare_must_c(**vars(args))
    for direction, release in summary["releases"].items():
        print(f"{direction}: MuST-C {release}")
    for name, of_set in summary["sets"].items():
        print(describe(name, of_set, summary["releases"][name.rsplit(".", 1)[1]]))
    for name in summary["absent"]:
        print(f"{name}: not in this release; score the others (--test_sets tst-COMMON)")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
