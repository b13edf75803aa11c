"""utils/slurm.pl and what its jobs run, without Slurm: sbatch, squeue and scancel are scripts of a few lines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

UTILS = Path(__file__).resolve().parents[3] / "egs2/TEMPLATE/llmst1/utils"
SLURM, JOB, LAUNCH = UTILS / "slurm.pl", UTILS / "slurm_job.pl", UTILS / "launch.sh"
FAKES = {
    "sbatch": 'printf "%s\\0" "$@" > "$FAKE/words"\nenv > "$FAKE/env"\n'
    'while [[ $1 != */slurm_job.pl ]]; do shift; done\nstatus=$2\n. "$FAKE/job"\n',
    # The n-th question gets the n-th answer, later ones the last.
    "squeue": 'echo >> "$FAKE/asked"\nn=$(wc -l < "$FAKE/asked")\n'
    'while [ ! -e "$FAKE/answer.$n" ]; do n=$((n - 1)); done\n. "$FAKE/answer.$n"\n',
    "scancel": 'echo "$@" >> "$FAKE/cancelled"\n',
}
IN_JOB = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "3"}


class Slurm:
    """A directory with the fakes, in which slurm.pl is called."""

    def __init__(self, directory: Path):
        self.directory = directory
        for name, text in FAKES.items():
            (directory / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (directory / name).chmod(0o755)
        self.env = {"PATH": f"{directory}:{os.environ['PATH']}", "FAKE": str(directory), "LC_ALL": "C.UTF-8"}
        (directory / "answer.1").write_text("echo '7 PENDING'")

    def start(self, *words, job="echo 7; for i in 1 2 3; do echo 0 > $status/$i; done", answers=()):
        (self.directory / "job").write_text(job)
        for number, answer in enumerate(answers, 1):
            (self.directory / f"answer.{number}").write_text(answer)
        command = [SLURM, "--file-wait", "0", *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.directory, env=self.env, **pipes)

    def run(self, *words, **how):
        process = self.start(*words, **how)
        out, err = process.communicate(timeout=60)
        assert out == ""
        return process.returncode, err

    def submitted(self):
        """The words that sbatch got."""
        return (self.directory / "words").read_text("utf-8").split("\0")[:-1]


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


# ---- what is submitted


def test_an_array_is_submitted_with_its_words_as_they_are(slurm):
    words = ["a  b", "$HOME", "it's", '"', "", "é", "--mem", "JOB"]
    assert slurm.run("--max-jobs-run", 2, "JOB=1:3", "exp/50%/dec.JOB.log", *words) == (0, "")
    sent = slurm.submitted()
    at = sent.index(str(JOB))
    assert sent[at + 2 :] == ["JOB", *words]
    assert Path(sent[at + 1]).parent == slurm.directory / "exp/50%/q"
    assert set(sent[:at]) == {
        *("--export=ALL", "--parsable", "--job-name=dec", "--open-mode=append", "--array=1-3%2"),
        f"--output={str(slurm.directory).replace('%', '%%')}/exp/50%%/dec.%a.log",
    }
    assert not (slurm.directory / "exp/50%/q").exists()


def test_a_job_without_number(slurm):
    assert slurm.run(slurm.directory / "JOB.log", "true") == (0, "")
    sent = slurm.submitted()
    assert f"--output={slurm.directory}/JOB.log" in sent and not [word for word in sent if "--array" in word]
    assert sent[-2:] == ["", "true"]


ESPNET = """\
command sbatch --export=PATH
option name=* --job-name $0
option mem=* --mem-per-cpu "$0 x"
option mem=0
option gpu=0 -p cpu   # a comment
option gpu=* -p gpu --gres=gpu:$0 -c $0
default gpu=0
"""


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (None, [], []),
        (None, ["--gpu", "0", "--num_threads", "1"], ["--cpus-per-task=1"]),
        (None, ["--gpu", "4", "--mem", "4G"], ["--gres=gpu:4", "--mem=4G"]),
        (None, ["--num-nodes", "2", "--time", "1:00:00"], ["--nodes=2", "--ntasks-per-node=1", "--time=1:00:00"]),
        (ESPNET, [], ["-p", "cpu"]),
        (ESPNET, ["--gpu", "2"], ["-p", "gpu", "--gres=gpu:2", "-c", "2"]),
        (ESPNET, ["--mem", "4G", "--name", "a b"], ["-p", "cpu", "--mem-per-cpu", "4G x", "--job-name", "a b"]),
        (ESPNET, ["--mem", "0"], ["-p", "cpu"]),
    ],
)
def test_resources(slurm, config, options, expected):
    """The recipe's conf/slurm.conf is read, else the template's; ESPnet's form is understood."""
    if config:
        (slurm.directory / "conf").mkdir()
        (slurm.directory / "conf/slurm.conf").write_text(config)
    assert slurm.run(*options, "x.log", "true") == (0, "")
    sent = slurm.submitted()
    assert sent[sent.index("--open-mode=append") + 1 : sent.index(str(JOB))] == expected
    assert sent[0] == ("--export=PATH" if config else "--export=ALL")


