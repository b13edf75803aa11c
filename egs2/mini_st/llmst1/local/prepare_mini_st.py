"""Make the mini_st corpus: sentences from a grammar of our own, spoken by espeak.

Nothing is downloaded and nothing has to be brought along. Layout made:

    <audio_dir>/<lang>/<utterance>.flac        16 kHz mono, once for every source language
    <out_dir>/<split>.<src>-<tgt>/             split: train, dev, test
        wav.scp  text.tc.<src>  text.tc.<tgt>  utt2spk  spk2utt  utt2lang

Utterances are called ``<lang>_<speaker>-<split>_<number>``. Sentences and speakers of train, dev and test
differ; sentence ``number`` of a split is the same in every language.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent))

import grammar
import speak

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.jobs import run_jobs

SPLITS = ("train", "dev", "test")
VERSION = 1  # raise it when speak.py makes other samples, so that finished audio is made again


class Utterance(NamedTuple):
    """A sentence to be spoken."""

    id: str
    number: int
    split: str
    lang: str
    speaker: str
    text: str
    path: Path


def prepare_mini_st(
    out_dir: str | Path,
    directions: Sequence[str],
    num_train: int = 2400,
    num_dev: int = 200,
    num_test: int = 300,
    seed: int = 0,
    nj: int = 2,
    audio_dir: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the data directories of some directions, and the speech they need.

    Finished audio is kept unless text, speaker or seed have changed, so a killed run continues.

    Args:
        out_dir: Where the data directories go.
        directions: Such as ``fr-en``; languages are en, de, fr, es, pt.
        num_train: Sentences to train on; each is spoken once per source language.
        num_dev: Sentences to validate on.
        num_test: Sentences to test on.
        seed: Of sentences, loudness and noise.
        nj: Processes that speak; the samples do not depend on it.
        audio_dir: Where the speech goes (default ``<out_dir>/audio``).
        force: Speak everything again.

    Returns:
        ``{"audio": {lang: {"utterances", "hours", "mean_seconds", "made"}}, "sets": {name: utterances}}``

    Raises:
        InputError: A direction or number that cannot be.
    """
    pairs = parse_directions(directions)
    corpus = corpus_sentences(num_train, num_dev, num_test, seed)
    out_dir = Path(out_dir)
    audio_dir = Path(audio_dir) if audio_dir else out_dir / "audio"
    audio, sets = {}, {}
    for lang in sorted({src for src, _ in pairs}):
        utterances = list(_utterances(corpus, lang, audio_dir.resolve()))
        audio[lang] = _speak_all(utterances, seed, nj, force)
        for src, tgt in pairs:
            for split in SPLITS if src == lang else ():
                chosen = [u for u in utterances if u.split == split]
                _write_data_dir(out_dir / f"{split}.{src}-{tgt}", chosen, corpus[split], tgt)
                sets[f"{split}.{src}-{tgt}"] = len(chosen)
    return {"audio": audio, "sets": sets}


def parse_directions(directions: Sequence[str]) -> list[tuple[str, str]]:
    """``["fr-en"]`` as ``[("fr", "en")]``; an InputError for what is no direction."""
    pairs = []
    for direction in dict.fromkeys(directions):
        src, _, tgt = direction.partition("-")
        if src not in grammar.LANGUAGES or tgt not in grammar.LANGUAGES or src == tgt:
            known = ", ".join(grammar.LANGUAGES)
            raise InputError(f"direction {direction!r}: give <source>-<target>, two different ones of {known}")
        pairs.append((src, tgt))
    if not pairs:
        raise InputError("no direction: give at least one, such as --directions fr-en")
    return pairs


def corpus_sentences(
    num_train: int = 2400, num_dev: int = 200, num_test: int = 300, seed: int = 0
) -> dict[str, list[dict[str, str]]]:
    """The sentences of every split; test does not change with the sizes of the others."""
    counts = {"test": num_test, "dev": num_dev, "train": num_train}
    for split, count in counts.items():
        if count < 1:
            raise InputError(f"--num_{split} {count}: at least one sentence is needed")
    try:
        drawn = iter(grammar.sentences(sum(counts.values()), seed))
    except ValueError as error:
        raise InputError(str(error)) from error
    return {split: [next(drawn) for _ in range(count)] for split, count in counts.items()}


def _utterances(corpus: dict[str, list[dict[str, str]]], lang: str, audio_dir: Path) -> Iterator[Utterance]:
    """Who says what in a language, in the order of ids."""
    shift = grammar.LANGUAGES.index(lang)  # parallel sentences get different speakers
    found = []
    for split in SPLITS:
        speakers = sorted(speak.SPEAKERS[split])
        for number, texts in enumerate(corpus[split]):
            speaker = speakers[(number + shift) % len(speakers)]
            utterance = f"{lang}_{speaker}-{split}_{number:05d}"
            path = audio_dir / lang / f"{utterance}.flac"
            found.append(Utterance(utterance, number, split, lang, speaker, texts[lang], path))
    return iter(sorted(found))


