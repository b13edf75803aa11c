"""utils/slurm.pl with a real Slurm: two nodes on this machine, started here and stopped at the end.

It needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. Where CI is set they are installed;
elsewhere their absence skips these tests.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

UTILS = Path(__file__).resolve().parents[3] / "egs2/TEMPLATE/llmst1/utils"
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch"]
DOWNLOAD_SECONDS, START_SECONDS = 240, 30
# Nothing of systemd or cgroups, and no accounting: a container will do.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool.%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.%n.log
PlugStackConfig={dir}/plugstack.conf
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def install():
    """Fetch within a time limit, then install without one (dpkg must not be killed); services are not started."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    quiet = {"env": env, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        subprocess.run(["apt-get", "update"], timeout=DOWNLOAD_SECONDS, **quiet)
        subprocess.run([*command, "--download-only"], timeout=DOWNLOAD_SECONDS, **quiet)
        subprocess.run(command, **quiet)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"Debian's packages {' '.join(PACKAGES)} cannot be installed: {error}")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_daemons(directory):
    """Munge's daemon, Slurm's controller and its two nodes."""
    host = socket.gethostname().split(".")[0]
    config = directory / "slurm.conf"
    config.write_text(CONFIG.format(dir=directory, host=host, ports=free_ports(3)))
    for name in ("state", "spool.n1", "spool.n2"):
        (directory / name).mkdir()
    (directory / "plugstack.conf").touch()
    key = directory / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    munge = {name: f"--{name}={directory}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")}
    commands = [
        ["munged", "-F", "--force", f"--key-file={key}", f"--seed-file={directory}/munge.seed", *munge.values()],
        ["slurmctld", "-D", "-f", config],
        *(["slurmd", "-D", "-N", name, "-f", config] for name in ("n1", "n2")),
    ]
    env = {**os.environ, "SLURM_CONF": str(config)}
    daemons = []
    for command in commands:
        with open(directory / f"{command[0]}.out", "ab") as out:
            daemons.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out))
        if command[0] == "munged":
            wait_until((directory / "munge.socket").exists, START_SECONDS)
    return daemons, env


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def ask(env, *command):
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which sbatch finds the cluster."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("needs root and Debian")
    if not all(map(shutil.which, PROGRAMS)):
        if not os.environ.get("CI"):
            pytest.skip(f"apt-get install {' '.join(PACKAGES)}")
        install()
    directory = tmp_path_factory.mktemp("slurm")
    daemons, env = start_daemons(directory)
    try:
        if not wait_until(lambda: ask(env, "sinfo", "-h", "-o", "%D %t") == "2 idle\n", START_SECONDS):
            logs = "\n".join(path.read_text()[-1000:] for path in sorted(directory.glob("*.out")))
            pytest.fail(f"Slurm did not start within {START_SECONDS} s:\n{logs}")
        yield env
        ask(env, "scancel", "--user=root", "--signal=KILL", "--full")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def start(cluster, cwd, *words):
    command = [UTILS / "slurm.pl", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(cluster, cwd, *words):
    process = start(cluster, cwd, *words)
    out, err = process.communicate(timeout=60)
    assert out == ""
    return process.returncode, err


def test_words_reach_the_jobs_as_they_are(cluster, tmp_path):
    cwd = tmp_path / "100 %a JOB"
    cwd.mkdir()
    words = ["a  b", "$HOME", "*", "it's", '"', "", "é", "new\nline", "--mem"]
    code = "import os, sys; print(sys.argv[1:]); print(os.getcwd(), os.environ['LLMST'])"
    options = ["--num_threads", 2, "--mem", "100M", "--time", "0:10:00", "--max-jobs-run", 2, "JOB=2:4"]
    env = {**cluster, "LLMST": "exported"}
    assert run(env, cwd, *options, "my log/x%.JOB.log", sys.executable, "-c", code, *words, "part.JOB") == (0, "")
    assert sorted(path.name for path in (cwd / "my log").iterdir()) == ["x%.2.log", "x%.3.log", "x%.4.log"]
    lines = (cwd / "my log/x%.3.log").read_text("utf-8").splitlines()
    assert str([*words, "part.3"]) in lines and f"{cwd} exported" in lines
    assert any(line.startswith("# Started at ") for line in lines)
    assert lines[-2].startswith("# Accounting: time=") and lines[-1].startswith("# Ended (code 0) at ")


def test_a_failing_job_is_named(cluster, tmp_path):
    code, err = run(cluster, tmp_path, "JOB=1:3", "x.JOB.log", "bash", "-c", "echo output JOB; [ JOB != 2 ] || exit 3")
    assert code == 1
    assert err.splitlines()[0] == "slurm.pl: 1 of 3 jobs failed, log: x.2.log (code 3)"
    assert err.endswith("\noutput 2\n") and "# Ended (code 3)" in (tmp_path / "x.2.log").read_text()


def test_a_cancelled_job_is_named(cluster, tmp_path):
    """One that ignores SIGTERM is killed, with or without the process that would note its exit status."""
    script = "trap '' TERM; touch on.JOB; while [ JOB = 1 ]; do sleep 0.2; done"
    process = start(cluster, tmp_path, "JOB=1:2", "x.JOB.log", "bash", "-c", script)
    assert wait_until((tmp_path / "on.1").exists)
    number = (tmp_path / "x.1.log").read_text().split("Slurm job ")[1].split()[0]
    assert number.endswith("_1")
    ask(cluster, "scancel", number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.match(r"slurm.pl: 1 of 2 jobs failed, log: x.1.log \((code 137, )?CANCELLED\)\n", err), err
    assert re.search(r"^# Ended \((Slurm: CANCELLED|code 137)\)", (tmp_path / "x.1.log").read_text(), re.MULTILINE)
    assert "# Ended (code 0)" in (tmp_path / "x.2.log").read_text()


def test_an_interrupted_runner_cancels_its_jobs(cluster, tmp_path):
    script = "trap 'echo saved; exit 143' TERM; touch on.JOB; while true; do sleep 0.1; done"
    process = start(cluster, tmp_path, "--num_threads", 4, "JOB=1:3", "x.JOB.log", "bash", "-c", script)
    assert wait_until(lambda: (tmp_path / "on.1").exists() and (tmp_path / "on.2").exists())
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.startswith("slurm.pl: interrupted, job ")
    assert ask(cluster, "squeue", "-h", "-t", "PENDING,RUNNING") == ""
    for job in (1, 2):
        assert "saved\n" in (tmp_path / f"x.{job}.log").read_text()
    assert not (tmp_path / "x.3.log").exists() and not (tmp_path / "on.3").exists()


def test_a_program_on_two_nodes_saves_at_sigterm(cluster, tmp_path):
    """launch.sh starts torchrun once per node; SIGTERM to the batch script (--signal=B:TERM@300) reaches it."""
    program = tmp_path / "python"  # in torchrun's place
    program.write_text(
        '#!/usr/bin/env bash\ncd "$(dirname "$0")"\ntrap "sleep 1; touch saved.$SLURM_PROCID; exit 143" TERM\n'
        'echo "$SLURM_NTASKS:$@" > on.$SLURM_PROCID\nwhile true; do sleep 0.1; done\n'
    )
    program.chmod(0o755)
    words = ["--num_nodes", 2, "x.log", UTILS / "launch.sh", 4, 2, "-m", "train", "a  b"]
    process = start({**cluster, "PYTHON": str(program)}, tmp_path, *words)
    found = [tmp_path / "on.0", tmp_path / "on.1"]
    assert wait_until(lambda: all(path.exists() and path.read_text() for path in found)), process.poll()
    assert found[1].read_text().startswith("2:-m espnet_llmst.train.launch --nproc_per_node 4 --nnodes 2 ")
    assert found[1].read_text().endswith(" -m train a  b\n")
    number = (tmp_path / "x.log").read_text().split("Slurm job ")[1].split()[0]
    ask(cluster, "scancel", "--batch", "--signal=TERM", number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "1 of 1 jobs failed, log: x.log (code 143" in err
    assert (tmp_path / "saved.0").exists() and (tmp_path / "saved.1").exists()
