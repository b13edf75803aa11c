"""A scored decode read back: what was scored against what, as the command in its scores.json says.

`scores.json` lies beside the decode and holds the llmst_score command that wrote it. Its paths were relative to
the recipe; how far the recipe lies above the file follows from the command's own --out.
"""

import os
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table, text_files
from espnet_llmst.scoring.metrics import ALL_METRICS
from espnet_llmst.scoring.score import align, split_srt
from espnet_llmst.scoring.score_files import read_scores, refuse_stale

CONTROL = "scores_shuffled.json"
HYPOTHESES = "1best_recog/text"


class Decode(NamedTuple):
    """Texts of one system on one set.

    name: what tables call it; set: name of the set, with "(asr)" for transcripts of srt.
    ids: utterances in scoring order; hyps: one text each; refs: one list per reference.
    seconds: duration of each, or None; tgt_lang, tokenize: as scored.
    scores: content of scores.json ({} for bare files); control: that of the shuffled audio, or None.
    folder: of the decode; data_dir: Kaldi directory of the set; None where unknown.
    recipe: folder that relative paths of the set start from.
    """

    name: str
    set: str
    ids: list[str]
    hyps: list[str]
    refs: list[list[str]]
    seconds: list[float] | None
    tgt_lang: str
    tokenize: str | None
    scores: dict
    control: dict | None
    folder: Path | None
    data_dir: Path | None
    recipe: Path = Path()

    @property
    def metrics(self) -> list[str]:
        """The metrics it was scored with, most important first."""
        return [name for name in ALL_METRICS if name in self.scores]


class Sources(NamedTuple):
    """What the user says over what scores.json holds: see ``add_source_options``."""

    refs: Sequence[str] | None = None
    tgt_lang: str | None = None
    durations: str | None = None
    fs: float = 16000
    data: str | None = None


def add_source_options(parser: ArgumentParser) -> None:
    """Options that say what scores.json does not, or no longer rightly."""
    parser.add_argument("--ref", nargs="+", metavar="TEXT", help="references of hypothesis files, '<id> <text>'")
    parser.add_argument("--tgt_lang", help="language of hypothesis files, e.g. de or zh-CN")
    parser.add_argument("--durations", metavar="TABLE", help="utt2num_samples of hypothesis files")
    parser.add_argument("--fs", type=float, default=16000, help="samples per second in --durations")
    parser.add_argument("--data", metavar="DIR", help="dump/raw when it is not where scores.json says: DIR/<set>/")


def sources_of(args: Namespace) -> Sources:
    return Sources(args.ref, args.tgt_lang, args.durations, args.fs, args.data)


def read_durations(path: str | Path, fs: float) -> dict[str, float]:
    """Seconds per utterance from a table of sample counts at ``fs`` samples per second."""
    seconds = {}
    for utt, value in read_table(path).items():
        try:
            seconds[utt] = float(value) / fs
        except ValueError as error:
            raise InputError(f"{path}: utterance {utt}: '{value}' is not a number of samples") from error
    return seconds


