"""utils/: the option parser, the job runner, and the Kaldi-named commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
UTILS = REPO / "egs2/TEMPLATE/llmst1/utils"
ENV = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPO), "LC_ALL": "C.UTF-8"}
ENV.pop("CUDA_VISIBLE_DEVICES", None)


def call(*command, cwd=None, env=ENV, stdin=None):
    command = [str(word) for word in command]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, input=stdin, timeout=60)


# ---- parse_options.sh

SCRIPT = """\
set -euo pipefail
stage=1
train_args=
force=false
help_message="Usage: demo.sh"
. {utils}/parse_options.sh
echo "stage=$stage train_args=$train_args force=$force rest=$*"
"""


@pytest.fixture
def demo(tmp_path):
    path = tmp_path / "demo.sh"
    path.write_text(SCRIPT.format(utils=UTILS))
    return lambda *options: call("bash", path, *options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "stage=1 train_args= force=false rest="),
        (["--stage", "3", "--force", "true"], "stage=3 train_args= force=true rest="),
        (["--train-args", "--lr 1 'x'"], "stage=1 train_args=--lr 1 'x' force=false rest="),
        (["--train_args", "a b", "more", "--stage"], "stage=1 train_args=a b force=false rest=more --stage"),
        (["--train_args=--stage=2", "--force=true"], "stage=1 train_args=--stage=2 force=true rest="),
        (["--train_args", "--other"], "stage=1 train_args=--other force=false rest="),
        (["--train_args", "", "--", "--stage"], "stage=1 train_args= force=false rest=--stage"),
        (["--stage", "-1"], "stage=-1 train_args= force=false rest="),
    ],
)
def test_options(demo, options, expected):
    result = demo(*options)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected + "\n", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stagee", "3"], "unknown option --stagee"),
        (["--no.name", "3"], "unknown option --no.name"),
        (["--a[$(touch pwned)]=3"], "unknown option"),
        (["--stage"], "--stage needs a value"),
        (["--stage", "--train-args", "x"], "--stage needs a value, but --train-args follows"),
        (["--force", "yes"], "--force takes true or false, not 'yes'"),
        (["--force="], "--force takes true or false"),
        (["--force"], "--force needs a value (true or false)"),
    ],
)
def test_bad_options_are_one_line(demo, options, words, tmp_path):
    result = demo(*options)
    assert result.returncode == 1 and result.stdout == ""
    assert words in result.stderr and result.stderr.startswith("demo.sh: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "pwned").exists() and not Path("pwned").exists()


def test_help(demo):
    for option in ("--help", "-h"):
        result = demo("--stage", "2", option, "--nonsense")
        assert (result.returncode, result.stdout) == (0, "Usage: demo.sh\n")


# ---- run.pl

RUN = UTILS / "run.pl"


def test_arguments_reach_the_command_as_they_are(tmp_path):
    log = tmp_path / "deep/er/x.log"
    words = ["a  b", "$HOME", "*", "'", '"', "", "é"]
    result = call(RUN, "--mem", "4G", log, sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    assert (result.returncode, result.stderr) == (0, "")
    lines = log.read_text("utf-8").splitlines()
    assert str(words) in lines
    assert lines[0].startswith("# ") and "Started at" in lines[1]
    assert lines[-1].startswith("# Ended (code 0) at ")


def test_jobs_run_side_by_side_whatever_the_threads_of_each(tmp_path):
    """path.sh sets OMP_NUM_THREADS=1, which `nproc` takes for the number of processors."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor")
    env = {**ENV, "OMP_NUM_THREADS": "1"}
    wait = "touch JOB; for i in $(seq 600); do [ -e 1 ] && [ -e 2 ] && exit 0; sleep 0.05; done; exit 1"
    assert call(RUN, "JOB=1:2", "log.JOB", "bash", "-c", wait, cwd=tmp_path, env=env).returncode == 0


def test_jobs_are_numbered_in_log_and_arguments(tmp_path):
    result = call(RUN, "JOB=3:5", "log.JOB.txt", "bash", "-c", "echo part JOB >out.JOB", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{a}.{n}{b}" for n in (3, 4, 5) for a, b in (("log", ".txt"), ("out", ""))
    }
    assert (tmp_path / "out.4").read_text() == "part 4\n"


