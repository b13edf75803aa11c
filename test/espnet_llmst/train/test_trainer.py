"""The trainer: ESPnet's numbers and files, clear ends, several processes, progress."""

import importlib.util
import os
import re
import signal
import termios
import time

import pytest
import torch
from training_runs import assert_equal, at_event, forked, kill, models_in, settings_of, start, train, wait

from espnet_llmst.cli import InputError
from espnet_llmst.tasks.llmst import LLMSTTask


@pytest.fixture
def exp(corpus, tmp_path):
    """Train in ``tmp_path/exp`` with changed settings, in a process that ``prepare`` may spoil; status and log."""

    def run(*options, prepare=None, **changes) -> tuple[int, str]:
        training = train(corpus, tmp_path / "exp", settings_of(corpus, **changes), *options)
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        status = forked(training if prepare is None else lambda: (prepare(), training())[1], log)
        return status, log.read_text()

    return run


def one_line(log: str) -> str:
    """The error message of the command, with no traceback about."""
    assert "Traceback" not in log, log[-3000:]
    return next(line for line in log.splitlines() if ": error: " in line)


def test_same_numbers_as_espnet(corpus, tmp_path):
    """Bit for bit, the batch left over from an accumulation and an averaged model included."""
    settings = settings_of(corpus, scheduler="warmuplr", scheduler_conf={"warmup_steps": 3}, max_epoch=3)

    def with_espnets() -> int:
        from espnet2.train.trainer import Trainer

        LLMSTTask.trainer = Trainer
        espnets = {key: value for key, value in settings.items() if key != "save_interval_iters"}
        return train(corpus, tmp_path / "espnet", espnets)()

    assert forked(with_espnets, tmp_path / "espnet.log") == 0
    assert forked(train(corpus, tmp_path / "ours", settings), tmp_path / "log") == 0
    names = sorted(path.name for path in (tmp_path / "espnet").glob("*.pth"))
    assert {"3epoch.pth", "latest.pth", "valid.loss.best.pth", "valid.loss.ave_2best.pth"} < set(names)
    assert names == sorted(path.name for path in (tmp_path / "ours").glob("*.pth") if "prev" not in path.name)
    for name in set(names) - {"checkpoint.pth"}:
        pair = [tmp_path / kind / name for kind in ("ours", "espnet")]
        assert os.path.realpath(pair[0]).rpartition("/")[2] == os.path.realpath(pair[1]).rpartition("/")[2]
        assert_equal(*[dict(torch.load(path, weights_only=True)) for path in pair], name)
    # ESPnet's log divides the training loss by accum_grad, so only what is not the training's loss is compared.
    values = re.compile(r"\d+epoch results: |\d+epoch:train:\d+-\d+batch: |grad_norm=[0-9.]+|\[valid\] .*acc=[^,]*")
    lines = [values.findall((tmp_path / name).read_text()) for name in ("log", "espnet.log")]
    assert len(lines[0]) > 20 and lines[0] == lines[1]


def test_files_progress_and_plots(exp, tmp_path):
    status, log = exp(use_matplotlib=True, use_tensorboard=True)
    assert status == 0
    assert len(re.findall(r"\depoch:train:\d-\dbatch: .*loss=.*tokens_per_second=\d.*time left: ", log)) == 4
    assert "batch/s" not in log and "\r" not in log  # no bar in a file
    images = {path.name: path.stat().st_size for path in (tmp_path / "exp/images").iterdir()}
    wanted = ["loss.png", "optim0_lr0.png", "tokens_per_second.png", "loss_by_batch.png", "lr_by_batch.png"]
    assert all(images[name] > 3000 for name in wanted)
    for part in ("train", "valid"):
        assert list((tmp_path / "exp/tensorboard" / part).glob("events.*"))
    checkpoint = torch.load(tmp_path / "exp/checkpoint.pth", weights_only=True)
    model = torch.load(tmp_path / "exp/2epoch.pth", weights_only=True)
    assert checkpoint["model"].keys() == model.keys()
    assert all("lora" in name or name.startswith("postencoder.") for name in model)


def test_bar_on_a_terminal(corpus, tmp_path):
    """Loss, speed and time left; the log's lines do not tear it."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (24, 150))
    training = train(corpus, tmp_path / "exp", settings_of(corpus, max_epoch=1))

    def on_terminal() -> int:
        os.dup2(theirs, 2)
        return training()

    process = start(on_terminal, tmp_path / "log")
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert wait(process) == 0
    assert re.search(r"epoch 1/1: +100%.* 5/5 \[\d\d:\d\d<\d\d:\d\d, .*loss=\d\.\d+, \d+ tokens/s", shown.decode())


def test_model_files_in_bfloat16(exp, tmp_path):
    """They are the checkpoint's float32 weights, rounded; a later phase and a resumed training load them."""
    assert exp(max_epoch=1, save_dtype="bfloat16")[0] == 0
    model = torch.load(tmp_path / "exp/1epoch.pth", weights_only=True)
    exact = torch.load(tmp_path / "exp/checkpoint.pth", weights_only=True)["model"]
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    assert all(torch.equal(tensor, exact[name].bfloat16()) for name, tensor in model.items())
    path = (tmp_path / "exp").rename(tmp_path / "first") / "1epoch.pth"
    assert exp("--init_param", str(path), max_epoch=1)[0] == 0
    status, log = exp(save_dtype="float8")
    assert status == 1 and "save_dtype: 'float8' must be bfloat16 or null" in one_line(log)