# ---- audio


def _speak_all(utterances: list[Utterance], seed: int, nj: int, force: bool) -> dict[str, Any]:
    """Make the audio that is missing; what there is of it in the end."""
    lang = utterances[0].lang
    utterances[0].path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [u for u in utterances if force or not _is_made(u, seed)]
    jobs = [(u, seed) for u in wanted]
    for _ in run_jobs(_speak_one, jobs, nj, f"speech {lang}"):
        pass
    seconds = sum(soundfile.info(u.path).duration for u in utterances)
    return {
        "utterances": len(utterances),
        "hours": round(seconds / 3600, 3),
        "mean_seconds": round(seconds / len(utterances), 2),
        "made": len(jobs),
    }


def _title(utterance: Utterance, seed: int) -> str:
    """What a FLAC file says of itself: everything its samples depend on."""
    speaker = speak.SPEAKERS[utterance.split][utterance.speaker]
    return json.dumps([VERSION, seed, utterance.id, utterance.text, *speaker], ensure_ascii=False)


def _is_made(utterance: Utterance, seed: int) -> bool:
    """Whether the audio is there, readable and of this very text, speaker and seed."""
    if not utterance.path.exists():
        return False
    try:
        with soundfile.SoundFile(utterance.path) as file:
            return file.title == _title(utterance, seed)
    except soundfile.LibsndfileError:
        return False


def _speak_one(job: tuple[Utterance, int]) -> str:
    """Speak and save one utterance."""
    utterance, seed = job
    speaker = speak.SPEAKERS[utterance.split][utterance.speaker]
    samples = speak.record(utterance.text, utterance.lang, speaker, utterance.id, seed)
    temporary = utterance.path.with_suffix(".tmp")
    with soundfile.SoundFile(
        temporary, "w", samplerate=speak.SAMPLE_RATE, channels=1, format="FLAC", subtype="PCM_16"
    ) as file:
        file.title = _title(utterance, seed)
        file.write(samples)
    os.replace(temporary, utterance.path)
    return utterance.id


# ---- data directories


def _write_data_dir(folder: Path, utterances: list[Utterance], sentences: list[dict[str, str]], tgt: str) -> None:
    """The Kaldi files of one set."""
    src = utterances[0].lang
    speakers = {u.id: f"{src}_{u.speaker}" for u in utterances}
    spoken: dict[str, list[str]] = {}
    for utterance, speaker in speakers.items():
        spoken.setdefault(speaker, []).append(utterance)
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "wav.scp", {u.id: str(u.path) for u in utterances})
    _write_table(folder / f"text.tc.{src}", {u.id: u.text for u in utterances})
    _write_table(folder / f"text.tc.{tgt}", {u.id: sentences[u.number][tgt] for u in utterances})
    _write_table(folder / "utt2spk", speakers)
    _write_table(folder / "spk2utt", {speaker: " ".join(ids) for speaker, ids in spoken.items()})
    _write_table(folder / "utt2lang", {u.id: src for u in utterances})


def _write_table(path: Path, table: dict[str, str]) -> None:
    """``<id> <value>`` lines in C order; a table that is so already stays as it is."""
    text = "".join(sorted(f"{key} {value}\n" for key, value in table.items()))
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("prepare_mini_st.py", "Make the mini_st corpus: sentences, speech, data directories")
    parser.add_argument("--out_dir", default="data", help="where the data directories go")
    parser.add_argument("--audio_dir", default="downloads/mini_st", help="where the speech goes")
    parser.add_argument("--directions", nargs="+", default=["fr-en"], help="such as fr-en de-en")
    parser.add_argument("--num_train", type=int, default=2400, help="sentences to train on")
    parser.add_argument("--num_dev", type=int, default=200, help="sentences to validate on")
    parser.add_argument("--num_test", type=int, default=300, help="sentences to test on")
    parser.add_argument("--seed", type=int, default=0, help="of sentences, loudness and noise")
    parser.add_argument("--nj", type=int, default=2, help="processes that speak")
    parser.add_argument("--force", action="store_true", help="speak everything again")
    args = parser.parse_args(argv)
    del args.config
    summary = prepare_mini_st(**vars(args))
    for lang, audio in summary["audio"].items():
        print(
            f"speech {lang}: {audio['utterances']} utterances, {audio['hours']} hours, "
            f"{audio['mean_seconds']} s each on average ({audio['made']} made now)"
        )
    for name, count in summary["sets"].items():
        print(f"{args.out_dir}/{name}: {count} utterances")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
