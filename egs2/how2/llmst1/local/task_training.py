"""What the trainings by an ESPnet task share: options, a working folder that outlives a kill, a finished model.

The task trains in ``<out_dir>.work`` and goes on there after a kill; the finished model appears as ``out_dir``.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from espnet_llmst.cli import InputError, get_parser, read_yaml
from espnet_llmst.datadir.kaldi import atomic_write


def run_training(
    description: str,
    train_one: Callable[[dict, argparse.Namespace, Path], list[dict]],
    argv: Sequence[str] | None,
) -> None:
    """Read the model's YAML, train it by ``train_one`` and put the finished directory in place.

    ``train_one(conf, args, work)`` trains in ``work``, leaves the model in ``work/model`` and returns results.
    """
    parser = get_parser("local/train_<kind>.py", description)
    parser.add_argument("--model_config", type=Path, required=True, help="conf/foundation/<name>.yaml")
    parser.add_argument("--dump_dir", type=Path, default=Path("dump/raw"))
    parser.add_argument("--splits", nargs=3, default=["train", "val", "dev5"], help="Training, validation, test")
    parser.add_argument("--out_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    conf, work = read_yaml(args.model_config), args.out_dir.with_name(f"{args.out_dir.name}.work")
    begin(work, conf, args.model_config)
    shutil.rmtree(work / "model", ignore_errors=True)
    (work / "model").mkdir()
    results = train_one(conf, args, work)
    (work / "model/eval.json").write_text(json.dumps(results, indent=1))
    shutil.rmtree(args.out_dir, ignore_errors=True)
    os.replace(work / "model", args.out_dir)
    shutil.rmtree(work)


def begin(work: Path, conf: dict, config_file: Path) -> None:
    """Make the working folder, or refuse one that was begun with other settings."""
    settings = work / "settings.json"
    text = json.dumps(conf, indent=1, sort_keys=True)
    if settings.exists() and settings.read_text() != text:
        raise InputError(f"{work}: was begun with other settings than {config_file}; delete it to begin anew")
    with atomic_write(settings) as file:
        file.write(text)


def find_set(args: argparse.Namespace, which: int, language: str) -> Path:
    """The formatted set of a split (0 training, 1 validation, 2 test) with speech of a language.

    Raises:
        InputError: there is none.
    """
    split = args.splits[which]
    found = sorted(args.dump_dir.glob(f"{split}.{language}-*"))
    if not found:
        raise InputError(f"{args.dump_dir}/{split}.{language}-*: no such set; run stages 1 to 3")
    return found[0]


def device_of(conf: dict) -> str:
    """Where to train and test: a GPU when the YAML asks for one and there is one."""
    return "cuda" if conf.get("ngpu", 1) and torch.cuda.is_available() else "cpu"


def run_task(task, conf: dict, settings: dict, data: dict[str, list[str]], work: Path) -> Path:
    """Train by an ESPnet task, or go on where an earlier run was ended.

    Args:
        task: the AbsTask.
        conf: the model's YAML; its ``train:`` has ESPnet's options.
        settings: options that the script adds.
        data: for train and valid, ``<path>,<name>,<type>`` of the data and, behind them, of the shapes ``<path>``.
        work: the working folder.
    Returns:
        the experiment's directory.
    """
    config, experiment = work / "train.yaml", work / "exp"
    with atomic_write(config) as file:
        yaml.safe_dump(conf["train"] | settings, file, allow_unicode=True, sort_keys=False)
    ngpu = min(conf.get("ngpu", 1), torch.cuda.device_count())
    command = ["--config", str(config), "--output_dir", str(experiment), "--resume", "true", "--ngpu", str(ngpu)]
    command += ["--multiprocessing_distributed", "true"]
    for role, names in data.items():
        for name in names:
            option = "data_path_and_name_and_type" if "," in Path(name).name else "shape_file"
            command += [f"--{role}_{option}", name]
    task.main(cmd=command)
    return experiment