def test_average_of_the_best(exp, tmp_path):
    assert exp(max_epoch=3, keep_nbest_models=[2])[0] == 0
    directory = tmp_path / "exp"
    average = torch.load(directory / "valid.loss.ave.pth", weights_only=True)
    models = [torch.load(path, weights_only=True) for path in sorted(directory.glob("*epoch.pth"))]
    assert len(models) == 2
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, (models[0][name] + models[1][name]) / 2)
    status, log = exp(max_epoch=3, keep_nbest_models=[3])
    assert status == 1
    assert re.search(r"exp: \depoch.pth is one of the 3 best, but it was removed", one_line(log))


def loss_is_nan() -> None:
    from espnet_llmst import espnet_model

    original = espnet_model.cross_entropy
    espnet_model.cross_entropy = lambda *args: original(*args) * float("nan")


def test_epoch_without_a_finite_gradient(exp, tmp_path):
    """Ends with a status and one line; started again it ends the same way, even after its last checkpoint."""
    for _ in range(2):
        status, log = exp(prepare=loss_is_nan)
        assert status == 1
        assert "no update of epoch 1 had a finite gradient" in one_line(log)
    assert not (tmp_path / "exp/1epoch.pth").exists()


def test_some_updates_may_be_left_out(exp):
    """As in ESPnet: a warning each."""

    def first_loss_is_nan() -> None:
        from espnet_llmst import espnet_model

        original, calls = espnet_model.cross_entropy, []
        espnet_model.cross_entropy = lambda *args: original(*args) * (calls.append(1) or len(calls) > 1 or float("nan"))

    status, log = exp(prepare=first_loss_is_nan, max_epoch=1)
    assert status == 0 and log.count("The grad norm is nan. Skipping updating the model.") == 1


@pytest.mark.parametrize("batch", [3, 8])
def test_out_of_memory(batch, exp, corpus):
    """In training, and in the third batch of the validation: one line that names the batch and a smaller budget."""

    def memory_ends() -> None:
        from espnet_llmst import espnet_model

        original, calls = espnet_model.cross_entropy, []

        def limited(*args):
            calls.append(1)
            if len(calls) == batch:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return original(*args)

        espnet_model.cross_entropy = limited

    status, log = exp(prepare=memory_ends, batch_size=2)
    assert status == 1
    line = one_line(log)
    named = re.search(
        r"exp: GPU out of memory with a batch of 2 utterances, the longest (\w+), padded to (0.\d) s", line
    )
    role, number = re.fullmatch(r"(train|valid)(\d)", named[1]).groups()
    assert role == ("train" if batch == 3 else "valid")
    assert named[2] == f"{(4000 + 500 * int(number)) / 16000:.1f}"
    assert "try batch_size 1 instead of 2, or see llmst_plan; the same command goes on from the last checkpoint" in line
    status, log = exp(batch_size=2)
    assert status == 0 and f"epoch 1 after {2 if batch == 3 else 5} batches" in log


def test_accumulation_longer_than_the_epoch(exp):
    status, log = exp(accum_grad=6)
    assert status == 1 and "accum_grad 6 is more than the 5 batches of an epoch" in one_line(log)


@pytest.mark.parametrize("file", [4, 5])
def test_full_disk(file, exp, corpus, tmp_path):
    """In the 4th file (the model of epoch 1) or the 5th (its checkpoint); goes on when there is room again."""

    def fill_disk() -> None:
        save, calls = torch.save, []

        def limited(content, target):
            calls.append(1)
            if len(calls) == file:
                target.write(bytes(1000))
                raise OSError(28, "No space left on device")
            save(content, target)

        torch.save = limited

    status, log = exp(prepare=fill_disk)
    assert status == 1
    name = "1epoch.pth" if file == 4 else "checkpoint.pth"
    assert re.search(rf"{name}: cannot be written \(No space left.*checkpoint.pth is still usable", one_line(log))
    assert not list((tmp_path / "exp").glob("*.tmp"))
    status, log = exp()
    assert status == 0 and "epoch 1 after 5 batches" in log
    assert forked(train(corpus, tmp_path / "whole", settings_of(corpus)), tmp_path / "whole.log") == 0
    assert_equal(models_in(tmp_path / "exp"), models_in(tmp_path / "whole"))


