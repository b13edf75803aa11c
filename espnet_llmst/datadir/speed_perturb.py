"""Speed perturbation: a data directory joined with copies of itself that are spoken slower and faster."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import (
    AudioError,
    audio_path,
    fingerprint,
    length_if_made_from,
    open_audio,
    read_mono,
    resample,
    write_audio,
)
from espnet_llmst.datadir.jobs import finished_summary, mark_finished, run_jobs, table_stamps
from espnet_llmst.datadir.segments import Cut, Source, audio_of, frame_range, sources_of
from espnet_llmst.datadir.transform import (
    Tables,
    read_data_dir,
    rename,
    replace_data_dir,
    restrict,
    without_audio,
)


class Target(NamedTuple):
    """Where perturbed audio goes, at what rate (Hz), and the speed factors wanted."""

    folder: Path
    fs: int
    factors: tuple[float, ...]
    reuse: bool


def speed_perturb(
    in_dir: str | Path,
    out_dir: str | Path,
    factors: Sequence[float],
    *,
    fs: int = 16000,
    nj: int = 1,
    force: bool = False,
) -> dict:
    """Write out_dir: in_dir's utterances at every speed. Skips what is already done.

    At factor 1 utterances keep ids and audio. The others are called sp<factor>-<utt>, of speakers
    sp<factor>-<spk>, have mono FLAC at `fs` Hz under out_dir/data, and the same texts.
    Utterances whose audio cannot be read get no perturbed copies; formatting tells about them.

    Args:
        in_dir: Kaldi data directory, with or without segments.
        out_dir: another directory.
        factors: speeds, e.g. (0.9, 1.0, 1.1); above 1 is faster and shorter.
        fs: sampling rate of the perturbed audio in Hz.
        nj: number of processes.
        force: make everything again.
    Returns:
        {"utterances": number written, "unreadable": ids without perturbed copies}
    Raises:
        InputError: a broken table, bad factors, no utterance that can be perturbed.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    factors = tuple(sorted({float(factor) for factor in factors}))
    if not factors or not all(0.1 <= factor <= 10 for factor in factors):
        raise InputError(f"speed factors {factors}: give factors from 0.1 to 10, e.g. 0.9 1.0 1.1")
    if in_dir.resolve() == out_dir.resolve():
        raise InputError(f"{out_dir}: is the input directory itself; choose another --out_dir")
    settings = {"factors": list(factors), "fs": fs, "tables": table_stamps(in_dir)}
    done = None if force else finished_summary(out_dir, settings)
    if done is not None:
        return done
    (out_dir / ".done").unlink(missing_ok=True)
    tables = read_data_dir(in_dir)
    if "wav.scp" not in tables:
        raise InputError(f"{in_dir}/wav.scp: missing; features have their speed already, leave out the speed factors")
    changed = tuple(factor for factor in factors if factor != 1)
    target = Target(out_dir / "data", fs, changed, reuse=not force)
    made: dict[str, dict[float, str]] = {}
    sources = sources_of(in_dir, tables)[0]
    for several in run_jobs(partial(perturb_source, target), sources, nj, str(out_dir)):
        made.update(several)
    unreadable = sorted(set(tables["utt2spk"]) - set(made))
    if len(unreadable) == len(tables["utt2spk"]):
        raise InputError(f"{in_dir}: no audio can be read, e.g. of {unreadable[0]}; check the paths in wav.scp")
    joined = _join(tables, made, factors)
    replace_data_dir(out_dir, joined)
    summary = {"utterances": len(joined["utt2spk"]), "unreadable": unreadable}
    mark_finished(out_dir, settings, summary, audio_of(sources, unreadable))
    return summary


def perturb_source(target: Target, source: Source) -> dict[str, dict[float, str]]:
    """Paths by utterance and factor of what was made from one source; unreadable utterances are left out."""
    made = {}
    try:
        with open_audio(source.audio) as file:
            for cut in source.cuts:
                try:
                    made[cut.utt] = _perturb_cut(target, source.audio, file, cut)
                except AudioError:
                    continue  # the next cut may be whole
    except AudioError:
        pass  # the caller sees which utterances are missing
    return made


def _perturb_cut(target: Target, audio: str, file: soundfile.SoundFile, cut: Cut) -> dict[float, str]:
    first, last, _ = frame_range(cut, file.samplerate, file.frames)
    paths = {factor: audio_path(target.folder, f"{_prefix(factor)}{cut.utt}", "flac") for factor in target.factors}
    marks = {factor: fingerprint(audio, first, last, target.fs, factor) for factor in target.factors}
    missing = [
        factor
        for factor in target.factors
        if not target.reuse or length_if_made_from(paths[factor], marks[factor]) is None
    ]
    if missing:
        mono = resample(read_mono(file, first, last - first), file.samplerate, target.fs)
        for factor in missing:
            write_audio(paths[factor], change_speed(mono, target.fs, factor), target.fs, marks[factor])
    return {factor: str(path) for factor, path in paths.items()}


def change_speed(samples: np.ndarray, fs: int, factor: float) -> np.ndarray:
    """Samples (T,) spoken `factor` times as fast: about T / factor samples, pitch and tempo both changed."""
    import torch
    import torchaudio

    torch.set_num_threads(1)  # there is one process per core
    # speed() truncates factor * fs to a whole rate; half a Hz keeps float rounding from costing one.
    rate = round(factor * fs)
    return torchaudio.functional.speed(torch.from_numpy(samples), fs, (rate + 0.5) / fs)[0].numpy()


def _prefix(factor: float) -> str:
    return "" if factor == 1 else f"sp{factor:g}-"


def _join(tables: Tables, made: dict[str, dict[float, str]], factors: Sequence[float]) -> Tables:
    """The tables of all speeds together; with segments, a perturbed file is a segment as long as itself."""
    plain = without_audio(tables)
    joined: Tables = {name: {} for name in (*plain, "wav.scp")}
    for factor in factors:
        if factor == 1:
            part = {name: table for name, table in tables.items() if name in joined or name == "segments"}
        else:
            prefix = _prefix(factor)
            part = rename(restrict(plain, made), (prefix, ""), (prefix, ""))
            part["wav.scp"] = {f"{prefix}{utt}": paths[factor] for utt, paths in made.items()}
            if "segments" in tables and 1 in factors:
                part["segments"] = {utt: f"{utt} 0 -1" for utt in part["wav.scp"]}
        for name, table in part.items():
            joined.setdefault(name, {}).update(table)
    return joined