def test_failure_names_the_log_and_shows_its_end(tmp_path):
    script = "seq 1 30; [ JOB != 2 ]"
    result = call(RUN, "--max-jobs-run", "3", "JOB=1:3", tmp_path / "x.JOB.log", "bash", "-c", script)
    assert result.returncode == 1
    first, *tail = result.stderr.splitlines()
    assert "1 of 3 jobs failed" in first and f"{tmp_path}/x.2.log" in first and "x.1.log" not in first
    assert tail == [str(number) for number in range(21, 31)]
    assert "# Ended (code 1)" in (tmp_path / "x.2.log").read_text()


def test_no_job_is_started_after_a_failure(tmp_path):
    result = call(RUN, "--max-jobs-run", "1", "JOB=1:3", tmp_path / "x.JOB.log", "false")
    assert "1 of 3 jobs failed, 2 not started" in result.stderr
    assert not (tmp_path / "x.2.log").exists()


def test_commands_that_cannot_run_or_are_killed(tmp_path):
    result = call(RUN, tmp_path / "x.log", "no-such-command")
    assert result.returncode == 1 and "cannot run no-such-command" in result.stderr
    assert "# Ended (code 127)" in (tmp_path / "x.log").read_text()
    call(RUN, tmp_path / "y.log", "bash", "-c", "kill -9 $$")
    assert "# Ended (code 137)" in (tmp_path / "y.log").read_text()


@pytest.mark.parametrize("limit", [1, 2])
def test_max_jobs_run(tmp_path, limit):
    script = "touch on.JOB; ls on.* | wc -l; sleep 0.15; rm on.JOB"
    result = call(RUN, "--max-jobs-run", limit, "JOB=1:4", "x.JOB.log", "bash", "-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    running = [int(line) for log in tmp_path.glob("x.*.log") for line in log.read_text().splitlines() if line.isdigit()]
    assert len(running) == 4 and max(running) == limit


def test_each_job_gets_gpus_of_its_own(tmp_path):
    env = {**ENV, "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    command = ["JOB=1:2", "x.JOB.log", "bash", "-c", "echo gpus=$CUDA_VISIBLE_DEVICES; sleep 0.2"]
    assert call(RUN, "--gpu", "2", *command, cwd=tmp_path, env=env).returncode == 0
    found = {line for n in (1, 2) for line in (tmp_path / f"x.{n}.log").read_text().splitlines() if line[:5] == "gpus="}
    assert found == {"gpus=4,5", "gpus=6,7"}
    result = call(RUN, "--gpu", "8", *command, cwd=tmp_path, env=env)
    assert result.returncode == 1 and "only 4 visible" in result.stderr


def ended(pid):
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_jobs_and_wait_for_them(tmp_path, number):
    script = "trap 'echo saved; kill %1; exit 143' TERM; sleep 60 & echo $! >pid.JOB; wait"
    command = [RUN, "--max-jobs-run", "2", "JOB=1:3", "x.JOB.log", "bash", "-c", script]
    runner = subprocess.Popen([str(word) for word in command], cwd=tmp_path, stderr=subprocess.DEVNULL)
    for _ in range(200):
        pids = [path.read_text().strip() for path in tmp_path.glob("pid.*")]
        if len(pids) == 2 and all(pids):
            break
        time.sleep(0.02)
    runner.send_signal(number)
    assert runner.wait(timeout=10) == 128 + number
    for job, pid in zip((1, 2), pids, strict=True):
        assert "saved" in (tmp_path / f"x.{job}.log").read_text()
        for _ in range(200):  # the kernel may take a moment on a busy machine
            if ended(pid):
                break
            time.sleep(0.02)
        assert ended(pid)
    assert not (tmp_path / "x.3.log").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.log"], "usage"),
        (["JOB=1:2", "x.log", "true"], "JOB must occur in the log's name"),
        (["JOB=2:1", "x.JOB.log", "true"], "empty job range"),
        (["--max-jobs-run", "many", "x.log", "true"], "whole number"),
        (["x.log", "cat", "|", "wc"], "no shell reads '|'"),
    ],
)
def test_wrong_calls(tmp_path, arguments, words):
    result = call(RUN, *arguments, cwd=tmp_path)
    assert result.returncode == 1 and words in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---- Kaldi-named commands


