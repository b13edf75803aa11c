"""Prints training examples as the model reads them, and the tokens on which the loss falls."""

import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.bin.llmst_mix import read_phase
from espnet_llmst.cli import get_parser, run
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.prompt import SPEECH, encode_prompt, encode_target, load_template, load_tokenizer, render_prompt


def show(uid: str, task: str, text: str, transcript: str, samples: int, template, tokenizer) -> str:
    """One example, a few lines of text."""
    sides = encode_prompt(tokenizer, *render_prompt(template, tokenizer, *task.split(), transcript))
    before, after = (" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in sides)
    target = tokenizer.convert_ids_to_tokens(encode_target(tokenizer, text))
    speech = "" if task.startswith("mt ") else f" {SPEECH} ({samples / 16000:.2f} s) "
    return f"{uid}\n  no loss: {before}{speech}{after}\n  loss on {len(target)} tokens: {' '.join(target)}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the first examples of each task."""
    parser = get_parser("llmst_example", __doc__)
    parser.add_argument("--train_config", type=Path, required=True, help="YAML of the phase")
    parser.add_argument("--mix_dir", type=Path, required=True, help="e.g. dump/mix/llast/1_dual_lora/train")
    parser.add_argument("--num", type=int, default=2, help="Examples of each task")
    args = parser.parse_args(argv)
    settings = read_phase(args.train_config)
    template = load_template(settings["prompt"])
    tokenizer = load_tokenizer(settings["decoder_conf"]["model"], settings["decoder_conf"].get("added_tokens", ()))
    tasks, texts = read_table(args.mix_dir / "utt2task"), read_table(args.mix_dir / "text")
    samples = read_table(args.mix_dir / "utt2num_samples")
    transcript_file = args.mix_dir / "transcript"
    transcripts = read_table(transcript_file) if transcript_file.exists() else {}
    shown: dict[str, int] = {}
    for uid, task in tasks.items():
        kind = task.split()[0]
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= args.num:
            print(show(uid, task, texts[uid], transcripts.get(uid, ""), int(samples[uid]), template, tokenizer))


if __name__ == "__main__":
    sys.exit(run(main))
