"""Trains a recogniser on the recipe's speech, waveforms or features: E-Branchformer, attention decoder and CTC.

What it writes is an experiment of ESPnet's: config.yaml, valid.acc.ave.pth, bpe.model.
"""

import argparse
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import kaldiio
import numpy as np
import soundfile
import torch
import yaml
from asr_task import ASRTask, Preprocessor
from task_training import device_of, find_set, run_task, run_training
from tiny_models import unigram_tokens
from training import result

from espnet_llmst.cli import read_yaml, run
from espnet_llmst.datadir.kaldi import atomic_write, read_table, write_table
from espnet_llmst.scoring.metrics import corpus_score

FRAME = 160  # samples


def spoken(text: str) -> str:
    """A transcript in lower case without punctuation, as published."""
    return " ".join(re.sub(r"[^\w']+", " ", text.lower().replace("’", "'")).split())


def speech_of(set_dir: Path) -> tuple[Path, str]:
    """The table of a set's speech and ESPnet's type of it."""
    if (set_dir / "feats.scp").exists():
        return set_dir / "feats.scp", "kaldi_ark"
    return set_dir / "wav.scp", "sound"


def read_speech(set_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Utterances with their samples (S,) or features (F, M)."""
    table, kind = speech_of(set_dir)
    for utt, place in read_table(table).items():
        yield utt, kaldiio.load_mat(place) if kind == "kaldi_ark" else soundfile.read(place, dtype="float32")[0]


def texts_of(set_dir: Path, language: str) -> dict[str, str]:
    """The transcripts to train on; what has no word in it is left out."""
    texts = {utt: spoken(text) for utt, text in read_table(set_dir / f"text.tc.{language}", allow_empty=True).items()}
    return {utt: text for utt, text in texts.items() if text}


def write_data(set_dir: Path, texts: dict[str, str], pieces, folder: Path) -> list[str]:
    """Transcripts and sizes as the task reads them; returns its data and shape files."""
    samples = read_table(set_dir / "utt2num_samples")
    write_table(folder / "text", texts)
    write_table(folder / "speech_shape", {utt: str(int(samples[utt]) // FRAME) for utt in texts})
    write_table(folder / "text_shape", {utt: str(len(pieces.encode(text))) for utt, text in texts.items()})
    table, kind = speech_of(set_dir)
    data = [f"{table},speech,{kind}", f"{folder}/text,text,text"]
    return [*data, f"{folder}/speech_shape", f"{folder}/text_shape"]


@torch.inference_mode()
def recognise(experiment: Path, weights: Path, device: str, set_dir: Path) -> dict[str, str]:
    """Transcripts by the CTC output's best path, one utterance at a time."""
    args = Namespace(**read_yaml(experiment / "config.yaml"))
    model = ASRTask.build_model(args)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.to(device).eval()
    pieces = Preprocessor(args.bpemodel).pieces
    hyps = {}
    for utt, speech in read_speech(set_dir):
        batch = torch.from_numpy(np.array(speech, dtype=np.float32))[None].to(device)
        states, _ = model.encode(batch, torch.tensor([batch.size(1)], device=device))
        best_L = model.ctc.argmax(states)[0].unique_consecutive()
        # Neither the blank nor <sos/eos> is a piece.
        hyps[utt] = pieces.decode([token - 1 for token in best_L.tolist() if 0 < token <= len(pieces)])
    return hyps


def train_one(conf: dict, args: argparse.Namespace, work: Path) -> list[dict]:
    """Train one model, write it to ``work/model`` and return its WER on the held-out sets."""
    language = conf["language"]
    sets = [find_set(args, which, language) for which in range(3)]
    texts = [texts_of(set_dir, language) for set_dir in sets[:2]]
    tokens_file, bpe = work / "tokens.yaml", work / "bpe.model"
    if not tokens_file.exists():
        tokens = unigram_tokens(texts[0].values(), conf["vocab_size"], str(work))
        with atomic_write(tokens_file) as file:
            yaml.safe_dump(tokens, file, allow_unicode=True)
    settings = {"token_list": yaml.safe_load(tokens_file.read_text(encoding="utf-8")), "bpemodel": str(bpe)}
    if speech_of(sets[0])[1] == "kaldi_ark":  # they are normalised already, by speaker
        settings |= {"input_size": next(read_speech(sets[0]))[1].shape[1], "normalize": None}
    pieces = Preprocessor(str(bpe)).pieces
    roles = zip(("train", "valid"), sets, texts, strict=False)
    data = {role: write_data(set_dir, text, pieces, work / role) for role, set_dir, text in roles}
    experiment = run_task(ASRTask, conf, settings, data, work)
    weights = experiment / "valid.acc.ave.pth"
    results = []
    for set_dir in sets[1:]:
        hyps = recognise(experiment, weights, device_of(conf), set_dir)
        refs = read_table(set_dir / f"text.tc.{language}", allow_empty=True)
        score = corpus_score("WER", list(hyps.values()), [[refs[utt] for utt in hyps]], language)
        results.append(result(args.out_dir.name, set_dir.name, len(hyps), "WER", score))
    write_model(experiment, weights, bpe, args.out_dir, work / "model")
    return results


def write_model(experiment: Path, weights: Path, bpe: Path, out_dir: Path, folder: Path) -> None:
    """The finished experiment; its settings name the place where it will be."""
    shutil.copy(weights, folder / weights.name)
    shutil.copy(bpe, folder / "bpe.model")
    config = read_yaml(experiment / "config.yaml") | {"bpemodel": str(out_dir / "bpe.model")}
    with atomic_write(folder / "config.yaml") as file:
        yaml.safe_dump(config, file, allow_unicode=True, sort_keys=False)


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
