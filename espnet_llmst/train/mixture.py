"""A phase's training data: the tasks and directions of its ``mixture:`` materialised from formatted sets."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table, read_text, speech_table, write_table
from espnet_llmst.prompt import TASKS, Template, render_target

SAMPLE_RATE = 16000
MIX_FILES = ("wav.scp", "feats.scp", "text", "utt2task", "utt2num_samples", "transcript")


@dataclass(frozen=True)
class Part:
    """One task on one direction; ``tgt`` equals ``src`` for asr.

    ``hours`` keeps a subset of whole speakers (see `choose_utterances`), ``every`` each n-th of what is left;
    both thin out training data only.
    """

    task: str
    src: str
    tgt: str
    hours: float | None = None
    every: int = 1


def parse_direction(direction: str) -> tuple[str, str]:
    """``fr-en``, ``zh-CN-en`` or ``en_us-de_de`` to source and target; regions are in capitals."""
    halves = direction.split("-")
    middle = 2 if len(halves) > 2 and halves[1].isupper() else 1
    src, tgt = "-".join(halves[:middle]), "-".join(halves[middle:])
    if not src or not tgt or src == tgt:
        raise InputError(f"directions: '{direction}' is no direction; write source-target, e.g. fr-en")
    return src, tgt


def expand_mixture(mixture: list[dict], directions: list[str]) -> list[Part]:
    """The parts of a phase; an entry without ``directions`` (``langs`` for asr) takes the run's own.

    Raises:
        InputError: an unknown task or key, or nothing to train on.
    """
    parts = []
    for entry in mixture or []:
        entry = entry if isinstance(entry, dict) else {"task": entry, "": None}
        _check_entry(entry)
        task, hours, every = entry["task"], entry.get("hours"), entry.get("every", 1)
        pairs = [parse_direction(d) for d in entry.get("directions", directions)]
        if task == "asr":
            langs = entry.get("langs", [src for src, _ in pairs])
            pairs = [(lang, lang) for lang in langs]
        parts += [Part(task, src, tgt, hours, every) for src, tgt in pairs]
    if not parts:
        raise InputError("mixture: no task; add e.g. '- {task: st}' to the phase's YAML")
    return list(dict.fromkeys(parts))


def _check_entry(entry: dict) -> None:
    task, unknown = entry.get("task"), set(entry) - {"task", "directions", "langs", "hours", "every"}
    if task not in TASKS or unknown:
        raise InputError(f"mixture: {entry} needs a task of {', '.join(TASKS)}, and directions or langs, hours, every")
    if "langs" in entry and task != "asr":
        raise InputError(f"mixture: {entry}: langs is for asr; give directions, e.g. [fr-en]")
    if any(isinstance(entry.get(key), str) for key in ("langs", "directions")):
        raise InputError(f"mixture: {entry}: langs and directions are lists, e.g. [fr]")
    hours, every = entry.get("hours"), entry.get("every", 1)
    if not (hours is None or (isinstance(hours, int | float) and hours > 0)) or not (
        isinstance(every, int) and every > 0
    ):
        raise InputError(f"mixture: {entry}: hours must be above 0 and every a whole number above 0")


def decode_task(parts: list[Part]) -> str:
    """The task by which a phase is tested: the one of its mixture that comes first in st, srt, smt, asr."""
    tasks = {part.task for part in parts}
    return next((task for task in ("st", "srt", "smt", "asr") if task in tasks), "mt")


def find_set(data_dir: Path, split: str, part: Part, parts: Sequence[Part] = (), near: Sequence[str] = ()) -> str:
    """Name of the set below ``data_dir`` that holds a part's speech and texts.

    Transcription reads the first that is there of: a set that another of the phase's ``parts`` translates from that
    language (ASR augmentation is the same speech), ``<split>.<src>``, a set of a direction in ``near``, so that one
    which another method brings is not taken in its place, and a set of any direction.
    """
    if part.task != "asr":
        name = f"{split}.{part.src}-{part.tgt}"
        if not (data_dir / name).is_dir():
            raise InputError(f"{data_dir / name} is missing: run stages 1 to 3 with --directions {part.src}-{part.tgt}")
        return name
    same = sorted(f"{one.src}-{one.tgt}" for one in parts if one.task != "asr" and one.src == part.src)
    close = sorted(one for one in near if parse_direction(one)[0] == part.src)
    candidates = [data_dir / f"{split}.{one}" for one in (*same, part.src, *close)]
    candidates += sorted(data_dir.glob(f"{split}.{part.src}-*"))
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise InputError(f"{data_dir}/{split}.{part.src}-*: no set with {part.src} speech; run stages 1 to 3")
    return found.name


def find_sets(data_dir: Path, split: str, parts: list[Part], near: Sequence[str] = ()) -> list[str]:
    """The sets that a mixture needs, each once."""
    return list(dict.fromkeys(find_set(data_dir, split, part, parts, near) for part in parts))


def choose_utterances(utt2spk: dict[str, str], samples: dict[str, str], hours: float, seed: int = 0) -> set[str]:
    """A subset of so many hours: all of one speaker (video, talk) after another, in an order drawn by ``seed``.

    The last speaker is cut where the hours are full, so a smaller subset lies within every larger one.
    """
    speakers = sorted(set(utt2spk.values()))
    random.Random(seed).shuffle(speakers)
    rank = {speaker: number for number, speaker in enumerate(speakers)}
    room, chosen = hours * 3600 * SAMPLE_RATE, set()
    for utt in sorted(utt2spk, key=lambda utt: (rank[utt2spk[utt]], utt)):
        room -= int(samples[utt])
        if room < 0:
            break
        chosen.add(utt)
    return chosen


def mix_part(set_dir: Path, part: Part, template: Template) -> dict[str, dict[str, str]]:
    """Tables of one part, by file name; ids are ``<task>.<src>-<tgt>.<utt>``."""
    table = speech_table(set_dir)
    wavs, samples = read_table(table), read_table(set_dir / "utt2num_samples")
    if part.hours is not None:
        chosen = choose_utterances(read_table(set_dir / "utt2spk"), samples, part.hours)
        wavs = {utt: wav for utt, wav in wavs.items() if utt in chosen}
    wavs = dict(list(wavs.items())[:: part.every])
    if not wavs:
        raise InputError(f"{set_dir}: mixture: no utterance fits into hours: {part.hours}; give more")
    transcripts, translations = read_text(set_dir, part.src), read_text(set_dir, part.tgt)
    # A set that is also a test set is whole: what has no text is left out here.
    wavs = {utt: wav for utt, wav in wavs.items() if transcripts.get(utt) != "" and translations.get(utt) != ""}
    shows_transcript = "{transcript}" in template.tasks.get(part.task, {}).get("prompt", "")
    tables: dict[str, dict[str, str]] = {name: {} for name in MIX_FILES}
    for utt, wav in wavs.items():
        if utt not in transcripts or utt not in translations:
            raise InputError(
                f"{set_dir}: utterance {utt} has audio but no text; run utils/fix_data_dir.sh on its source"
            )
        uid = f"{part.task}.{part.src}-{part.tgt}.{utt}"
        tables[table.name][uid] = wav
        tables["text"][uid] = render_target(
            template, part.task, part.src, part.tgt, transcripts[utt], translations[utt]
        )
        tables["utt2task"][uid] = f"{part.task} {part.src} {part.tgt}"
        tables["utt2num_samples"][uid] = samples[utt]
        if shows_transcript:
            tables["transcript"][uid] = transcripts[utt]
    return tables


def make_mix(
    dump_dir: Path, split: str, parts: list[Part], template: Template, out_dir: Path, near: Sequence[str] = ()
) -> dict[Part, int]:
    """Write the tables of all parts to ``out_dir``; returns the number of examples of each part.

    mt needs no audio: its examples keep their ``wav.scp`` or ``feats.scp`` line for ESPnet's sake, the preprocessor
    drops what it names.

    ``transcript`` is written when a prompt shows it; then it covers every example (ESPnet wants equal ids).
    """
    merged: dict[str, dict[str, str]] = {name: {} for name in MIX_FILES}
    counts = {}
    for part in parts:
        tables = mix_part(dump_dir / find_set(dump_dir, split, part, parts, near), part, template)
        counts[part] = len(tables["utt2task"])
        for name, table in tables.items():
            merged[name].update(table)
    if merged["wav.scp"] and merged["feats.scp"]:
        raise InputError(f"{dump_dir}/{split}.*: mixture: some sets have audio, others features; prepare all alike")
    if merged["transcript"]:
        merged["transcript"] = {uid: merged["transcript"].get(uid, "-") for uid in merged["utt2task"]}
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, table in merged.items():
        if table:
            write_table(out_dir / name, table)
        else:
            (out_dir / name).unlink(missing_ok=True)  # of an earlier prompt
    return counts
