"""Checkpoint files: plain content, whole or not there, the one before kept."""

import argparse
import os
import random
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet_llmst.cli import InputError
from espnet_llmst.train import checkpoint
from espnet_llmst.train.checkpoint import NEWEST, PREVIOUS, load_checkpoint, plain, save_checkpoint, write_atomically
from espnet_llmst.train.reports import load_reporter, load_statistics, reporter_state, statistics_state
from espnet_llmst.train.rng import get_rng_state, set_rng_state


def state(number: int) -> dict:
    return {"number": number, "weights": torch.full((1000,), float(number))}


@pytest.fixture
def saved(tmp_path):
    """A directory with two checkpoints."""
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    return tmp_path


def test_the_newest_is_loaded_and_one_older_kept(saved):
    assert load_checkpoint(saved)["number"] == 2
    assert sorted(path.name for path in saved.iterdir()) == [PREVIOUS, NEWEST]
    assert torch.equal(torch.load(saved / PREVIOUS, weights_only=True)["weights"], torch.ones(1000))


def test_nothing_saved(tmp_path):
    assert load_checkpoint(tmp_path) is None


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    middle = data.index(torch.full((3,), 2.0).numpy().tobytes()) + 1
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda data: b"", lambda data: bytes(len(data))])
def test_a_damaged_file_gives_way_to_the_one_before(damage, saved, caplog):
    (saved / NEWEST).write_bytes(damage((saved / NEWEST).read_bytes()))
    assert load_checkpoint(saved)["number"] == 1
    assert f"{saved / NEWEST} is damaged" in caplog.text and str(saved / PREVIOUS) in caplog.text
    save_checkpoint(saved, state(3))
    assert torch.load(saved / PREVIOUS, weights_only=True)["number"] == 1  # the good one, not the damaged


def test_killed_between_two_renames(saved, caplog):
    os.replace(saved / NEWEST, saved / PREVIOUS)
    assert load_checkpoint(saved)["number"] == 2
    assert f"{saved / NEWEST} is missing" in caplog.text


def test_both_damaged(saved):
    for name in (NEWEST, PREVIOUS):
        (saved / name).write_bytes(b"PK")
    with pytest.raises(InputError, match=rf"{NEWEST} is damaged .*; .*{PREVIOUS} is damaged .*; remove"):
        load_checkpoint(saved)


def test_a_checkpoint_of_another_trainer_is_refused(saved):
    torch.save({"args": argparse.Namespace()}, saved / NEWEST)
    with pytest.raises(InputError, match="checkpoint.pth was written by another trainer"):
        load_checkpoint(saved)
    assert (saved / NEWEST).exists() and (saved / PREVIOUS).exists()


@pytest.mark.parametrize("written", [0, 3000])
def test_full_disk_while_writing(written, saved, monkeypatch):
    """The message names the file and what is usable; both checkpoints are untouched."""

    def save_some(content, file):
        file.write(bytes(written))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save_some)
    with pytest.raises(
        InputError, match=rf"{NEWEST}: cannot be written \(No space .* {saved / NEWEST} is still usable"
    ):
        save_checkpoint(saved, state(3))
    assert sorted(path.name for path in saved.iterdir()) == [PREVIOUS, NEWEST]
    assert load_checkpoint(saved)["number"] == 2


def test_really_full_disk(tmp_path):
    """A file system of 100 kB: torch hides the system's error in one of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        save_checkpoint(tmp_path, state(1))
        with pytest.raises(InputError, match="No space left on device.*checkpoint.pth is still usable"):
            save_checkpoint(tmp_path, {"weights": torch.zeros(100_000)})
        assert load_checkpoint(tmp_path)["number"] == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_error_of_the_program_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="leaf"):
        write_atomically(tmp_path / "model.pth", {"weights": Unsavable()})


class Unsavable:
    def __reduce__(self):
        raise RuntimeError("not a leaf")


def test_what_a_killed_save_left_is_overwritten(tmp_path):
    (tmp_path / f"{NEWEST}.tmp").write_bytes(bytes(10**6))
    save_checkpoint(tmp_path, state(1))
    assert [path.name for path in tmp_path.iterdir()] == [NEWEST]


def test_a_link_is_replaced(tmp_path):
    for target in ("1epoch.pth", "2epoch.pth"):
        checkpoint.link_atomically(tmp_path / "latest.pth", target)
    assert os.readlink(tmp_path / "latest.pth") == "2epoch.pth"
    assert len(list(tmp_path.iterdir())) == 1


def test_plain_values():
    value = {"a": np.float64(0.1), 3: [np.int64(4), (1, None)], "s": OrderedDict(x=True), "t": torch.ones(2)}
    result = plain(value)
    assert [type(result["a"]), type(result[3][0]), type(result["s"])] == [float, int, dict]
    assert result["a"] == 0.1 and result[3] == [4, (1, None)]
    with pytest.raises(TypeError, match=r"checkpoint.schedulers.0 is a Namespace"):
        plain({"schedulers": [argparse.Namespace()]})


def round_trip(value, path):
    torch.save(plain(value), path)
    return torch.load(path, weights_only=True)


def test_random_numbers_go_on(tmp_path):
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second number in store
    stored = round_trip(get_rng_state(), tmp_path / "rng.pth")

    def draw():
        return random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()

    expected = draw()
    draw()
    set_rng_state(stored)
    assert draw() == expected


def test_reports_go_on(tmp_path):
    """A restored reporter writes the same lines and results; times may differ."""
    reporter = Reporter()
    reporter.set_epoch(1)
    with reporter.observe("train") as first:
        first.register({"loss": 1.5}, 3)
        first.next()
    reporter.set_epoch(2)
    statistics = reporter.start_epoch("train")
    for n in range(3):
        statistics.register({"loss": n / 7, "acc": torch.tensor(n / 3)}, 2 + n)
        if n:
            statistics.register({"lr": 1e-5 * n})
        statistics.next()
    plain_reporter = round_trip(reporter_state(reporter, 2), tmp_path / "reporter.pth")
    plain_statistics = round_trip(statistics_state(statistics), tmp_path / "statistics.pth")
    assert plain_reporter["epoch"] == 1 and list(plain_reporter["stats"]) == [1]

    other = Reporter()
    load_reporter(other, plain_reporter)
    assert other.log_message(1) == reporter.log_message(1)
    other.set_epoch(2)
    restored = other.start_epoch("train")
    load_statistics(restored, plain_statistics)
    assert restored.log_message(-2) == statistics.log_message(-2)
    for one, of in ((statistics, reporter), (restored, other)):
        one.register({"loss": 0.25}, 1)
        one.register({"lr": 3e-5})
        one.next()
        of.finish_epoch(one)
    results = [{k: v for k, v in r.stats[2]["train"].items() if k != "time"} for r in (reporter, other)]
    assert results[0] == results[1] and results[0]["total_count"] == 5
