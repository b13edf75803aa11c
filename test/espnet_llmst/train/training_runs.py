"""Whole trainings in forked processes (imports cost seconds), which can be killed at any of their events."""

import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

PATIENCE = 300  # seconds that a training of ten batches may take on a busy machine
VALUES = re.compile(r"(?:loss|acc|grad_norm|clip|optim0_lr0)=(?:nan|[0-9.e+-]+)")


def settings_of(corpus, **changes) -> dict:
    """Settings of a phase of two epochs."""
    return {
        **corpus.models,
        "trainable": ["postencoder", "encoder.lora"],
        "optim": "adamw",
        "optim_conf": {"lr": 3.0e-3},
        "scheduler": "warmup_cosine",
        "scheduler_conf": {"warmup_steps": 1},
        "batch_type": "unsorted",
        "batch_size": 2,
        "accum_grad": 2,
        "max_epoch": 2,
        "log_interval": 2,
        "save_interval_iters": 1,
        "keep_nbest_models": [2],
        "best_model_criterion": [["valid", "loss", "min"]],
        "num_workers": 0,
        "use_tensorboard": False,
        "use_matplotlib": False,
        **changes,
    }


def command(corpus, output_dir: Path, settings: dict, *options: str) -> list[str]:
    """Arguments of llmst_train."""
    config = output_dir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(config), "--output_dir", str(output_dir), "--ngpu", "0", "--resume", "true"]
    for role in ("train", "valid"):
        for name, key in (("wav.scp", "speech,sound"), ("utt2task", "task,text"), ("text", "text,text")):
            arguments += [f"--{role}_data_path_and_name_and_type", f"{corpus.directory}/{role}/{name},{key}"]
        arguments += [f"--{role}_shape_file", f"{corpus.directory}/{role}/shape"]
    return [*arguments, *options]


def train(corpus, output_dir: Path, settings: dict, *options: str) -> Callable[[], int]:
    """A function that trains as the command does and returns its exit status."""
    from espnet_llmst.bin import llmst_train
    from espnet_llmst.cli import run

    arguments = command(corpus, output_dir, settings, *options)
    return lambda: run(llmst_train.main, arguments)


def start(function: Callable[[], int | None], log: Path) -> int:
    """Fork a process of its own group that calls the function, its output appended to ``log``; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 99
    try:
        import torch

        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        logging.root.handlers.clear()  # pytest's
        logging.disable(logging.NOTSET)
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        status = function() or 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def wait(process: int) -> int:
    """Exit status of a process; negative when a signal ended it, as it does with one that hangs."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGABRT)
        time.sleep(0.01)


def forked(function: Callable[[], int | None], log: Path) -> int:
    """Exit status of a function in a process of its own."""
    return wait(start(function, log))


def ranks_train(corpus, directory: Path, settings: dict, *options: str, wrap=lambda rank, training: training) -> list:
    """Two processes on the CPU, which train in ``directory/exp``; their exit statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(2):
        ours = ["--dist_backend", "gloo", "--dist_world_size", "2", "--dist_rank", str(rank)]
        ours += ["--dist_master_addr", "localhost", "--dist_master_port", port]
        training = train(corpus, directory / "exp", settings, *ours, *options)
        processes.append(start(wrap(rank, training), directory / f"log.{rank}"))
    return [wait(process) for process in processes]


def at_event(number: int, action: Callable[[], None], function: Callable[[], int], batches_only: bool = False):
    """The function with ``action`` at the given event (1-based; 0 for never) of a training; prints how many came.

    Events are: each batch, the middle of each file that torch writes, each fsync, and each rename, before and after.
    """

    def run() -> int:
        import torch

        from espnet_llmst.train import trainer

        passed = 0

        def event() -> None:
            nonlocal passed
            passed += 1
            if passed == number:
                action()

        trainer.add_gradients = with_event(trainer.add_gradients, event)
        if not batches_only:
            os.fsync = with_event(os.fsync, event)
            os.replace = with_event(os.replace, event, after=True)
            torch.save = save_in_halves(torch.save, event)
        status = function()
        print(f"events: {passed}")
        return status

    return run


def with_event(original, event: Callable[[], None], after: bool = False):
    """The function with an event before it, and one after it when asked for."""

    def call(*args, **kwargs):
        event()
        result = original(*args, **kwargs)
        if after:
            event()
        return result

    return call


def save_in_halves(save, event: Callable[[], None]):
    """``torch.save`` with an event when half of the file is on disk."""
    import io

    def call(content, file, **options):
        if options:  # no file: torch packs a tensor to send it
            return save(content, file, **options)
        buffer = io.BytesIO()
        save(content, buffer)
        data = buffer.getvalue()
        target = open(file, "wb") if isinstance(file, str | Path) else file
        target.write(data[: len(data) // 2])
        target.flush()
        event()
        target.write(data[len(data) // 2 :])
        target.flush()

    return call


def kill() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def logged(log: Path) -> dict[str, set[str]]:
    """What the log says of each stretch of batches and each epoch, times left out; equal lines fall together."""
    found: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        match = re.search(r"(\d+epoch:train:\d+-\d+batch|\d+epoch results): (.*)", line)
        if match:
            found.setdefault(match[1], set()).add(" ".join(VALUES.findall(match[2])))
    return found


def models_in(directory: Path) -> dict[str, dict]:
    """Tensors of every model file, and what the checkpoint holds beside statistics, by file name."""
    import torch

    found = {p.name: torch.load(p, weights_only=True) for p in directory.glob("*.pth") if "prev" not in p.name}
    for name in ("reporter", "curve", "statistics"):
        del found["checkpoint.pth"][name]
    return found


def assert_equal(first, second, name: str = "") -> None:
    """The same structure with the same bits."""
    import torch

    assert type(first) is type(second), name
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), name
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_equal(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), name
        for n, (one, two) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, two, f"{name}.{n}")
    else:
        assert first == second, name
