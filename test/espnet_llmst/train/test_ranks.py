"""Several processes: the numbers of one, one end for all, the command as users start it."""

import os
import signal

import torch
from training_runs import assert_equal, at_event, forked, models_in, ranks_train, settings_of, train

MIXTURE = {"batch_size": 3, "log_interval": 1, "save_interval_iters": 0}


def curve_of(directory) -> list[list[float]]:
    return torch.load(directory / "checkpoint.pth", weights_only=True)["curve"]


def assert_close(directory, whole) -> None:
    """Every logged loss and rate, and the parameters after each epoch, to 1e-6."""
    torch.testing.assert_close(torch.tensor(curve_of(directory)), torch.tensor(curve_of(whole)), rtol=0, atol=1e-6, equal_nan=True)
    for name in ("1epoch.pth", "2epoch.pth"):
        found, expected = (dict(torch.load(path / name, weights_only=True)) for path in (directory, whole))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_two_processes_are_one(mixed_corpus, tmp_path):
    """Batches of 4, 3 and 3 utterances, one left over from an update, some without speech on one rank only."""

    def counted(rank, training):
        def run() -> int:
            parallel, entered = torch.nn.parallel.DistributedDataParallel, []
            no_sync = parallel.no_sync
            parallel.no_sync = lambda self: entered.append(1) or no_sync(self)
            status = training()
            print(f"no_sync: {len(entered)}")
            return status

        return run

    settings = settings_of(mixed_corpus, **MIXTURE)
    assert forked(train(mixed_corpus, tmp_path / "one", settings), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert ranks_train(mixed_corpus, tmp_path, settings, wrap=counted) == [0, 0], (tmp_path / "log.0").read_text()[-3000:]
    assert len(curve_of(tmp_path / "one")) == 6
    assert_close(tmp_path / "exp", tmp_path / "one")
    assert "no_sync: 2" in (tmp_path / "log.1").read_text()  # the first batch of two; the third ends the epoch


def test_two_processes_stop_and_go_on_together(corpus, tmp_path):
    """SIGTERM to one of them ends both with 143; resumed they end as if left alone."""

    def term_one(rank, training):
        return at_event(7 if rank == 1 else 0, lambda: os.kill(os.getpid(), signal.SIGTERM), training, True)

    settings = settings_of(corpus, save_interval_iters=0)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert ranks_train(corpus, tmp_path / "whole", settings) == [0, 0], (tmp_path / "whole/log.0").read_text()[-3000:]
    assert ranks_train(corpus, tmp_path / "parts", settings, wrap=term_one) == [143, 143]
    assert len(torch.load(tmp_path / "parts/exp/checkpoint.pth", weights_only=True)["rng"]) == 2
    assert ranks_train(corpus, tmp_path / "parts", settings) == [0, 0]
    assert "epoch 2 after 2 batches" in (tmp_path / "parts/log.0").read_text()
    assert_equal(models_in(tmp_path / "parts/exp"), models_in(tmp_path / "whole/exp"))