@pytest.fixture
def data(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    for name, value in (("wav.scp", "{}.wav"), ("utt2spk", "s-{}"), ("text.tc.de", "hallo {}")):
        (directory / name).write_text("".join(f"u{i} {value.format(i)}\n" for i in range(1, 6)))
    (directory / "spk2utt").write_text("".join(f"s-{i} u{i}\n" for i in range(1, 6)))
    return directory


def lines(path):
    return path.read_text().splitlines()


def test_validate_and_fix(data):
    assert call(UTILS / "validate_data_dir.sh", "--no-feats", data).returncode == 0
    (data / "text.tc.de").write_text("u3 drei\nu1 eins\n")
    result = call(UTILS / "validate_data_dir.sh", "--no-feats", "--no-spk-sort", data)
    assert result.returncode == 1 and "text.tc.de" in result.stderr and "fix_data_dir.sh" in result.stderr
    result = call(UTILS / "fix_data_dir.sh", "--utt_extra_files", "utt2lang", data)
    assert result.returncode == 0 and "wav.scp: 3 lines removed" in result.stderr
    assert call(UTILS / "validate_data_dir.sh", data).returncode == 0
    result = call(UTILS / "validate_data_dir.sh", data / "none")
    assert result.returncode == 1 and result.stderr.count("\n") == 1


def test_subset_copy_combine(data, tmp_path):
    (tmp_path / "list").write_text("u2\nu5 and more\n")
    assert call(UTILS / "subset_data_dir.sh", "--utt-list", tmp_path / "list", data, tmp_path / "a").returncode == 0
    assert lines(tmp_path / "a/spk2utt") == ["s-2 u2", "s-5 u5"]
    assert call(UTILS / "subset_data_dir.sh", "--first", data, 2, tmp_path / "b").returncode == 0
    assert lines(tmp_path / "b/wav.scp") == ["u1 1.wav", "u2 2.wav"]
    (tmp_path / "speakers").write_text("s-4\n")
    assert call(UTILS / "subset_data_dir.sh", "--spk_list", tmp_path / "speakers", data, tmp_path / "c").returncode == 0
    assert lines(tmp_path / "c/utt2spk") == ["u4 s-4"]
    assert call(UTILS / "subset_data_dir.sh", "--speakers", data, 3, tmp_path / "d").returncode == 0
    assert len(lines(tmp_path / "d/utt2spk")) == 3
    copy = call(UTILS / "copy_data_dir.sh", "--utt-prefix=-x-", "--spk_prefix", "y-", tmp_path / "a", tmp_path / "e")
    assert copy.returncode == 0, copy.stderr
    assert lines(tmp_path / "e/utt2spk") == ["-x-u2 y-s-2", "-x-u5 y-s-5"]
    assert call(UTILS / "combine_data.sh", tmp_path / "all", data, tmp_path / "e").returncode == 0
    assert len(lines(tmp_path / "all/wav.scp")) == 7
    for wrong in ([data, "x", tmp_path / "z"], [data, 9, tmp_path / "z"], [data, tmp_path / "z"]):
        result = call(UTILS / "subset_data_dir.sh", *wrong)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr


def test_split_and_filter(data, tmp_path):
    parts = [tmp_path / f"p.{n}" for n in (1, 2, 3)]
    assert call(UTILS / "split_scp.pl", f"--utt2spk={data}/utt2spk", data / "wav.scp", *parts).returncode == 0
    assert "".join(part.read_text() for part in parts) == (data / "wav.scp").read_text()
    assert all(part.stat().st_size for part in parts)
    third = call(UTILS / "split_scp.pl", "-j", 3, 3, "--one-based", data / "wav.scp")
    assert third.stdout == parts[2].read_text()
    assert call(UTILS / "split_scp.pl", "-j", 3, 3, data / "wav.scp").returncode == 1
    assert call(UTILS / "filter_scp.pl", parts[0], data / "text.tc.de").stdout == "u1 hallo 1\n"
    excluded = call(UTILS / "filter_scp.pl", "--exclude", "-f", 2, "-", data / "utt2spk", stdin="s-1\ns-2\ns-3\ns-4\n")
    assert excluded.stdout == "u5 s-5\n"
    from_stdin = call(UTILS / "filter_scp.pl", parts[0], stdin="u1 é\u2028x\nu9 y\n")
    assert from_stdin.stdout == "u1 é\u2028x\n"


def test_speaker_maps(data):
    spk2utt = call(UTILS / "utt2spk_to_spk2utt.pl", data / "utt2spk").stdout
    assert spk2utt == (data / "spk2utt").read_text()
    assert call(UTILS / "spk2utt_to_utt2spk.pl", stdin=spk2utt).stdout == (data / "utt2spk").read_text()


def test_a_closed_pipe_is_no_error(tmp_path):
    (tmp_path / "big").write_text("".join(f"u{i} x\n" for i in range(100_000)))
    result = call("bash", "-c", f"{UTILS}/filter_scp.pl big big | head -n 1", cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("u0 x\n", "")
