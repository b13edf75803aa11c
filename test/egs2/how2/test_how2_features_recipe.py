"""``run.sh --stage 1 --stop_stage 8`` on How2's features: stage 4 trains the recogniser and the translator (tiny)."""

import json
import os
import subprocess
from pathlib import Path

import yaml
from corpus_how2 import How2, copy_recipe

TINY_ENCODER = {"output_size": 16, "num_blocks": 1, "attention_heads": 2, "cgmlp_linear_units": 32, "linear_units": 32}
TINY_DECODER = {"num_blocks": 1, "attention_heads": 2, "linear_units": 32}
SMALL = {"batch_size": 4, "max_epoch": 1, "num_workers": 0}


def change(path: Path, of_training: dict, **own) -> None:
    """Settings of a YAML replaced, and those of its training; a mapping's other entries stay."""
    settings = yaml.safe_load(path.read_text())
    for place, changes in ((settings.get("train", settings), of_training), (settings, own)):
        for key, value in changes.items():
            place[key] = place[key] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(settings))


def test_stages_1_to_8_on_features(tmp_path):
    folder = copy_recipe(tmp_path)
    corpus = How2(tmp_path)
    corpus.features()
    corpus.write()
    conf = folder / "conf"
    sizes = {"encoder_conf": TINY_ENCODER, "decoder_conf": TINY_DECODER}
    change(conf / "foundation/ebranchformer_small.yaml", SMALL | sizes, vocab_size=40)
    size = {"width": 16, "layers": 1, "heads": 2, "ffn": 32}
    change(conf / "foundation/marian_small.yaml", SMALL, vocab_size=60, size=size, beam_size=1)
    ste = {"num_layers": 1, "width": 32, "heads": 4, "ffn": 32, "channels": 32}
    change(conf / "eced_ste_ebr_small_marian/1_align.yaml", SMALL | {"accum_grad": 1, "postencoder_conf": ste})
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI", "HOW2")}

    def run(*options):
        return subprocess.run(["./run.sh", *options], cwd=folder, capture_output=True, text=True, env=environment)

    options = ["--stage", "1", "--stop_stage", "8", "--ngpu", "0", "--nj", "2"]
    options += ["--local_data_opts", f"--corpus_dir {corpus.root} --feats_type kaldi"]
    done = run(*options, "--inference_args", "--beam_size 2 --max_new_tokens 8 --max_tokens_per_second 9")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (scores,) = (folder / "exp/eced_ste_ebr_small_marian/1_align").glob("decode_beam5*/dev5.en-pt/scores.json")
    scores = json.loads(scores.read_text())
    assert scores["n"] == 8 and abs(scores["speech_seconds"] - 8 * 0.795) < 0.01
    config = yaml.safe_load((folder / "exp/foundation/ebranchformer_small/config.yaml").read_text())
    assert config["input_size"] == 43 and config["frontend"] is None
    faster = run("--stage", "2", "--stop_stage", "2", "--speed_perturb_factors", "0.9 1.0")
    assert faster.returncode != 0 and "features have their speed already" in faster.stderr
    assert "Traceback" not in faster.stderr
