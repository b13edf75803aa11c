"""Which frames an utterance is."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import AudioError
from espnet_llmst.datadir.segments import Cut, frame_range, sources_of


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0, None, (0, 2000, "")),
        (0.5, 1.25, (500, 1250, "")),
        (1.5, 2.01, (1500, 2000, "")),  # a rounded time, not worth a word
        (1.5, 9.0, (1500, 2000, "1.50-9.00 s of 2.00 s")),
        (-0.5, 1.0, (0, 1000, "-0.50-1.00 s of 2.00 s")),
    ],
)
def test_frames(start, end, expected):
    assert frame_range(Cut("u", start, end), 1000, 2000) == expected


@pytest.mark.parametrize(
    ("start", "end", "frames", "reason"),
    [
        (2.0, 3.0, 2000, "segment_outside_audio"),
        (-2.0, -1.5, 2000, "segment_outside_audio"),
        (1.0, 1.0, 2000, "empty_audio"),
        (1.0, 0.5, 2000, "empty_audio"),
        (0.0, None, 0, "empty_audio"),
        (0.0, 0.0001, 2000, "empty_audio"),
    ],
)
def test_nothing_to_cut(start, end, frames, reason):
    with pytest.raises(AudioError) as error:
        frame_range(Cut("u", start, end), 1000, frames)
    assert error.value.reason == reason


def test_sources_are_in_time_order_and_long_talks_are_shared_out():
    segments = {f"u{i}": f"talk {i}.0 {i + 1}.0" for i in reversed(range(250))} | {"lost": "gone 0 1"}
    sources, orphans = sources_of("d", {"wav.scp": {"talk": "t.wav", "unused": "x.wav"}, "segments": segments})
    assert orphans == ["lost"]
    assert [len(source.cuts) for source in sources] == [100, 100, 50]
    assert [cut.utt for source in sources for cut in source.cuts] == [f"u{i}" for i in range(250)]


def test_without_segments_every_file_is_an_utterance():
    sources, _ = sources_of("d", {"wav.scp": {"b": "b.wav", "a": "a.wav"}})
    assert sources == [("a.wav", [Cut("a")]), ("b.wav", [Cut("b")])]


def test_bad_tables():
    with pytest.raises(InputError, match=r"d/wav.scp: utterance a"):
        sources_of("d", {"wav.scp": {"a": "cat x |"}})
    with pytest.raises(InputError, match=r"d/segments: u"):
        sources_of("d", {"wav.scp": {"a": "x"}, "segments": {"u": "a 1"}})
