"""Parallel jobs and the marker of finished work."""

import os
import signal

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.jobs import finished_summary, mark_finished, run_jobs


def square(number):
    return number**2


def die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("nj", [1, 2, 100])
def test_results_come_in_order(nj):
    jobs = list(range(7)) if nj > 2 else list(range(50))
    nj = min(nj, 3)
    assert list(run_jobs(square, jobs, nj, "squares")) == [number**2 for number in jobs]


def test_no_jobs():
    assert list(run_jobs(square, [], 4, "nothing")) == []


def test_a_killed_process_is_an_error_not_a_hang():
    with pytest.raises(InputError, match="killed"):
        list(run_jobs(die, list(range(8)), 2, "dying"))


def test_marker(good, tmp_path):
    out = tmp_path / "out"
    assert finished_summary(good.dir, out, {"a": 1}) is None
    for name in good.tables:  # as if written long ago
        os.utime(good.dir / name, (1, 1))
    mark_finished(good.dir, out, {"a": 1}, {"n": 2})
    assert finished_summary(good.dir, out, {"a": 1}) == {"n": 2}
    assert finished_summary(good.dir, out, {"a": 2}) is None
    (good.dir / "utt2dur").write_text("")
    assert finished_summary(good.dir, out, {"a": 1}) is None
    (good.dir / "utt2dur").unlink()
    os.utime(good.dir / "wav.scp")
    os.utime(out / ".done", (100, 100))
    assert finished_summary(good.dir, out, {"a": 1}) is None
    (out / ".done").write_text("{")
    assert finished_summary(good.dir, out, {"a": 1}) is None