def test_what_belongs_to_another_job_is_not_handed_on(slurm):
    slurm.env |= {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "5", "SLURM_CONF": "c", "CUDA_VISIBLE_DEVICES": "3"}
    assert slurm.run("x.log", "true") == (0, "")
    env = (slurm.directory / "env").read_text()
    assert "SLURM_CONF=c\n" in env and "SLURM_JOB_ID" not in env and "PER_CPU" not in env and "CUDA" not in env


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.log"], "usage"),
        (["JOB=1:2", "x.log", "true"], "JOB must occur in the log's name"),
        (["JOB=2:1", "x.JOB.log", "true"], "empty job range"),
        (["--num_nodes", "two", "x.log", "true"], "whole number"),
        (["x.log", "cat", "|", "wc"], "no shell reads '|'"),
        (["a\\b.log", "true"], "backslash"),
        (["--queue", "long", "x.log", "true"], "--queue: "),
        (["--config", "none.conf", "x.log", "true"], "cannot read none.conf"),
        (["--config", "bad.conf", "x.log", "true"], "bad.conf, line 2: expected"),
        (["--config", "quote.conf", "x.log", "true"], "quote.conf, line 1: expected"),
        (["--config", "few.conf", "--gpu", "2", "x.log", "true"], "--gpu 2: few.conf has no line"),
    ],
)
def test_wrong_calls_submit_nothing(slurm, words, message):
    (slurm.directory / "bad.conf").write_text("command sbatch\noptoin mem=*\n")
    (slurm.directory / "quote.conf").write_text('command sbatch "--account=x\n')
    (slurm.directory / "few.conf").write_text("option gpu=0\n")
    code, err = slurm.run(*words)
    assert code == 1 and err.startswith("slurm.pl: ") and message in err and err.count("\n") == 1
    assert not (slurm.directory / "words").exists() and not list(slurm.directory.glob("*.log"))


def test_a_refused_job_is_one_line(slurm):
    code, err = slurm.run("x.log", "true", job="echo 'sbatch: error: bad' >&2; echo 'no partition' >&2; exit 1")
    assert (code, err) == (1, "slurm.pl: sbatch failed: sbatch: error: bad no partition \n")
    assert not (slurm.directory / "q").exists()
    (slurm.directory / "none.conf").write_text("command no-such-sbatch\n")
    code, err = slurm.run("--config", "none.conf", "x.log", "true")
    assert code == 1 and "cannot run no-such-sbatch" in err


# ---- how jobs end

ANSWER = """\
echo '7_1 TIMEOUT
7_2 OUT_OF_MEMORY
7_3 COMPLETED
7_4 FAILED
7_5 CANCELLED
7_6 NODE_FAIL
7 CANCELLED
77_7 COMPLETED'"""
RUN = """\
echo 7
for i in 1 2 3 4 6; do echo output > x.$i.log; done
echo 143 > $status/1; echo 3 > $status/4; echo 0 > $status/6; echo > $status/8.tmp"""


def test_each_end_is_named(slurm):
    code, err = slurm.run("--file-wait", 2, "JOB=1:8", "x.JOB.log", "true", job=RUN, answers=[ANSWER])
    assert code == 1
    assert err.splitlines() == [
        "slurm.pl: 4 of 8 jobs failed, 3 not started, log: x.1.log (code 143, TIMEOUT) x.2.log (OUT_OF_MEMORY) "
        "x.3.log (lost: Slurm says COMPLETED, but it left no exit status) x.4.log (code 3)",
        "output",
    ]
    log = (slurm.directory / "x.2.log").read_text()
    assert log.startswith("output\n# Ended (Slurm: OUT_OF_MEMORY) at ")
    assert "Ended" not in (slurm.directory / "x.4.log").read_text()  # the job wrote that itself
    assert (slurm.directory / "cancelled").read_text() == "--state=PENDING 7\n"


def test_slurm_forgets_a_job(slurm):
    """Slurm no longer knows it: an error for a whole array, a missing line for one of its jobs."""
    answers = ["echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"]
    code, err = slurm.run("x.log", "true", job="echo 7; echo output > x.log", answers=answers)
    assert code == 1 and "1 of 1 jobs failed, log: x.log (lost: Slurm says GONE, but" in err
    code, err = slurm.run(
        "JOB=1:2", "y.JOB.log", "true", job="echo 7; echo 0 > $status/1", answers=["echo 7_1 RUNNING"]
    )
    assert code == 1 and "1 of 2 jobs failed, log: y.2.log (CANCELLED)" in err


