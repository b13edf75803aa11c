"""Trains a tiny language model (Llama or Qwen2) from scratch to translate text; writes it with ``save_pretrained``.

Its sentences come from the recipe's grammar, those of the held-out sets excluded, and from the training sets that
``corpus:`` of its YAML names. It reads the prompts of a method's template, with the sentence where the speech will
stand. ``target:`` is the only language it writes, but for transcripts; ``plain:``, ``noise:`` and ``swaps:`` change
what it reads, as in train_translator.py.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from grammar import lm_sentences
from tiny_models import llama_tokenizer, new_llama
from tiny_translators import new_qwen2, qwen2_tokenizer
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from training import corpus_sentences, heard, held_out, held_out_sets, result, run_training, swap_letters, train

from espnet_llmst.cli import run
from espnet_llmst.datadir.kaldi import read_table, text_files
from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.precision import autocast
from espnet_llmst.prompt import (
    SPEECH,
    Template,
    encode_prompt,
    encode_target,
    load_template,
    render_instruction,
    render_prompt,
)
from espnet_llmst.scoring.metrics import corpus_score
from espnet_llmst.search.generate import SearchOptions, search
from espnet_llmst.train.mixture import parse_direction

FAMILIES = {"llama": new_llama, "qwen2": new_qwen2}


def make_tokenizer(conf: dict, sentences: list[dict], template: Template, directory: Path):
    """A tokenizer of sentences and, now and then, instructions, so that both get whole-word pieces."""
    languages = conf["languages"]
    chat = "[INST]{} [/INST]" if template.chat else "{}"
    instructions = [
        chat.format(render_instruction(template, task, src, tgt).replace(SPEECH, ""))
        for task in conf["tasks"]
        for src in languages
        for tgt in languages
    ]
    texts = [sentence[language] for sentence in sentences[:4000] for language in languages if language in sentence]
    texts += instructions * 20
    if conf["family"] == "qwen2":
        return qwen2_tokenizer(texts, conf["vocab_size"])
    return llama_tokenizer(texts, conf["vocab_size"], str(directory))


def encode(tokenizer, template: Template, task: str, src: str, tgt: str, sentence: str) -> list[int]:
    """Prompt ids; the sentence stands where the speech will, unless the prompt itself shows it."""
    before, after = encode_prompt(tokenizer, *render_prompt(template, tokenizer, task, src, tgt, sentence))
    if "{transcript}" in template.tasks[task]["prompt"]:
        return [*before, *after]
    return [*before, *tokenizer(sentence, add_special_tokens=False)["input_ids"], *after]


def make_batches(sentences, tokenizer, template, conf: dict, rng: random.Random) -> Iterator[dict]:
    """Random tasks and directions of random sentences for ever; the loss falls on the answer."""
    tasks, shares = list(conf["tasks"]), list(conf["tasks"].values())
    read = [text for sentence in sentences for lang, text in sentence.items() if lang != conf.get("target")]
    letters = swap_letters(read, conf)
    while True:
        rows, keeps, answers = [], [], []
        for sentence in rng.choices(sentences, k=conf["batch_size"]):
            task = rng.choices(tasks, shares)[0]
            src, tgt = rng.sample([language for language in conf["languages"] if language in sentence], 2)
            if src == conf.get("target"):
                src, tgt = tgt, src
            if task == "asr":
                tgt = src
            source = heard(sentence[src], conf, letters, rng)
            prompt = encode(tokenizer, template, task, src, tgt, source)
            answer = encode_target(tokenizer, sentence[tgt])
            rows.append(torch.tensor(prompt + answer))
            keeps.append(torch.tensor([False] * (len(prompt) - 1) + [True] * len(answer) + [False]))
            answers += answer
        padded = pad_sequence(rows, batch_first=True)
        yield {"ids": padded, "keep": pad_sequence(keeps, batch_first=True), "answers": torch.tensor(answers)}


def evaluate(decoder, tokenizer, template: Template, task: str, set_dir: Path, direction: str) -> dict:
    """BLEU on the set's own transcripts, greedy: what perfect recognition would give."""
    src, tgt = parse_direction(direction)
    files = text_files(set_dir)
    sources, references = read_table(files[src]), read_table(files[tgt])
    hyps = []
    for batch in torch.arange(len(sources)).split(50):
        utts = [list(sources)[i] for i in batch]
        ids = [torch.tensor(encode(tokenizer, template, task, src, tgt, sources[utt])) for utt in utts]
        with torch.inference_mode():
            prompts = [decoder.embed(one) for one in ids]
            found = search(decoder, tokenizer, prompts, SearchOptions(beam_size=1, max_new_tokens=60))
        hyps += [tokenizer.decode(nbest[0][0]).strip() for nbest in found]
    return corpus_score("BLEU", hyps, [[references[utt] for utt in sources]], tgt)


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its BLEU on the held-out sets."""
    name, template = args.out_dir.name, load_template(conf["prompt"])
    exclude = held_out(args.dump_dir, args.splits[1:])
    sentences = corpus_sentences(args, conf.get("corpus", []))
    sentences += lm_sentences(conf["sentences"], conf["seed"], exclude)
    print(f"{name}: {len(sentences)} sentences, {len(exclude)} held-out texts excluded", flush=True)
    tokenizer = make_tokenizer(conf, sentences, template, directory)
    model = FAMILIES[conf["family"]](tokenizer, **conf["size"])

    def loss_of(batch: dict) -> torch.Tensor:
        with autocast(batch["ids"].device, conf["autocast"]):
            logits = model(batch["ids"], logits_to_keep=batch["keep"], use_cache=False).logits
        return cross_entropy(logits.float(), batch["answers"])

    batches = make_batches(sentences, tokenizer, template, conf, random.Random(conf["seed"]))
    train(model, batches, loss_of, conf["steps"], conf["lr"], name, directory, conf.get("device", "cpu"))
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    decoder = CausalLMDecoder(str(directory)).eval()
    translate = next(task for task in conf["tasks"] if task != "asr")
    results = []
    for set_dir, direction in held_out_sets(args, "*"):
        if not set(parse_direction(direction)) <= set(conf["languages"]):
            continue
        score = evaluate(decoder, tokenizer, template, translate, set_dir, direction)
        size = len(read_table(set_dir / "utt2spk"))
        results.append(result(name, f"{set_dir.name} from gold transcripts", size, "BLEU", score))
    return results


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
