"""Trains a text translator (Marian or T5) on the recipe's transcripts and translations, by the task mt of `LLMSTTask`.

A new Marian; or (``model:`` of its YAML) what is ``trainable`` of another, whose text encoder it keeps: with the
direction en-en, the English decoder of Aligned's connector pre-training. It writes a ``save_pretrained`` directory.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from task_training import device_of, find_set, run_task, run_training
from tiny_translators import marian_tokenizer, new_marian
from training import result
from transformers import AutoModelForSeq2SeqLM, MarianTokenizer, PreTrainedModel

from espnet_llmst.cli import InputError, run
from espnet_llmst.datadir.kaldi import read_table, write_table
from espnet_llmst.foundation import require_model
from espnet_llmst.inference import Speech2Text, load_model
from espnet_llmst.prompt import load_template, load_tokenizer
from espnet_llmst.scoring.metrics import corpus_score
from espnet_llmst.tasks.llmst import LLMSTTask
from espnet_llmst.train.mixture import parse_direction
from espnet_llmst.train.shapes import write_shapes

BEST = "valid.loss.best.pth"


def read_pairs(set_dir: Path, src: str, tgt: str) -> dict[str, tuple[str, str]]:
    """Source and target text of each utterance; copies at other speeds, and pairs half empty, are left out."""
    sources, targets = (read_table(set_dir / f"text.tc.{lang}", allow_empty=True) for lang in (src, tgt))
    pairs = {utt: (text, targets[utt]) for utt, text in sources.items() if not utt.startswith("sp")}
    return {utt: pair for utt, pair in pairs.items() if pair[0].strip() and pair[1].strip()}


def make_model(conf: dict, pairs: list[tuple[str, str]], folder: Path) -> None:
    """Write the model that training starts from, and its tokenizer."""
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    torch.manual_seed(conf["train"]["seed"])
    if "model" in conf:
        tokenizer, model = start_from(conf)
    else:
        sources, targets = map(list, zip(*pairs, strict=True))
        tokenizer = marian_tokenizer(sources, targets, conf["vocab_size"], str(unfinished))
        config = new_marian(tokenizer, **conf["size"]).config
        config.dropout = conf["dropout"]
        model = AutoModelForSeq2SeqLM.from_config(config)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


def start_from(conf: dict):
    """Tokenizer and model of ``model:``; for en-en the tokenizer writes by the source's pieces."""
    require_model(conf["model"])
    tokenizer = load_tokenizer(conf["model"])
    src, _, tgt = conf["direction"].partition("-")
    if src == tgt and isinstance(tokenizer, MarianTokenizer):
        source, vocabulary = (str(Path(conf["model"], name)) for name in ("source.spm", "vocab.json"))
        tokenizer = MarianTokenizer(source, source, vocabulary, separate_vocabs=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(conf["model"])
    if conf.get("new_decoder"):
        renew_decoder(model)
    return tokenizer, model


def renew_decoder(model: PreTrainedModel) -> None:
    """Random weights in the decoder's layers; embeddings, shared with the encoder, stay."""
    new = AutoModelForSeq2SeqLM.from_config(model.config).get_decoder()
    for name, layers in model.get_decoder().named_children():
        if isinstance(layers, torch.nn.ModuleList):
            layers.load_state_dict(getattr(new, name).state_dict())


def write_data(pairs: dict[str, tuple[str, str]], src: str, tgt: str, template, tokenizer, folder: Path) -> list[str]:
    """Texts and sizes as the task reads them; returns its data and shape files.

    The task wants a name for speech, too, of which mt reads nothing.
    """
    write_table(folder / "text", {utt: target for utt, (_, target) in pairs.items()})
    write_table(folder / "transcript", {utt: source for utt, (source, _) in pairs.items()})
    write_table(folder / "utt2task", dict.fromkeys(pairs, f"mt {src} {tgt}"))
    for name in ("speech", "utt2num_samples"):
        write_table(folder / name, dict.fromkeys(pairs, "0"))
    write_shapes(folder, folder, template, tokenizer)
    data = [f"{folder}/speech,speech,csv_float", f"{folder}/utt2task,task,text"]
    data += [f"{folder}/{name},{name},text" for name in ("text", "transcript")]
    return [*data, f"{folder}/text_shape"]


def evaluate(conf: dict, name: str, experiment: Path, set_dir: Path, src: str, tgt: str) -> dict:
    """BLEU on a set's own transcripts: what perfect recognition would give."""
    pairs = read_pairs(set_dir, src, tgt)
    sources, references = map(list, zip(*pairs.values(), strict=True))
    options = {"beam_size": conf["beam_size"], "max_new_tokens": 150}
    translate = Speech2Text(experiment / "config.yaml", experiment / BEST, device_of(conf), **options)
    hyps = [nbest[0].text for nbest in translate(None, "mt", src, tgt, transcripts=sources)]
    score = corpus_score("BLEU", hyps, [references], tgt)
    return result(name, f"{set_dir.name} ({tgt}) from gold transcripts", len(hyps), "BLEU", score)


def train_one(conf: dict, args: argparse.Namespace, work: Path) -> list[dict]:
    """Train one model, write it to ``work/model`` and return its BLEU on the held-out sets."""
    src, _, tgt = conf["direction"].partition("-")
    if src != tgt:
        parse_direction(conf["direction"])
    sets = [find_set(args, which, src) for which in range(3)]
    pairs = [read_pairs(set_dir, src, tgt) for set_dir in sets[:2]]
    if not all(pairs):
        raise InputError(f"{sets[0]}, {sets[1]}: no pairs of {src} and {tgt} text; run stages 1 to 3")
    start = work / "start"
    if not start.exists():
        make_model(conf, list(pairs[0].values()), start)
    template, tokenizer = load_template(conf["prompt"]), load_tokenizer(str(start))
    data = {
        role: write_data(of_role, src, tgt, template, tokenizer, work / role)
        for role, of_role in zip(("train", "valid"), pairs, strict=True)
    }
    settings = {"encoder": None, "postencoder": None, "decoder": "seq2seq_lm", "prompt": conf["prompt"]}
    settings |= {"decoder_conf": {"model": str(start), "entry": "encoder"}}
    experiment = run_task(LLMSTTask, conf, settings, data, work)
    results = [evaluate(conf, args.out_dir.name, experiment, set_dir, src, tgt) for set_dir in sets[1:]]
    model, _ = load_model(experiment / "config.yaml", experiment / BEST)
    model.decoder.lm.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return results


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