def find_scores(path: str | Path) -> list[Path]:
    """Every score file at or below a folder but the controls', in natural order of phases.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    found = [file for file in path.rglob("scores*.json") if file.name != CONTROL]
    if not found:
        raise InputError(f"{path}: no scores.json at or below it, run stages 7 and 8, or give hypothesis files")
    return sorted(found, key=natural)


def natural(path: Path) -> list:
    """Sort key of a path that puts phase ``10_x`` behind ``2_x``."""
    return [(int(part.split("_")[0]) if part.split("_")[0].isdecimal() else 0, part) for part in path.parts]


def _recorded(path: Path, scores: Mapping) -> Namespace:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for option in ("--hyp", "--tgt_lang", "--out", "--durations", "--tokenize", "--srt_tags"):
        parser.add_argument(option)
    parser.add_argument("--ref", nargs="+")
    parser.add_argument("--kind", default="st")
    parser.add_argument("--fs", type=float, default=16000)
    parser.add_argument("--allow_missing", action="store_true")
    args, _ = parser.parse_known_args(shlex.split(scores.get("command") or "")[1:])
    if not (args.hyp and args.ref and args.tgt_lang and args.out):
        raise InputError(f"{path}: its 'command' names no --hyp, --ref, --tgt_lang and --out; score this decode again")
    return args


def _recipe_of(path: Path, out: str) -> Path:
    """The folder in which the command ran that wrote ``path`` as ``out``; here when that was no relative path."""
    return Path() if os.path.isabs(out) else path.parent / os.path.relpath(os.curdir, os.path.dirname(out))


def _with_decode(path: Path, out: str, recorded: str) -> Path:
    """Where a file of the decode is now: an experiment that was moved keeps its inner structure."""
    return Path(os.path.normpath(path.parent / os.path.relpath(recorded, os.path.dirname(out))))


def load_decode(path: Path, sources: Sources) -> Decode:
    """The decode whose scores stand in ``path`` (a scores.json); ``sources.data`` tells where its set is now.

    Raises:
        InputError: the file was not written by llmst_score, what it names is missing, or the decode is stale.
    """
    scores = read_scores(path)
    refuse_stale([path.parent])
    args = _recorded(path, scores)
    set_name = scores.get("set") or path.parent.name
    recipe = _recipe_of(path, args.out)

    def of_set(recorded: str) -> Path:
        if sources.data:
            return Path(sources.data) / set_name / Path(recorded).name
        return Path(os.path.normpath(recipe / recorded))

    hyps = read_table(_with_decode(path, args.out, args.hyp), allow_empty=True)
    if args.srt_tags:
        hyps = split_srt(hyps, args.srt_tags)[args.kind == "st"]
    ref_files = [of_set(ref) for ref in args.ref]
    if not ref_files[0].exists():
        raise InputError(f"{ref_files[0]}: the references of {path} are not there; give their dump/raw with --data")
    ids, texts, refs, _ = align(hyps, [read_table(ref, allow_empty=True) for ref in ref_files], args.allow_missing)
    seconds = _seconds(of_set(args.durations), args.fs, ids) if args.durations else None
    suffix = path.stem.removeprefix("scores").strip("_")
    control = path.parent / CONTROL
    return Decode(
        name=_name(path.parent),
        set=f"{set_name} ({suffix})" if suffix else set_name,
        ids=ids,
        hyps=texts,
        refs=refs,
        seconds=seconds,
        tgt_lang=args.tgt_lang,
        tokenize=args.tokenize,
        scores=scores,
        control=read_scores(control) if not suffix and control.exists() else None,
        folder=path.parent,
        data_dir=ref_files[0].parent,
        recipe=recipe,
    )


def load_text(path: Path, sources: Sources) -> Decode:
    """A bare hypothesis file against ``sources.refs``.

    Raises:
        InputError: no references, no language, or they do not match.
    """
    if not (sources.refs and sources.tgt_lang):
        raise InputError(f"{path}: hypotheses without scores.json need --ref TEXT and --tgt_lang, e.g. de")
    refs = [read_table(ref, allow_empty=True) for ref in sources.refs]
    ids, texts, columns, _ = align(read_table(path, allow_empty=True), refs)
    seconds = _seconds(sources.durations, sources.fs, ids) if sources.durations else None
    data_dir = Path(sources.refs[0]).parent
    return Decode(str(path), "", ids, texts, columns, seconds, sources.tgt_lang, None, {}, None, None, data_dir)


def load(path: str | Path, sources: Sources) -> list[Decode]:
    """The decodes at a path: one hypothesis file, or every scored decode below a folder.

    A decode without scores.json counts as the hypothesis file that it holds.

    Raises:
        InputError: as ``load_decode``, ``load_text`` and ``find_scores``.
    """
    path = Path(path)
    bare = path if path.is_file() else path / HYPOTHESES
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a decode directory or a hypothesis file")
    if bare.is_file() and not (path / "scores.json").exists():
        return [load_text(bare, sources)]
    return [load_decode(file, sources) for file in find_scores(path)]


def _seconds(path: str | Path, fs: float, ids: Sequence[str]) -> list[float]:
    durations = read_durations(path, fs)
    for utt in ids:
        if utt not in durations:
            raise InputError(f"{path}: utterance {utt} is missing, every reference needs a duration")
    return [durations[utt] for utt in ids]


def _name(folder: Path) -> str:
    """``<method>/<phase>/<decode>`` of a recipe's decode of a set, without the word decode."""
    *rest, decode, _ = folder.absolute().parts
    return "/".join([*rest[-2:], decode.removeprefix("decode_")])


def audio_and_source(decode: Decode) -> tuple[dict[str, str], dict[str, str]]:
    """The wav.scp of a decode's set, and what is said where its data directory has the other language's text."""
    folder = decode.data_dir
    if folder is None or not (folder / "wav.scp").exists() or (folder / "segments").exists():  # of recordings
        return {}, {}
    texts = text_files(decode.data_dir)
    others = [path for lang, path in texts.items() if lang != decode.tgt_lang]
    return read_table(decode.data_dir / "wav.scp"), read_table(others[0], allow_empty=True) if len(others) == 1 else {}
