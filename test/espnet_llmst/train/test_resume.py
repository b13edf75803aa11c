"""A training that is killed and started again ends with the same bits as one that is left alone."""

import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch
from training_runs import assert_equal, at_event, forked, kill, logged, models_in, settings_of, train

from espnet_llmst.train.schedulers import warmup_factor

UPDATES = 4  # of a phase: two epochs of five batches, two batches to an update
LR = 3.0e-3


def one(corpus, directory: Path, **changes):
    """The first phase."""
    return train(corpus, directory / "one", settings_of(corpus, trainable=["postencoder", "encoder.lora"], **changes))


def two(corpus, directory: Path):
    """The second, which starts from the first."""
    init = ["--init_param", str(directory / "one/valid.loss.best.pth")]
    return train(corpus, directory / "two", settings_of(corpus, trainable=["decoder.lora"]), *init)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Both phases without an interruption."""
    directory = tmp_path_factory.mktemp("whole")
    for phase in (one, two):
        training = at_event(0, kill, phase(corpus, directory))
        assert forked(training, directory / "log") == 0, (directory / "log").read_text()[-3000:]
    return directory


def run_to_end(training, directory: Path, where: str = "") -> None:
    log = directory / "log"
    assert forked(training, log) == 0, where or log.read_text()[-3000:]


def assert_same(directory: Path, whole: Path, phases=("one",)) -> None:
    """Bits of all models and of the checkpoint (optimizer, schedule, random generators), and the values in the log."""
    for phase in phases:
        assert_equal(models_in(directory / phase), models_in(whole / phase), phase)
    found, expected = logged(directory / "log"), logged(whole / "log")
    assert len(expected) == 6 and all("loss=" in value for values in expected.values() for value in values)
    for key in found:
        assert found[key] <= expected[key], key
    assert found.keys() == expected.keys()


def test_killed_anywhere(corpus, whole, tmp_path):
    """Two kills in the first phase, three in the second, also in the middle of writing a file."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    draw, counts = (
        random.Random(seed),
        [int(n) for n in re.findall(r"^events: (\d+)", (whole / "log").read_text(), re.M)],
    )
    assert min(counts) > 50
    done = []
    for phase, kills, events in zip((one, two), (2, 3), counts, strict=True):
        for _ in range(kills):
            done.append(f"{phase.__name__}:{draw.randint(1, events // kills)}")
            training = at_event(int(done[-1].split(":")[1]), kill, phase(corpus, tmp_path))
            assert forked(training, tmp_path / "log") == -signal.SIGKILL, f"KILL_SEED={seed} {done}"
        run_to_end(phase(corpus, tmp_path), tmp_path, f"KILL_SEED={seed} {done}")
    try:
        assert_same(tmp_path, whole, ("one", "two"))
    except (AssertionError, FileNotFoundError) as error:
        raise AssertionError(f"KILL_SEED={seed} {done}: {error}") from error


@pytest.mark.parametrize("batch, left", [(4, 3), (9, 2)])
def test_killed_between_the_batches_of_an_update(batch, left, corpus, whole, tmp_path):
    """The open window is done again, none of it twice; the batch left over in epoch 1 counts in epoch 2.

    Batch 4 begins when 2 are saved; batch 9, the 4th of epoch 2, when 2 of that epoch are.
    """
    assert forked(at_event(batch, kill, one(corpus, tmp_path), batches_only=True), tmp_path / "log") == -signal.SIGKILL
    run_to_end(at_event(0, kill, one(corpus, tmp_path), batches_only=True), tmp_path)
    text = (tmp_path / "log").read_text()
    assert f"epoch {1 + batch // 5} after 2 batches" in text
    assert f"events: {10 - batch + 2}" in text
    assert_equal(models_in(tmp_path / "one"), models_in(whole / "one"))


def test_schedule_goes_on(corpus, whole, tmp_path):
    """The rates that are plotted are those of the schedule, over the updates that are made."""
    assert forked(at_event(8, kill, one(corpus, tmp_path), batches_only=True), tmp_path / "log") == -signal.SIGKILL
    run_to_end(one(corpus, tmp_path), tmp_path)
    rows = torch.load(tmp_path / "one/checkpoint.pth", weights_only=True)["curve"]
    assert [batch for batch, _, _ in rows] == [2, 4, 7, 9]
    expected = [LR * warmup_factor(step, 1, UPDATES, "cosine") for step in range(1, UPDATES + 1)]
    assert [rate for _, _, rate in rows] == pytest.approx(expected)
    schedule = models_in(tmp_path / "one")["checkpoint.pth"]["schedulers"][0]
    assert schedule["last_epoch"] == UPDATES


@pytest.mark.parametrize("interval", [0, 1])
def test_sigterm_saves_and_exits_143(interval, corpus, whole, tmp_path):
    """To every process of the group, as Slurm sends it: also to the workers that load data."""
    training = one(corpus, tmp_path, num_workers=1, save_interval_iters=interval)
    term = at_event(7, lambda: os.killpg(0, signal.SIGTERM), training, batches_only=True)
    assert forked(term, tmp_path / "log") == 143, (tmp_path / "log").read_text()[-3000:]
    assert "SIGTERM: saved in" in (tmp_path / "log").read_text()
    run_to_end(training, tmp_path)
    assert "epoch 2 after 2 batches" in (tmp_path / "log").read_text()
    assert_equal(models_in(tmp_path / "one"), models_in(whole / "one"))


def test_sigterm_in_validation(corpus, whole, tmp_path):
    """It ends the validation; the training before it is not done again."""

    def term_in_validation() -> int:
        from espnet2.train.trainer import Trainer

        from espnet_llmst.tasks.llmst import LLMSTTask

        def validate(**kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            Trainer.validate_one_epoch(**kwargs)
            raise AssertionError("the validation went on")

        LLMSTTask.trainer.validate_one_epoch = validate
        return one(corpus, tmp_path, save_interval_iters=0)()

    assert forked(term_in_validation, tmp_path / "log") == 143
    run_to_end(at_event(0, kill, one(corpus, tmp_path), batches_only=True), tmp_path)
    text = (tmp_path / "log").read_text()
    assert "epoch 1 after 5 batches" in text and "events: 5" in text
    assert_equal(models_in(tmp_path / "one"), models_in(whole / "one"))


def test_damaged_checkpoint_falls_back(corpus, whole, tmp_path):
    """On the one before it, with a word about it; what comes out is the same."""
    assert forked(at_event(10, kill, one(corpus, tmp_path), batches_only=True), tmp_path / "log") == -signal.SIGKILL
    newest = tmp_path / "one/checkpoint.pth"
    newest.write_bytes(newest.read_bytes()[:-3000])
    run_to_end(one(corpus, tmp_path), tmp_path)
    assert re.search(r"WARNING: .*checkpoint.pth is damaged .*checkpoint.prev.pth", (tmp_path / "log").read_text())
    assert_equal(models_in(tmp_path / "one"), models_in(whole / "one"))
