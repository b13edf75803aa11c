"""Trains a tiny Llama from scratch as a chat model that translates text, and writes it with ``save_pretrained``.

Its sentences come from the recipe's grammar; those of the held-out sets are excluded.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from grammar import lm_sentences
from tiny_models import llama_tokenizer, new_llama
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from training import train

from espnet_llmst.cli import get_parser, run
from espnet_llmst.datadir.kaldi import read_table, text_files
from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.languages import english_name
from espnet_llmst.precision import autocast
from espnet_llmst.prompt import encode_prompt, encode_target, load_template, render_prompt
from espnet_llmst.scoring.metrics import corpus_score
from espnet_llmst.search.generate import SearchOptions, search
from espnet_llmst.train.mixture import parse_direction


def held_out(dump_dir: Path, splits: list[str]) -> list[dict[str, str]]:
    """Texts of the held-out sets, which no training sentence may repeat."""
    texts = []
    for split in splits:
        for set_dir in sorted(dump_dir.glob(f"{split}.*")):
            for language, path in text_files(set_dir).items():
                texts += [{language: text} for text in read_table(path).values()]
    return texts


def tokenizer_text(sentences, languages, template) -> list[str]:
    """Sentences, and each instruction now and then, so that both get whole-word pieces."""
    names = [english_name(language) for language in languages]
    instructions = [
        "[INST]" + template.tasks[task]["prompt"].replace("{src}", src).replace("{tgt}", tgt) + " [/INST]"
        for task in ("st", "asr")
        for src in names
        for tgt in names
    ]
    instructions = [text.replace("<speech>", "") for text in instructions] * 20
    return [sentence[language] for sentence in sentences[:4000] for language in languages] + instructions


def encode(tokenizer, template, src: str, tgt: str, sentence: str) -> list[int]:
    """Prompt ids with the sentence where the speech will stand; the task is to repeat when src is tgt."""
    task = "asr" if src == tgt else "st"
    before, after = encode_prompt(tokenizer, *render_prompt(template, tokenizer, task, src, tgt))
    return [*before, *tokenizer(sentence, add_special_tokens=False)["input_ids"], *after]


def make_batches(sentences, tokenizer, template, conf: dict, rng: random.Random) -> Iterator[dict]:
    """Random directions of random sentences for ever; the loss falls on the answer."""
    while True:
        rows, keeps, answers = [], [], []
        for sentence in rng.choices(sentences, k=conf["batch_size"]):
            src, tgt = rng.sample(conf["languages"], 2)
            if rng.random() < conf["repeat"]:
                tgt = src
            prompt = encode(tokenizer, template, src, tgt, sentence[src])
            answer = encode_target(tokenizer, sentence[tgt])
            rows.append(torch.tensor(prompt + answer))
            keeps.append(torch.tensor([False] * (len(prompt) - 1) + [True] * len(answer) + [False]))
            answers += answer
        padded = pad_sequence(rows, batch_first=True)
        yield {"ids": padded, "keep": pad_sequence(keeps, batch_first=True), "answers": torch.tensor(answers)}


def evaluate(decoder, tokenizer, template, set_dir: Path, direction: str) -> dict:
    """BLEU on the set's own transcripts, greedy: what perfect recognition would give."""
    src, tgt = parse_direction(direction)
    files = text_files(set_dir)
    sources, references = read_table(files[src]), read_table(files[tgt])
    hyps = []
    for batch in torch.arange(len(sources)).split(50):
        utts = [list(sources)[i] for i in batch]
        ids = [torch.tensor(encode(tokenizer, template, src, tgt, sources[utt])) for utt in utts]
        with torch.inference_mode():
            prompts = [decoder.embed(one) for one in ids]
            found = search(decoder, tokenizer, prompts, SearchOptions(beam_size=1, max_new_tokens=60))
        hyps += [tokenizer.decode(nbest[0][0]).strip() for nbest in found]
    return corpus_score("BLEU", hyps, [[references[utt] for utt in sources]], tgt)


def main(argv=None) -> None:
    """Train one model as its YAML file says."""
    parser = get_parser("train_llama.py", __doc__)
    parser.add_argument("--model_config", type=Path, required=True)
    parser.add_argument("--dump_dir", type=Path, default=Path("dump/raw"))
    parser.add_argument("--splits", nargs=3, default=["train", "dev", "test"], help="For training; held out")
    parser.add_argument("--out_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    conf = yaml.safe_load(args.model_config.read_text(encoding="utf-8"))
    torch.manual_seed(conf["seed"])
    template = load_template(conf["prompt"])
    exclude = held_out(args.dump_dir, args.splits[1:])
    sentences = lm_sentences(conf["sentences"], conf["seed"], exclude)
    print(f"{args.out_dir.name}: {len(sentences)} sentences, {len(exclude)} held-out texts excluded", flush=True)
    unfinished = args.out_dir.with_name(args.out_dir.name + ".tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    tokenizer = llama_tokenizer(
        tokenizer_text(sentences, conf["languages"], template), conf["vocab_size"], str(unfinished)
    )
    model = new_llama(tokenizer, **conf["size"])

    def loss_of(batch: dict) -> torch.Tensor:
        with autocast(torch.device("cpu"), conf["autocast"]):
            logits = model(batch["ids"], logits_to_keep=batch["keep"], use_cache=False).logits
        return cross_entropy(logits.float(), batch["answers"])

    batches = make_batches(sentences, tokenizer, template, conf, random.Random(conf["seed"]))
    train(model, batches, loss_of, conf["steps"], conf["lr"], args.out_dir.name)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    decoder = CausalLMDecoder(str(unfinished)).eval()
    results = []
    for set_dir in sorted(args.dump_dir.glob(f"{args.splits[2]}.*")):
        direction = set_dir.name.removeprefix(f"{args.splits[2]}.")
        score = evaluate(decoder, tokenizer, template, set_dir, direction)
        size = len(read_table(set_dir / "utt2spk"))
        results.append({"model": args.out_dir.name, "set": f"{set_dir.name}, gold transcripts", "n": size})
        results[-1] |= {"metric": "BLEU", **score}
        print(
            f"{args.out_dir.name}: BLEU on {set_dir.name} from gold transcripts: {score['score']:.2f}",
            flush=True,
        )
    (unfinished / "eval.json").write_text(json.dumps(results, indent=1))
    shutil.rmtree(args.out_dir, ignore_errors=True)
    os.replace(unfinished, args.out_dir)


if __name__ == "__main__":
    sys.exit(run(main))
