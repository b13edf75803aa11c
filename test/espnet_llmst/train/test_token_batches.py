"""Batches by positions and frames: limits that hold, every utterance once, a part for every rank."""

import random

import pytest
from espnet2.samplers.build_batch_sampler import build_batch_sampler

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import write_table
from espnet_llmst.train.token_batches import fill_batches, read_sizes


def corpus(vectors_per_second: float | None, number: int = 3000) -> dict[str, tuple[int, int]]:
    """Clips of 1 to 15 s; with None a Q-Former's 80 vectors whatever the length."""
    draw, sizes = random.Random(1), {}
    for n in range(number):
        seconds = min(15.0, max(1.0, draw.gauss(5.5, 2.0)))
        text = 30 + int(seconds * draw.uniform(2, 5))
        vectors = 80 if vectors_per_second is None else int(seconds * vectors_per_second)
        sizes[f"utt{n}"] = (vectors + text, int(50 * seconds))
    return sizes


def padded(batch, sizes, which: int) -> int:
    return len(batch) * max(sizes[utt][which] for utt in batch)


@pytest.mark.parametrize("rate", [50.0, 12.5, 6.25, None])
@pytest.mark.parametrize("ranks", [1, 4])
def test_limits_hold_and_little_is_padding(rate, ranks):
    sizes = corpus(rate)
    batches = fill_batches(sizes, 16_000, 40_000, ranks)
    assert sorted(utt for batch in batches for utt in batch) == sorted(sizes)
    assert batches == fill_batches(dict(sizes), 16_000, 40_000, ranks)
    for which, limit in ((0, 16_000), (1, 40_000)):
        for batch in batches:
            parts = [batch[rank::ranks] for rank in range(ranks)]
            assert all(padded(part, sizes, which) <= limit / ranks for part in parts)
        real = sum(size[which] for size in sizes.values())
        assert real / sum(padded(batch, sizes, which) for batch in batches) > 0.85


def test_frames_are_not_forgotten():
    """With a Q-Former positions are nearly alike: what is limited by them alone holds any number of frames."""
    sizes = corpus(None)
    most = max(padded(batch, sizes, 1) for batch in fill_batches(sizes, 16_000))
    assert most > 50_000
    assert max(padded(batch, sizes, 1) for batch in fill_batches(sizes, 16_000, 30_000)) <= 30_000


def test_espnets_sampler_passes_the_limit(tmp_path):
    """Why there is one of ours: numel adds the utterance with which the limit is passed."""
    sizes = corpus(50.0)
    write_table(tmp_path / "shape", {utt: str(size[0]) for utt, size in sizes.items()})
    numel = build_batch_sampler(type="numel", batch_size=1, batch_bins=4000, shape_files=[str(tmp_path / "shape")])
    assert max(padded(batch, sizes, 0) for batch in numel) > 4000
    assert max(padded(batch, sizes, 0) for batch in fill_batches(sizes, 4000)) <= 4000


@pytest.mark.parametrize("number", range(3, 12))
def test_every_rank_has_a_part_of_every_batch(number):
    sizes = {f"utt{n}": (10 + n, 100) for n in range(number)}
    batches = fill_batches(sizes, 60, None, ranks=3)
    assert min(map(len, batches)) >= 3 and sorted(sum(batches, ())) == sorted(sizes)


def test_too_long_utterances_stand_alone(caplog):
    batches = fill_batches({"a": (10, 1), "b": (10, 1), "c": (200, 1), "d": (300, 1)}, 100)
    assert batches == [("b", "a"), ("c",), ("d",)]
    assert "2 batches are over batch_bins or batch_frames with an utterance for each process, as d" in caplog.text


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="1 utterances are too few for 2 processes"):
        fill_batches({"a": (1, 1)}, 10, ranks=2)
    write_table(tmp_path / "speech_shape", {"a": "12"})
    with pytest.raises(InputError, match="speech_shape: utterance a: 'positions,frames' are expected; write 'batch_ty"):
        read_sizes(tmp_path / "speech_shape")


def test_what_the_last_batch_lacks_makes_the_shortest_batch_larger():
    sizes = {f"u{n}": (100 + n, 50) for n in range(7)}
    batches = fill_batches(sizes, 107, None, ranks=2)
    assert batches == [("u2", "u1", "u0"), ("u4", "u3"), ("u6", "u5")]