def test_silence_and_a_second_start_are_no_failure(slurm):
    """Slurm does not answer, then it has queued the job again, which left 143; at last the job succeeds."""
    job = "echo 7; echo 143 > $status/1; (sleep 3.5; echo 0 > $status/1) > /dev/null 2>&1 &"
    answers = ["echo 7 RUNNING", "echo 7 PENDING"]
    assert slurm.run("--file-wait", 5, "x.log", "true", job=job, answers=answers) == (0, "")
    (slurm.directory / "asked").unlink()
    job = "echo 7; (sleep 1.5; echo 0 > $status/1) > /dev/null 2>&1 &"
    code, err = slurm.run("--file-wait", 5, "x.log", "true", job=job, answers=["echo down >&2; exit 1"])
    assert (code, err) == (0, "slurm.pl: no answer about job 7, waiting: down \n")
    assert not (slurm.directory / "q").exists()


def test_the_reason_is_shown_not_the_launcher(slurm):
    job = "echo 7; (seq 30; echo 'llmst_train: error: prompt: missing'; seq 30) > x.log; echo 1 > $status/1"
    code, err = slurm.run("x.log", "true", job=job, answers=["echo 7 FAILED"])
    assert code == 1
    assert err == "slurm.pl: 1 of 1 jobs failed, log: x.log (code 1)\nllmst_train: error: prompt: missing\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_cancel_the_jobs_and_wait_for_them(slurm, number):
    answer = '[ -e "$FAKE/cancelled" ] && echo 7 CANCELLED || echo 7 RUNNING'
    process = slurm.start("x.log", "true", job="echo 7; echo output > x.log", answers=[answer])
    for _ in range(200):
        if (slurm.directory / "x.log").exists():
            break
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and err == "slurm.pl: interrupted, job 7 is cancelled\n"
    assert (slurm.directory / "cancelled").read_text() == "7\n"
    assert "Ended (Slurm: CANCELLED)" in (slurm.directory / "x.log").read_text()


# ---- within a job


def in_job(*words, env=IN_JOB):
    return [str(JOB), *map(str, words)], {"env": {"PATH": os.environ["PATH"], **env}, "text": True}


def test_a_job_writes_head_foot_and_status(tmp_path):
    words = [sys.executable, "-c", "import sys, os; print(sys.argv[1:], os.environ['SRUN_CPUS_PER_TASK'])"]
    command, how = in_job(tmp_path, "JOB", *words, "a  b", "it's", "", "part.JOB")
    (tmp_path / "2").write_text("143\n")  # of an earlier start
    lines = subprocess.run(command, **how, check=True, stdout=subprocess.PIPE).stdout.splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith("part.2") and "as Slurm job 7_2" in lines[1]
    assert lines[2].startswith("# Started at ") and lines[3] == "#"
    assert lines[4] == "['a  b', \"it's\", '', 'part.2'] 3"
    assert lines[5].startswith("# Accounting: time=") and lines[6].startswith("# Ended (code 0) at ")
    assert (tmp_path / "2").read_text() == "0\n" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["bash", "-c", "exit 3"], 3, ""),
        (["bash", "-c", "kill -9 $$"], 137, ""),
        (["no-such-command"], 127, "cannot run no-such-command"),
    ],
)
def test_a_job_that_fails(tmp_path, words, code, message):
    command, how = in_job(tmp_path, "", *words, env={})
    done = subprocess.run(command, **how, check=False, capture_output=True)
    assert done.returncode == code and message in done.stderr
    assert f"# Ended (code {code}) at " in done.stdout and (tmp_path / "1").read_text() == f"{code}\n"


def test_a_job_hands_sigterm_on_and_waits(tmp_path):
    script = "trap 'echo saved; exit 143' TERM; touch ready; while true; do sleep 0.05; done"
    command, how = in_job(tmp_path, "", "bash", "-c", script)
    process = subprocess.Popen(command, **how, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(200):
        if (tmp_path / "ready").exists():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and "saved\n" in out and "# Ended (code 143)" in out


# ---- several processes


def launch(tmp_path, *words, env=()):
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\necho srun "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "echo", **dict(env)}
    return subprocess.run([LAUNCH, *words], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_launch(tmp_path):
    command = ["-m", "train", "--config", "a b"]
    torchrun = "-m espnet_llmst.train.launch --nproc_per_node"
    assert launch(tmp_path, "0", "1", *command).stdout == "-m train --config a b\n"
    assert launch(tmp_path, "1", "1", *command).stdout == "-m train --config a b\n"
    assert launch(tmp_path, "4", "1", *command).stdout == f"{torchrun} 4 --standalone -m train --config a b\n"
    nodes = launch(tmp_path, "4", "2", *command, env={"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "20003"})
    assert nodes.returncode == 0, nodes.stderr
    assert nodes.stdout.startswith("srun --export=ALL --ntasks-per-node=1 --kill-on-bad-exit=1 echo ")
    assert f" {torchrun} 4 --nnodes 2 --rdzv_backend c10d --rdzv_id 20003 " in nodes.stdout
    assert nodes.stdout.endswith(":20003 -m train --config a b\n")


def test_several_nodes_need_slurm(tmp_path):
    done = launch(tmp_path, "4", "2", "-m", "train")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cmd_backend=slurm" in done.stderr
