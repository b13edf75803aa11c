"""Trains a tiny wav2vec 2.0 with a CTC output from scratch; writes it with ``save_pretrained``."""

import random
import sys
from pathlib import Path

import torch
from tiny_models import new_wav2vec2, wav2vec2_features, wav2vec2_tokenizer
from torch.nn.functional import ctc_loss
from training import run_training, train, training_speech, wer_results
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
from waveforms import MelGuide, make_batches, read_waves, speed_up_convolutions

from espnet_llmst.cli import run
from espnet_llmst.precision import autocast
from espnet_llmst.scoring.metrics import corpus_score


def loss_function(model: Wav2Vec2ForCTC, guide: MelGuide, targets: list[torch.Tensor], precision: str):
    """CTC loss and, beside it, the error of the log-mel guide."""

    def loss_of(batch: dict) -> torch.Tensor:
        with autocast(torch.device("cpu"), precision):
            output = model.wav2vec2(batch["values"], attention_mask=batch["mask"])
            logits = model.lm_head(output.last_hidden_state)
            guess_error = guide(batch["values"])
        wanted = [targets[i] for i in batch["picked"]]
        aligned = ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.cat(wanted),
            model._get_feat_extract_output_lengths(batch["lengths"]),
            torch.tensor([len(target) for target in wanted]),
            zero_infinity=True,
        )
        return aligned + guess_error

    return loss_of


def evaluate(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, examples, language: str) -> dict:
    """WER of the best path, one utterance at a time."""
    hyps = []
    for wave in read_waves(examples, processor.feature_extractor):
        with torch.inference_mode():
            ids = model(wave[None], attention_mask=torch.ones(1, len(wave), dtype=torch.long)).logits.argmax(-1)
        hyps += processor.batch_decode(ids)
    return corpus_score("WER", hyps, [[text for *_, text in examples]], language)


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its WER on the held-out sets."""
    name, languages = args.out_dir.name, conf["languages"]
    examples = training_speech(args, languages)
    tokenizer = wav2vec2_tokenizer([text for *_, text in examples], str(directory))
    processor = Wav2Vec2Processor(feature_extractor=wav2vec2_features(), tokenizer=tokenizer)
    model = new_wav2vec2(vocab_size=len(tokenizer), **conf["size"])
    speed_up_convolutions(model.wav2vec2)
    parts = torch.nn.ModuleDict({"model": model, "guide": MelGuide(model.wav2vec2)})
    targets = [torch.tensor(tokenizer(text)["input_ids"]) for *_, text in examples]
    waves = read_waves(examples, processor.feature_extractor)
    batches = make_batches(waves, conf["batch_size"], random.Random(conf["seed"]))
    loss_of = loss_function(model, parts["guide"], targets, conf["autocast"])
    train(parts, batches, loss_of, conf["steps"], conf["lr"], name, directory)
    processor.save_pretrained(directory)
    model.save_pretrained(directory)
    return wer_results(name, args, languages, lambda examples, language: evaluate(model, processor, examples, language))


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
