"""Which stretch of which audio file is which utterance."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.datadir.audio import AudioError, check_sources
from espnet_llmst.datadir.kaldi import parse_segment

# A talk of many utterances is shared out, so that one long recording keeps several processes busy.
_CUTS_AT_ONCE = 100
# Times are rounded in published tables: so much beyond the end is not worth a word.
_ROUNDING = 0.02


class Cut(NamedTuple):
    """An utterance's part of its source, in seconds; end None is the source's end."""

    utt: str
    start: float = 0.0
    end: float | None = None


class Source(NamedTuple):
    """An audio file (or place in an archive) and the utterances to cut from it, in time order."""

    audio: str
    cuts: list[Cut]


def sources_of(data_dir: str | Path, tables: Mapping[str, dict[str, str]]) -> tuple[list[Source], list[str]]:
    """The sources of a data directory in order, and the utterances whose recording is not in wav.scp.

    Args:
        data_dir: for messages.
        tables: the directory's tables: wav.scp and, where utterances are parts of recordings, segments.
    Raises:
        InputError: a Kaldi pipe in wav.scp, a malformed segments line.
    """
    wav_scp = tables["wav.scp"]
    check_sources(Path(data_dir) / "wav.scp", wav_scp)
    if "segments" not in tables:
        return [Source(wav_scp[utt], [Cut(utt)]) for utt in sorted(wav_scp)], []
    cuts: dict[str, list[Cut]] = {}
    orphans = []
    for utt, value in tables["segments"].items():
        recording, start, end = parse_segment(Path(data_dir) / "segments", utt, value)
        if recording in wav_scp:
            cuts.setdefault(recording, []).append(Cut(utt, start, end))
        else:
            orphans.append(utt)
    sources = []
    for recording in sorted(cuts):
        in_order = sorted(cuts[recording], key=lambda cut: (cut.start, cut.utt))
        for i in range(0, len(in_order), _CUTS_AT_ONCE):
            sources.append(Source(wav_scp[recording], in_order[i : i + _CUTS_AT_ONCE]))
    return sources, orphans


def audio_of(sources: Iterable[Source], utts: Collection[str]) -> set[str]:
    """The audio that any of these utterances is cut from."""
    wanted = set(utts)
    return {source.audio for source in sources if any(cut.utt in wanted for cut in source.cuts)}


def frame_range(cut: Cut, rate: int, frames: int) -> tuple[int, int, str]:
    """(first, end) frame of a cut in a file of `frames` frames at `rate` Hz, its times if clamped (else "").

    Raises:
        AudioError: segment_outside_audio (starts past the end), empty_audio (no length).
    """
    seconds = frames / rate
    end = seconds if cut.end is None else cut.end
    times = f"{cut.start:.2f}-{end:.2f} s of {seconds:.2f} s"
    if frames == 0 or end <= cut.start:
        raise AudioError("empty_audio", times)
    if cut.start >= seconds or end <= 0:
        raise AudioError("segment_outside_audio", times)
    first, last = max(0, round(cut.start * rate)), min(frames, round(end * rate))
    if last <= first:
        raise AudioError("empty_audio", times)
    clamped = cut.start < -_ROUNDING or end > seconds + _ROUNDING
    return first, last, times if clamped else ""
