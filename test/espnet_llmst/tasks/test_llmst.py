"""The task's life cycle with ESPnet's own main: imports, training, checkpoints, resume, reload."""

import subprocess
import sys

import pytest
import torch
import yaml

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.inference import load_model
from espnet_llmst.prompt import load_template
from espnet_llmst.tasks.llmst import LLMSTTask
from espnet_llmst.train.mixture import Part, make_mix
from espnet_llmst.train.shapes import write_shapes
from espnet_llmst.train.token_batches import fill_batches, read_sizes


def test_import_is_quick_and_touches_no_network():
    """Run apart: no nltk, no socket, and at most 30 % more time than ESPnet's own task takes (on any machine)."""
    code = (
        "import socket, time, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import espnet2.tasks.abs_task\n"
        "espnet = time.process_time()\n"
        "import espnet_llmst.tasks.llmst\n"
        "assert 'nltk' not in sys.modules and 'peft' not in sys.modules\n"
        "print(time.process_time() / espnet)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1.3
    assert "download" not in (done.stdout + done.stderr).lower()


@pytest.fixture
def train(dump_dir, task_config, tmp_path, llama_dir):
    """Run the task's main on the small corpus."""
    from transformers import AutoTokenizer

    template, tokenizer = load_template(task_config["prompt"]), AutoTokenizer.from_pretrained(llama_dir)
    for role, split in (("train", "train"), ("valid", "dev")):
        make_mix(dump_dir, split, [Part("st", "fr", "en"), Part("asr", "fr", "fr")], template, tmp_path / "mix" / role)
        write_shapes(
            tmp_path / "mix" / role, tmp_path / "stats" / role, template, tokenizer, lambda n: (n // 320, n // 320)
        )

    def run(output_dir, max_epoch, **changes):
        settings = {
            "optim": "adamw",
            "optim_conf": {"lr": 1.0e-3},
            "scheduler": "warmup_linear",
            "scheduler_conf": {"total_steps": 20},
            "batch_type": "numel",
            "batch_bins": 300,
            "best_model_criterion": [["valid", "loss", "min"]],
            "num_workers": 0,
            "use_tensorboard": False,
            "use_matplotlib": False,
        }
        config = tmp_path / "phase.yaml"
        config.write_text(yaml.safe_dump({**task_config, **settings, **changes}))
        command = ["--config", str(config), "--output_dir", str(output_dir), "--max_epoch", str(max_epoch)]
        command += ["--resume", "true", "--ngpu", "0"]
        for role in ("train", "valid"):
            for name, key in (("wav.scp", "speech,sound"), ("utt2task", "task,text"), ("text", "text,text")):
                command += [f"--{role}_data_path_and_name_and_type", f"{tmp_path}/mix/{role}/{name},{key}"]
            tokens = changes.get("batch_type") == "tokens"
            for name in ["position_shape"] if tokens else ["speech_shape", "text_shape"]:
                command += [f"--{role}_shape_file", f"{tmp_path}/stats/{role}/{name}"]
        LLMSTTask.main(cmd=command)

    return run


def test_training_resumes_and_reloads(train, tmp_path):
    train(tmp_path / "whole", 4)
    train(tmp_path / "halves", 2)
    train(tmp_path / "halves", 4)
    states = [torch.load(tmp_path / name / "4epoch.pth", weights_only=True) for name in ("whole", "halves")]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    model, args = load_model(tmp_path / "whole/config.yaml", tmp_path / "whole/4epoch.pth")
    assert states[0].keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    size = sum(tensor.numel() for tensor in states[0].values())
    assert size < 0.5 * sum(p.numel() for p in model.parameters())
    assert all(torch.equal(dict(model.named_parameters())[n], t) for n, t in states[0].items())
    assert args.trainable == ["postencoder", "encoder.lora", "decoder.lora"]


def test_a_schedule_without_length_learns_it_from_the_data(train, tmp_path):
    train(tmp_path / "exp", 3, scheduler_conf={"warmup_ratio": 0.1})
    args = yaml.safe_load((tmp_path / "exp/config.yaml").read_text())
    examples = len(read_table(tmp_path / "stats/train/text_shape"))
    assert 3 <= args["scheduler_conf"]["total_steps"] <= 3 * examples
    assert args["scheduler_conf"]["total_steps"] % 3 == 0


def test_batches_by_tokens(train, tmp_path):
    """The schedule counts the batches that are trained on; two halves equal the whole."""
    changes = {"batch_type": "tokens", "batch_bins": 300, "batch_frames": 130, "scheduler_conf": {"warmup_ratio": 0.1}}
    train(tmp_path / "whole", 2, **changes)
    sizes = read_sizes(tmp_path / "stats/train/position_shape")
    batches = fill_batches(sizes, 300, 130)
    assert 2 < len(batches) < len(sizes)
    args = yaml.safe_load((tmp_path / "whole/config.yaml").read_text())
    assert args["scheduler_conf"]["total_steps"] == 2 * len(batches)
    assert torch.load(tmp_path / "whole/checkpoint.pth", weights_only=True)["batches"] == len(batches)
    changes["scheduler_conf"] = {"warmup_ratio": 0.1, "total_steps": 2 * len(batches)}
    train(tmp_path / "halves", 1, **changes)
    train(tmp_path / "halves", 2, **changes)
    states = [torch.load(tmp_path / name / "2epoch.pth", weights_only=True) for name in ("whole", "halves")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    with pytest.raises(InputError, match="shuffle_within_batch: mixes lengths"):
        train(tmp_path / "no", 1, **changes, shuffle_within_batch=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init_param": ["asr.pth:encoder:encoder"]}, "parts cannot be renamed"),
        ({"exclude_weight_decay": True}, "exclude_weight_decay: not supported"),
        ({"trainable": ["decoder"]}, "trainable: postencoder.layers.0.bias and 5 more are random, neither trained nor"),
        ({"trainable": ["postencoder.layers.0", "postencoder.layers.4"]}, "postencoder.layers.2.bias and 1 more are"),
        ({"trainable": [], "best_model_criterion": []}, "trainable: postencoder.layers.0.bias and 5 more are random"),
        ({"optim": "muon"}, "optim: 'muon' is none of adam, "),
        ({"scheduler": "cosine"}, "scheduler: 'cosine' is none of "),
        ({"keep_nbest_models": 0}, "keep_nbest_models: 0 would leave no model"),
        ({"model_conf": {"autocast": "bf16"}}, "model_conf.autocast: 'bf16' must be float32, bfloat16 or auto"),
        ({"valid_batch_type": "tokens"}, "tokens must stand in both or in neither"),
    ],
)
def test_settings_that_would_do_something_else_are_refused(train, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path, 1, **change)


def test_a_schedule_that_ends_before_the_phase_is_named(train, tmp_path, caplog):
    train(tmp_path / "exp", 3, scheduler_conf={"total_steps": 2})
    assert "scheduler_conf.total_steps: 2: the rate is 0 from there on to update" in caplog.text


def test_a_phase_without_training_keeps_what_it_starts_from(train, tmp_path):
    train(tmp_path / "one", 1)
    train(tmp_path / "two", 1, trainable=[], init_param=[str(tmp_path / "one/1epoch.pth")])
    first = torch.load(tmp_path / "one/1epoch.pth", weights_only=True)
    second = torch.load(tmp_path / "two/valid.loss.best.pth", weights_only=True)
    assert first.keys() == second.keys() and all(torch.equal(second[name], first[name]) for name in first)
    without = {name: tensor for name, tensor in first.items() if not name.startswith("postencoder.layers.2")}
    torch.save(without, tmp_path / "less.pth")
    for trainable in ([], ["decoder.lora"]):
        with pytest.raises(InputError, match="postencoder.layers.2.bias and 1 more are random"):
            train(tmp_path / "three", 1, trainable=trainable, init_param=[str(tmp_path / "less.pth")])


def test_a_later_phase_starts_from_an_earlier_one(train, tmp_path):
    train(tmp_path / "one", 1, trainable=["postencoder"])
    checkpoint = str(tmp_path / "one/1epoch.pth")
    train(tmp_path / "two", 1, trainable=["decoder.lora"], init_param=[checkpoint])
    first = torch.load(checkpoint, weights_only=True)
    second = torch.load(tmp_path / "two/1epoch.pth", weights_only=True)
    assert first.keys() < second.keys() and all(torch.equal(second[name], first[name]) for name in first)
    model, _ = load_model(tmp_path / "two/config.yaml", tmp_path / "two/1epoch.pth")
    assert torch.equal(model.state_dict()["postencoder.layers.0.weight"], first["postencoder.layers.0.weight"])
    for name, message in (("decoder.nothing", "Unexpected key"), ("postencoder.layers.0.weight", "size mismatch")):
        torch.save({**first, name: torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(RuntimeError, match=rf"{message}.*{name}"):
            train(tmp_path / "three", 1, trainable=["decoder.lora"], init_param=[str(tmp_path / "other.pth")])
