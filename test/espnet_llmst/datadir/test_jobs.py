"""Parallel jobs and the marker of finished work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.jobs import finished_summary, mark_finished, run_jobs, table_stamps


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
    out, lost = tmp_path / "out", tmp_path / "lost.wav"
    assert finished_summary(out, {"a": 1}) is None
    key = {"a": 1, "tables": table_stamps(good.dir)}
    mark_finished(out, key, {"n": 2}, [lost])
    assert finished_summary(out, key) == {"n": 2} and finished_summary(out, {**key, "a": 2}) is None
    os.utime(good.dir / "wav.scp", (1, 1))  # an older one in its place
    assert table_stamps(good.dir) != key["tables"]
    lost.write_text("came later")
    assert finished_summary(out, key) is None
    mark_finished(out, key, {"n": 2}, [lost])
    (out / "utt2spk").write_text("")
    assert finished_summary(out, key) is None
    (out / ".done").write_text("{")
    assert finished_summary(out, key) is None


PARENT = """
import sys, time
from espnet_llmst.datadir.jobs import run_jobs

if __name__ == "__main__":
    for _ in run_jobs(time.sleep, [0.1, 0.1, 100, 100], 2, "x"):
        print("begun", flush=True)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while process.stdout.readline() != "begun\n":
        pass
    process.kill()
    began = time.monotonic()
    process.stdout.read()  # ends when nobody has the pipe any more
    assert time.monotonic() - began < 30
    process.wait()
