"""Several processes: the numbers of one, one end for all, the command as users start it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
from training_runs import assert_equal, at_event, command, forked, models_in, ranks_train, settings_of, train

REPO = Path(__file__).resolve().parents[3]
LAUNCH = REPO / "egs2/TEMPLATE/llmst1/utils/launch.sh"
MIXTURE = {"batch_size": 3, "log_interval": 1, "save_interval_iters": 0}


def curve_of(directory: Path) -> list[list[float]]:
    return torch.load(directory / "checkpoint.pth", weights_only=True)["curve"]


def assert_close(directory: Path, whole: Path) -> None:
    """Every logged loss and rate, and the parameters after each epoch, to 1e-6."""
    found, expected = (torch.tensor(curve_of(path)) for path in (directory, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True)  # no rate in the first batch
    for name in ("1epoch.pth", "2epoch.pth"):
        found, expected = (dict(torch.load(path / name, weights_only=True)) for path in (directory, whole))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_torchrun_is_one_process(mixed_corpus, tmp_path):
    """Batches of 4, 3 and 3 utterances, one left over from an update, some without speech on one rank only.

    launch.sh as llmst.sh calls it; the training is stopped by SIGTERM to one rank, and goes on.
    """
    settings = settings_of(mixed_corpus, **MIXTURE)
    assert forked(train(mixed_corpus, tmp_path / "one", settings), tmp_path / "log") == 0, (
        tmp_path / "log"
    ).read_text()
    options = ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    # torchrun's store serves one start of a process group: the second of this test meets in a file.
    again = ["--dist_init_method", f"file://{tmp_path}/meet"]
    steps = [
        {"arguments": command(mixed_corpus, tmp_path / "exp", settings, *options, *more), "term": term}
        for more, term in ((again, 5), ([], 0))
    ]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    program = Path(__file__).with_name("started_by_torchrun.py")
    done = subprocess.run(
        [LAUNCH, "2", "1", program, tmp_path / "steps.json", tmp_path / "rank"],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": f"{REPO}:{program.parent}"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    logs = [(tmp_path / f"rank.{rank}").read_text() for rank in range(2)]
    assert done.returncode == 143, done.stderr[-2000:] + logs[0][-3000:]
    assert " ended with status 143" in done.stderr and "Traceback" not in done.stderr
    for log in logs:
        assert re.findall(r"^status: (\d+)", log, re.M) == ["143", "0"]
    assert "epoch 2 after 2 batches" in logs[0]
    assert len(curve_of(tmp_path / "one")) == 6
    assert_close(tmp_path / "exp", tmp_path / "one")


def test_two_processes_stop_and_go_on_together(corpus, tmp_path):
    """SIGTERM to one of them ends both with 143; resumed they end as if left alone. One process can go on, too."""

    def counted(rank, training, event=0):
        """Prints how often DDP leaves out to add up gradients."""

        def run() -> int:
            parallel, entered = torch.nn.parallel.DistributedDataParallel, []
            no_sync = parallel.no_sync
            parallel.no_sync = lambda self: entered.append(1) or no_sync(self)
            status = at_event(event, lambda: os.kill(os.getpid(), signal.SIGTERM), training, True)()
            print(f"no_sync: {len(entered)}")
            return status

        return run

    settings = settings_of(corpus, save_interval_iters=0)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    log = tmp_path / "whole/log.0"
    assert ranks_train(corpus, tmp_path / "whole", settings, wrap=counted) == [0, 0], log.read_text()[-3000:]
    # Of five batches the first and third; the fifth ends the epoch and opens the second's first update.
    assert re.findall(r"no_sync: (\d+)", log.read_text()) == ["4"]
    term = ranks_train(corpus, tmp_path / "parts", settings, wrap=lambda rank, t: counted(rank, t, 7 * rank))
    assert term == [143, 143]
    assert len(torch.load(tmp_path / "parts/exp/checkpoint.pth", weights_only=True)["rng"]) == 2
    stopped = shutil.copytree(tmp_path / "parts/exp", tmp_path / "stopped/exp")
    assert forked(train(corpus, stopped, settings), tmp_path / "stopped/log") == 0
    assert "the checkpoint is of 2 processes, now there are 1" in (tmp_path / "stopped/log").read_text()
    assert ranks_train(corpus, tmp_path / "parts", settings) == [0, 0]
    assert "epoch 2 after 2 batches" in (tmp_path / "parts/log.0").read_text()
    assert_equal(models_in(tmp_path / "parts/exp"), models_in(tmp_path / "whole/exp"))


def test_uneven_batches_end_together(corpus, tmp_path):
    """A rank with a batch less than the other ends the epoch for both."""

    def shorten(rank, training):
        def run() -> int:
            from espnet2.iterators.sequence_iter_factory import SequenceIterFactory

            build_iter = SequenceIterFactory.build_iter

            def shorter(self, epoch, shuffle=None):
                loader = build_iter(self, epoch, shuffle)
                del loader.batch_sampler[:rank]
                return loader

            SequenceIterFactory.build_iter = shorter
            return training()

        return run

    settings = settings_of(corpus, max_epoch=1, log_interval=1, accum_grad=3)
    assert ranks_train(corpus, tmp_path, settings, wrap=shorten) == [0, 0], (tmp_path / "log.1").read_text()[-3000:]
    assert [batch for batch, *_ in curve_of(tmp_path / "exp")] == [1, 2, 3, 4]
