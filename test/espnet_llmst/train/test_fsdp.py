"""FSDP2 on two processes: the numbers of one, kills that lose nothing, models that anyone can load."""

import re
import signal

import numpy as np
import pytest
import torch
from test_ranks import MIXTURE, assert_close
from training_runs import assert_equal, at_event, forked, kill, models_in, ranks_train, settings_of, train

from espnet_llmst.cli import InputError
from espnet_llmst.inference import Speech2Text
from espnet_llmst.tasks.llmst import LLMSTTask


def full(corpus, **changes) -> dict:
    """Settings of full fine-tuning: the whole language model."""
    decoder = {"model": corpus.models["decoder_conf"]["model"]}
    encoder = {"model": corpus.models["encoder_conf"]["model"]}
    settings = {"trainable": ["postencoder", "decoder"], "encoder_conf": encoder, "decoder_conf": decoder, **MIXTURE}
    return settings_of(corpus, **{**settings, **changes})


@pytest.fixture(scope="module")
def split(mixed_corpus, tmp_path_factory):
    """A phase trained by two processes that each hold a half, without an interruption."""
    directory = tmp_path_factory.mktemp("split")
    settings = full(mixed_corpus, grad_clip=0.5, fsdp=True, save_interval_iters=1)
    settings["model_conf"] = {"gradient_checkpointing": True}
    wrap = lambda rank, training: at_event(0, kill, training)  # noqa: E731
    status = ranks_train(mixed_corpus, directory, settings, wrap=wrap)
    assert status == [0, 0], (directory / "log.0").read_text()[-3000:]
    return directory, settings


def test_two_processes_are_one(mixed_corpus, split, tmp_path):
    """Gradients are clipped by their norm over all parts, and layers computed twice."""
    one = train(mixed_corpus, tmp_path / "one", full(mixed_corpus, grad_clip=0.5))
    assert forked(one, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert re.search(r"clip=(?!0\.)", (tmp_path / "log").read_text())
    assert_close(split[0] / "exp", tmp_path / "one")


def test_killed_and_damaged(mixed_corpus, split, tmp_path):
    """One process is killed while it writes its part; later a part of the newest checkpoint is damaged."""
    directory, settings = split
    events = int(re.search(r"^events: (\d+)", (directory / "log.1").read_text(), re.M)[1])
    killing = lambda rank, training: at_event(rank * (events // 2), kill, training)  # noqa: E731
    status = ranks_train(mixed_corpus, tmp_path, settings, wrap=killing)
    assert status[1] == -signal.SIGKILL and status[0] != 0
    assert ranks_train(mixed_corpus, tmp_path, settings) == [0, 0], (tmp_path / "log.0").read_text()[-3000:]
    assert "The training was resumed" in (tmp_path / "log.0").read_text()
    assert_equal(models_in(tmp_path / "exp"), models_in(directory / "exp"))
    parts = sorted(path.name for path in (tmp_path / "exp").glob("checkpoint.*of2.pth"))
    assert parts == [f"checkpoint.{place}.{rank}of2.pth" for place in ("2-3", "3-0") for rank in (0, 1)]
    part = tmp_path / "exp" / parts[-1]
    part.write_bytes(part.read_bytes()[:-3000])
    assert ranks_train(mixed_corpus, tmp_path, settings) == [0, 0], (tmp_path / "log.0").read_text()[-3000:]
    assert "epoch 2 after 3 batches" in (tmp_path / "log.0").read_text()
    assert_equal(models_in(tmp_path / "exp"), models_in(directory / "exp"))


def test_one_process_takes_over_the_model_only(mixed_corpus, split, tmp_path):
    """A training goes on with as many processes as before; the next phase and the decoding want one."""
    directory, settings = split
    assert forked(train(mixed_corpus, directory / "exp", settings), tmp_path / "log") == 1
    assert "fsdp split it into 2 parts, this training has none: start it as it was" in (tmp_path / "log").read_text()
    best = directory / "exp/valid.loss.best.pth"
    init = ["--init_param", str(best)]
    nothing = {"max_epoch": 1, "optim_conf": {"lr": 0.0}, "fsdp": True}
    following = train(mixed_corpus, tmp_path / "two", full(mixed_corpus, **nothing), *init)
    assert forked(following, tmp_path / "log") == 0, (tmp_path / "log").read_text()[-3000:]
    pair = [dict(torch.load(path, weights_only=True)) for path in (tmp_path / "two/1epoch.pth", best)]
    assert_equal(*pair)
    assert all(name.startswith(("postencoder.", "decoder.")) for name in pair[0])
    speech2text = Speech2Text(directory / "exp/config.yaml", best, beam_size=2)
    assert len(speech2text(np.zeros(8000, np.float32), "st", "fr", "en")[0]) >= 1


def test_bfloat16(mixed_corpus, tmp_path):
    """Parameters are sent and used in bfloat16, kept and stepped in float32; an encoder with adapters is split too."""
    changes = {"fsdp": True, "max_epoch": 1, "model_conf": {"autocast": "bfloat16"}}
    changes["trainable"] = ["postencoder", "encoder.lora", "decoder"]
    settings = full(mixed_corpus, encoder_conf=mixed_corpus.models["encoder_conf"], **changes)
    assert ranks_train(mixed_corpus, tmp_path, settings) == [0, 0], (tmp_path / "log.0").read_text()[-3000:]
    model = torch.load(tmp_path / "exp/1epoch.pth", weights_only=True)
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}
    one = train(mixed_corpus, tmp_path / "one", {**settings, "fsdp": False})
    assert forked(one, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    losses = [
        torch.tensor(torch.load(path / "checkpoint.pth", weights_only=True)["curve"])[:, 1]
        for path in (tmp_path / "exp", tmp_path / "one")
    ]
    torch.testing.assert_close(*losses, rtol=0, atol=0.02)


@pytest.mark.parametrize("option", ["use_amp", "grad_noise"])
def test_what_does_not_go_with_fsdp_is_refused(option):
    args = LLMSTTask.get_parser().parse_args([f"--{option}", "true", "--fsdp", "true"])
    with pytest.raises(InputError, match=f"{option}: not with fsdp"):
        LLMSTTask.trainer.build_options(args)
