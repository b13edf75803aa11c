"""Trains a tiny wav2vec 2.0 with a CTC output from scratch; writes it with ``save_pretrained``."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from tiny_models import new_wav2vec2, wav2vec2_features, wav2vec2_tokenizer
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence
from training import run_training, train, training_speech, wer_results
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

from espnet_llmst.cli import run
from espnet_llmst.precision import autocast
from espnet_llmst.scoring.metrics import corpus_score


def read_waves(examples, processor: Wav2Vec2Processor) -> list[torch.Tensor]:
    """Waveforms, normalised as the checkpoint will want them."""
    waves = []
    for _, path, _ in examples:
        speech, rate = soundfile.read(path, dtype="float32")
        values = processor.feature_extractor(speech, sampling_rate=rate, return_tensors="pt").input_values
        waves.append(values[0])
    return waves


def make_batches(waves, targets, batch_size: int, rng: random.Random) -> Iterator[dict]:
    """Batches for ever, of utterances of about equal length in random order."""
    by_length = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    groups = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    while True:
        for group in rng.sample(groups, len(groups)):
            lengths = torch.tensor([len(waves[i]) for i in group])
            values = pad_sequence([waves[i] for i in group], batch_first=True)
            mask = (torch.arange(values.size(1)) < lengths[:, None]).long()
            yield {"values": values, "mask": mask, "lengths": lengths, "targets": [targets[i] for i in group]}


def evaluate(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, examples, language: str) -> dict:
    """WER of the best path, one utterance at a time."""
    hyps = []
    for wave in read_waves(examples, processor):
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
    targets = [torch.tensor(tokenizer(text)["input_ids"]) for *_, text in examples]

    def loss_of(batch: dict) -> torch.Tensor:
        with autocast(torch.device("cpu"), conf["autocast"]):
            logits = model(batch["values"], attention_mask=batch["mask"]).logits
        return ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.cat(batch["targets"]),
            model._get_feat_extract_output_lengths(batch["lengths"]),
            torch.tensor([len(target) for target in batch["targets"]]),
            zero_infinity=True,
        )

    waves = read_waves(examples, processor)
    batches = make_batches(waves, targets, conf["batch_size"], random.Random(conf["seed"]))
    train(model, batches, loss_of, conf["steps"], conf["lr"], name)
    processor.save_pretrained(directory)
    model.save_pretrained(directory)
    return wer_results(name, args, languages, lambda examples, language: evaluate(model, processor, examples, language))


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
