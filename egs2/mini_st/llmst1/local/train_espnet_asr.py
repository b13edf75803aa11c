"""Trains a tiny E-Branchformer recogniser from scratch: ESPnet's joint CTC/attention model and experiment files.

With ``plain: true`` of its YAML transcripts are in lower case without punctuation.

Shapes: B batch, S samples, F feature frames, M mel bands, L tokens.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import soundfile
import torch
from tiny_models import espnet_asr_config, new_espnet_asr, save_espnet_asr, unigram_tokens
from torch.nn.utils.rnn import pad_sequence
from training import run_training, spoken, train, training_speech, wer_results

from espnet_llmst.cli import run
from espnet_llmst.precision import autocast
from espnet_llmst.scoring.metrics import corpus_score


def read_speech(path: str) -> torch.Tensor:
    """The waveform (1, S)."""
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]


@torch.inference_mode()
def log_mels(examples, frontend: torch.nn.Module) -> list[torch.Tensor]:
    """Features (F, M) of every example."""
    waves = (read_speech(path) for _, path, _ in examples)
    return [frontend(wave, torch.tensor([wave.size(1)]))[0][0] for wave in waves]


def write_statistics(mels: list[torch.Tensor], path: Path) -> None:
    """Sums over all frames, as ESPnet's ``global_mvn`` reads them."""
    frames = torch.cat(mels).numpy()
    total, squares = frames.sum(0, dtype=np.float64), np.square(frames, dtype=np.float64).sum(0)
    np.savez(path, count=len(frames), sum=total.astype(np.float32), sum_square=squares.astype(np.float32))


def make_batches(mels, targets, batch_size: int, rng: random.Random) -> Iterator[dict]:
    """Batches for ever, of utterances of about equal length in random order, named as the model's arguments."""
    by_length = sorted(range(len(mels)), key=lambda i: len(mels[i]))
    groups = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    while True:
        for group in rng.sample(groups, len(groups)):
            yield {
                "speech": pad_sequence([mels[i] for i in group], batch_first=True),
                "speech_lengths": torch.tensor([len(mels[i]) for i in group]),
                "text": pad_sequence([targets[i] for i in group], batch_first=True, padding_value=-1),
                "text_lengths": torch.tensor([len(targets[i]) for i in group]),
            }


def evaluate(model: torch.nn.Module, pieces: sentencepiece.SentencePieceProcessor, examples, language: str) -> dict:
    """WER of the CTC output's best path, one utterance at a time."""
    hyps = []
    for _, path, _ in examples:
        wave = read_speech(path)
        with torch.inference_mode():
            states, _ = model.encode(wave, torch.tensor([wave.size(1)]))
            best_L = model.ctc.argmax(states)[0].unique_consecutive()
        hyps.append(pieces.decode([token - 1 for token in best_L.tolist() if 0 < token <= len(pieces)]))
    return corpus_score("WER", hyps, [[text for *_, text in examples]], language)


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its WER on the held-out sets."""
    name, languages = args.out_dir.name, conf["languages"]
    written = spoken if conf.get("plain") else str
    examples = [(language, path, written(text)) for language, path, text in training_speech(args, languages)]
    tokens = unigram_tokens((text for *_, text in examples), conf["vocab_size"], str(directory))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "bpe.model"))
    targets = [torch.tensor(pieces.encode(text)) + 1 for *_, text in examples]
    config = espnet_asr_config(tokens, **conf["size"], spec_augment=conf["spec_augment"])
    config["token_type"] = "bpe"
    mels = log_mels(examples, new_espnet_asr(config).frontend)
    write_statistics(mels, directory / "feats_stats.npz")
    statistics = {"normalize": "global_mvn", "normalize_conf": {"stats_file": str(directory / "feats_stats.npz")}}
    model = new_espnet_asr(config | statistics)
    frontend, model.frontend = model.frontend, None  # the features are there already

    def loss_of(batch: dict) -> torch.Tensor:
        with autocast(batch["speech"].device, conf["autocast"]):
            return model(**batch)[0].float()

    batches = make_batches(mels, targets, conf["batch_size"], random.Random(conf["seed"]))
    device, alone_after = conf.get("device", "cpu"), conf.get("alone_after")
    train(model, batches, loss_of, conf["steps"], conf["lr"], name, directory, device, alone_after)
    model.frontend = frontend
    files = {"bpemodel": str(args.out_dir / "bpe.model"), "normalize": "global_mvn"}
    files["normalize_conf"] = {"stats_file": str(args.out_dir / "feats_stats.npz")}
    save_espnet_asr(model, config | files, str(directory))

    def wer_of(examples, language: str) -> dict:
        plain = [(language, path, written(text)) for _, path, text in examples]
        return evaluate(model, pieces, plain, language)

    return wer_results(name, args, languages, wer_of)


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
