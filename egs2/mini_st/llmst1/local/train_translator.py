"""Trains a tiny text translator (Marian or T5) of one direction; writes it with ``save_pretrained``.

From scratch, or (``model:`` of its YAML) a Marian whose decoder is made anew to repeat the source behind the
frozen encoder of another: the English decoder of Aligned's connector pre-training. Its sentences come from the
recipe's grammar, those of the held-out sets excluded, or from the training sets that ``corpus:`` of its YAML names.
What it reads can be made like a recogniser's transcripts: ``plain:`` is the share of sentences in lower case without
punctuation, ``noise:`` and ``swaps:`` the shares of letters lost or doubled, and replaced by others.
``similar_lengths: true`` makes batches of about equally long pairs, which pad less, each token with the same weight in
the loss: by the mean of each batch, short sentences would weigh more and outputs become too short. In the share
``both_ways:`` of the updates, the first, every other batch translates backwards (bidirectional training,
arXiv 2109.07780; Marian alone).
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from grammar import lm_sentences
from tiny_translators import marian_tokenizer, new_marian, new_t5, t5_tokenizer
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from training import (
    corpus_sentences,
    heard,
    held_out,
    held_out_sets,
    noisy,
    result,
    run_training,
    similar_lengths,
    spoken,
    swap_letters,
    train,
)
from transformers import MarianMTModel, MarianTokenizer

from espnet_llmst.cli import run
from espnet_llmst.datadir.kaldi import read_table, text_files
from espnet_llmst.precision import autocast
from espnet_llmst.scoring.metrics import corpus_score


def make_model(conf: dict, sources: list[str], targets: list[str], directory: Path):
    """Tokenizer and untrained model of the family that the YAML names."""
    if "model" in conf:
        return repeating_marian(conf["model"])
    if conf["family"] == "marian":
        tokenizer = marian_tokenizer(sources, targets, conf["vocab_size"], str(directory))
        return tokenizer, new_marian(tokenizer, **conf["size"])
    texts = sources + targets + [conf["prefix"].strip()] * 20
    tokenizer = t5_tokenizer(texts, conf["vocab_size"], str(directory))
    return tokenizer, new_t5(tokenizer, **conf["size"])


def repeating_marian(translator: str):
    """A translator's tokenizer and model made to write its source language: all but new decoder layers frozen.

    Embeddings stay too: they are shared with the encoder, whose output both decoders must understand.
    """
    folder = Path(translator)
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "source.spm"), str(folder / "vocab.json"), separate_vocabs=False
    )
    model = MarianMTModel.from_pretrained(translator)
    fresh = MarianMTModel(model.config).model.decoder.layers
    model.model.decoder.layers.load_state_dict(fresh.state_dict())
    model.requires_grad_(False)
    model.model.decoder.layers.requires_grad_(True)
    return tokenizer, model


def picked_pairs(pairs, tokenizer, conf: dict, rng: random.Random) -> Iterator[list[tuple[str, str]]]:
    """The pairs of each batch: any, or with ``similar_lengths`` of the YAML about equally long ones."""
    if not conf.get("similar_lengths"):
        while True:
            yield rng.choices(pairs, k=conf["batch_size"])
    sources = tokenizer([source for source, _ in pairs])["input_ids"]
    targets = tokenizer(text_target=[target for _, target in pairs])["input_ids"]
    pieces = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
    for group in similar_lengths(pieces, conf["batch_size"], rng):
        yield [pairs[i] for i in group]


def usual_pieces(pairs, tokenizer, conf: dict) -> float | None:
    """Target pieces of an average batch, where the loss is to be divided by them instead of each batch's own."""
    if not conf.get("similar_lengths"):
        return None
    targets = tokenizer(text_target=[target for _, target in pairs])["input_ids"]
    return conf["batch_size"] * sum(map(len, targets)) / len(targets)


def make_batches(pairs, tokenizer, conf: dict, rng: random.Random) -> Iterator[dict]:
    """Random pairs for ever, padded; labels are -100 beyond their end."""
    prefix, letters = conf.get("prefix", ""), swap_letters((source for source, _ in pairs), conf)
    both_ways = conf.get("both_ways", 0.0) * conf["steps"]
    for step, picked in enumerate(picked_pairs(pairs, tokenizer, conf, rng)):
        if step < both_ways and step % 2:
            sources = tokenizer(text_target=[noisy(target, conf.get("noise", 0.0), rng) for _, target in picked])
            targets = tokenizer([source for source, _ in picked])
        else:
            sources = tokenizer([prefix + heard(source, conf, letters, rng) for source, _ in picked])
            targets = tokenizer(text_target=[target for _, target in picked])
        sources, targets = sources["input_ids"], targets["input_ids"]
        ids = pad_sequence([torch.tensor(s) for s in sources], True, tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor(t) for t in targets], True, -100)
        lengths = torch.tensor([len(s) for s in sources])
        yield {"ids": ids, "mask": (torch.arange(ids.size(1)) < lengths[:, None]).long(), "labels": labels}


def evaluate(model, tokenizer, prefix: str, set_dir: Path, src: str, tgt: str) -> dict:
    """BLEU on the set's own transcripts, greedy: what perfect recognition would give."""
    files = text_files(set_dir)
    sources, references = read_table(files[src]), read_table(files[tgt])
    hyps, texts = [], list(sources.values())
    for start in range(0, len(texts), 50):
        batch = tokenizer([prefix + t for t in texts[start : start + 50]], padding=True, return_tensors="pt")
        ids = model.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=60, max_length=None, num_beams=1
        )
        hyps += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return corpus_score("BLEU", hyps, [[references[utt] for utt in sources]], tgt)


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its BLEU on the held-out sets."""
    name, (src, tgt) = args.out_dir.name, conf["direction"].split("-")
    if "corpus" in conf:
        sentences = corpus_sentences(args, conf["corpus"])
    else:
        sentences = lm_sentences(conf["sentences"], conf["seed"], held_out(args.dump_dir, args.splits[1:]))
    pairs = [(sentence[src], sentence[tgt]) for sentence in sentences]
    sources, targets = map(list, zip(*pairs[:8000], strict=True))
    if conf.get("plain"):  # pieces of what it will read, too
        sources += [spoken(source) for source in sources]
    tokenizer, model = make_model(conf, sources, targets, directory)
    usual = usual_pieces(pairs, tokenizer, conf)

    def loss_of(batch: dict) -> torch.Tensor:
        shifted = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        with autocast(batch["ids"].device, conf["autocast"]):
            logits = model(batch["ids"], attention_mask=batch["mask"], decoder_input_ids=shifted).logits
        smoothing = conf.get("label_smoothing", 0.0)
        loss = cross_entropy(logits.float().transpose(1, 2), batch["labels"], label_smoothing=smoothing)
        return loss if usual is None else loss * (batch["labels"] >= 0).sum() / usual

    prefix = conf.get("prefix", "")
    batches = make_batches(pairs, tokenizer, conf, random.Random(conf["seed"]))
    train(model, batches, loss_of, conf["steps"], conf["lr"], name, directory, conf.get("device", "cpu"))
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    results = []
    for set_dir, _ in held_out_sets(args, f"{src}-{tgt if tgt != src else '*'}"):
        score = evaluate(model, tokenizer, prefix, set_dir, src, tgt)
        size = len(read_table(set_dir / "utt2spk"))
        results.append(result(name, f"{set_dir.name} ({tgt}) from gold transcripts", size, "BLEU", score))
    return results


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