def rename_weight(state: dict) -> None:
    state["model"]["postencoder.other"] = state["model"].pop("postencoder.layers.0.weight")


def shorten_weight(state: dict) -> None:
    state["model"]["postencoder.layers.0.weight"] = torch.zeros(3)


SPOILT = {
    "Missing.*postencoder.layers.0.weight.*Unexpected.*postencoder.other": rename_weight,
    "size mismatch for postencoder.layers.0.weight": shorten_weight,
    "keys: missing: optimizers; unknown: none": lambda state: state.pop("optimizers"),
    "schedulers: the checkpoint has others": lambda state: state.update(schedulers=[None]),
    "epoch 2 was begun with 7 batches and has now 5": lambda state: state.update(batches=7),
    "accum_grad was 3": lambda state: state.update(accum_grad=3),
}


def test_a_checkpoint_that_does_not_fit(exp, corpus, tmp_path):
    """The message names what is wrong."""
    training = train(corpus, tmp_path / "exp", settings_of(corpus))
    assert forked(at_event(8, kill, training, batches_only=True), tmp_path / "log") == -signal.SIGKILL
    path = tmp_path / "exp/checkpoint.pth"
    good = path.read_bytes()
    for message, spoil in SPOILT.items():
        path.write_bytes(good)
        state = torch.load(path, weights_only=True)
        spoil(state)
        torch.save(state, path)
        status, log = exp()
        assert status == 1 and re.search(rf"exp.*{message}", one_line(log)), message


def test_a_training_is_not_overwritten(exp, tmp_path):
    assert exp(max_epoch=1)[0] == 0
    before = (tmp_path / "exp/checkpoint.pth").read_bytes()
    status, log = exp("--resume", "false")
    assert status == 1 and "checkpoint.pth is of an earlier training" in one_line(log)
    assert (tmp_path / "exp/checkpoint.pth").read_bytes() == before


def test_patience_holds_after_a_restart(exp, tmp_path):
    """A training that stopped early does not go on for another epoch."""
    settings = {"max_epoch": 9, "patience": 0, "optim_conf": {"lr": 0.0}, "early_stopping_criterion": None}
    settings["early_stopping_criterion"] = ["valid", "loss", "min"]
    for _ in range(2):
        status, log = exp(**settings)
        assert status == 0 and "[Early stopping]" in log
    assert not (tmp_path / "exp/3epoch.pth").exists()


@pytest.mark.parametrize("option", ["use_adapter", "sharded_ddp", "no_forward_run", "create_graph_in_tensorboard"])
def test_what_is_not_supported_is_refused(option):
    args = LLMSTTask.get_parser().parse_args([f"--{option}", "true"])
    with pytest.raises(InputError, match=f"{option}: not supported"):
        LLMSTTask.trainer.build_options(args)


def test_options_without_their_package(monkeypatch, exp):
    def without_wandb() -> None:
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "wandb" else find(name, *a)

    status, log = exp(use_wandb=True, prepare=without_wandb)
    assert status == 1 and "use_wandb: the package wandb is not installed" in one_line(log)


def test_wandb_offline(exp, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, log = exp(use_wandb=True)
    assert status == 0, log[-3000:]
    assert list((tmp_path / "exp/wandb").glob("offline-run-*/run-*.wandb"))


def test_sigterm_to_the_command_reaches_its_processes(corpus, tmp_path):
    """The command of several GPUs only waits for a process each; here it starts one, on the CPU."""

    def start_worker(cmd) -> None:
        context = torch.multiprocessing.get_context("fork")
        args = LLMSTTask.get_parser().parse_args(cmd)
        args.distributed = False
        worker = context.Process(target=LLMSTTask.main_worker, args=(args,))
        worker.start()
        while not torch.multiprocessing.ProcessContext([worker], [str(tmp_path / "none")]).join():
            pass

    def term_the_command() -> None:
        """And wait until the signal has come back."""
        came, note = [], signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *args: (note(*args), came.append(True)))
        os.kill(os.getppid(), signal.SIGTERM)
        while not came:
            time.sleep(0.01)

    def run_with(settings) -> tuple[int, str]:
        def command() -> int:
            LLMSTTask.main = start_worker
            return at_event(7, term_the_command, train(corpus, tmp_path / "exp", settings), batches_only=True)()

        return forked(command, tmp_path / "log"), (tmp_path / "log").read_text()

    status, log = run_with(settings_of(corpus))
    assert status == 143 and "SIGTERM: saved in" in log and "Traceback" not in log, log[-3000:]
    status, log = run_with(settings_of(corpus, max_epoch=3, accum_grad=3))
    assert status == 1 and "accum_grad was 2" in one_line(log)
