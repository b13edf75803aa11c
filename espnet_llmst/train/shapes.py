"""Sizes of training examples, by which samplers fill batches: speech frames, text tokens, positions."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from espnet_llmst.datadir.kaldi import read_table, write_table
from espnet_llmst.prompt import Template, encode_prompt, encode_target, render_prompt

SAMPLES_PER_FRAME = 320  # 20 ms, the frame of every supported speech encoder


def write_shapes(
    mix_dir: Path,
    out_dir: Path,
    template: Template,
    tokenizer,
    measure: Callable[[int], tuple[int, int]] | None = None,
    mix_ties: bool = False,
) -> dict[str, float]:
    """Write ``speech_shape`` (20 ms frames) and ``text_shape`` (prompt and target tokens) of a mix.

    ESPnet's ``batch_type: numel`` fills batches by their sum. With ``measure`` (`espnet_llmst.summary.speech_sizes`)
    also ``position_shape``, for ``batch_type: tokens``: vectors and tokens that the language model reads, and frames
    that the encoder computes. A text-only example (mt) has no vectors and counts as one frame.
    Samplers that sort by size leave examples of equal size in the files' order. That is by id, of one task and
    direction after the other, or, with ``mix_ties``, by a hash of the id.
    Computed from the tables alone: no audio is read. Returns means for the log.
    """
    samples, tasks = read_table(mix_dir / "utt2num_samples"), read_table(mix_dir / "utt2task")
    texts = read_table(mix_dir / "text")
    transcripts = read_table(mix_dir / "transcript") if (mix_dir / "transcript").exists() else {}
    prompt_sizes: dict[tuple[str, str], int] = {}
    frames, tokens, positions = {}, {}, {}
    for uid, text in texts.items():
        key = (tasks[uid], transcripts.get(uid, ""))
        if key not in prompt_sizes:
            sides = render_prompt(template, tokenizer, *key[0].split(), key[1])
            prompt_sizes[key] = sum(map(len, encode_prompt(tokenizer, *sides)))
        reads_speech = not tasks[uid].startswith("mt ")
        frames[uid] = max(1, int(samples[uid]) // SAMPLES_PER_FRAME if reads_speech else 1)
        tokens[uid] = prompt_sizes[key] + len(encode_target(tokenizer, text))
        if measure:
            vectors, computed = measure(int(samples[uid])) if reads_speech else (0, 1)
            positions[uid] = f"{vectors + tokens[uid]},{computed}"
    order = sorted(texts, key=_digest) if mix_ties else None
    write_table(out_dir / "speech_shape", {uid: str(n) for uid, n in frames.items()}, order)
    write_table(out_dir / "text_shape", {uid: str(n) for uid, n in tokens.items()}, order)
    if measure:
        write_table(out_dir / "position_shape", positions, order)
    else:
        (out_dir / "position_shape").unlink(missing_ok=True)  # of earlier settings
    return {"frames": sum(frames.values()) / len(frames), "tokens": sum(tokens.values()) / len(tokens)}


def _digest(uid: str) -> bytes:
    return hashlib.sha256(uid.encode()).digest()
