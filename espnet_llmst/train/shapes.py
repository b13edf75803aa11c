"""Sizes of training examples, by which ESPnet's samplers fill batches: speech frames and text tokens."""

from pathlib import Path

from espnet_llmst.datadir.kaldi import read_table, write_table
from espnet_llmst.prompt import Template, encode_prompt, encode_target, render_prompt

SAMPLES_PER_FRAME = 320  # 20 ms, the frame of every supported speech encoder


def write_shapes(mix_dir: Path, out_dir: Path, template: Template, tokenizer) -> dict[str, float]:
    """Write ``speech_shape`` (20 ms frames) and ``text_shape`` (prompt and target tokens) of a mix.

    With ``batch_type: numel`` a batch then holds at most ``batch_bins`` positions, padding included.
    Computed from the tables alone: no audio is read. Returns means for the log.
    """
    samples, tasks = read_table(mix_dir / "utt2num_samples"), read_table(mix_dir / "utt2task")
    texts = read_table(mix_dir / "text")
    transcripts = read_table(mix_dir / "transcript") if (mix_dir / "transcript").exists() else {}
    prompt_sizes: dict[tuple[str, str], int] = {}
    frames, tokens = {}, {}
    for uid, text in texts.items():
        key = (tasks[uid], transcripts.get(uid, ""))
        if key not in prompt_sizes:
            sides = render_prompt(template, tokenizer, *key[0].split(), key[1])
            prompt_sizes[key] = sum(map(len, encode_prompt(tokenizer, *sides)))
        reads_speech = not tasks[uid].startswith("mt ")
        frames[uid] = max(1, int(samples[uid]) // SAMPLES_PER_FRAME if reads_speech else 1)
        tokens[uid] = prompt_sizes[key] + len(encode_target(tokenizer, text))
    out_dir.mkdir(parents=True, exist_ok=True)
    write_table(out_dir / "speech_shape", {uid: str(n) for uid, n in frames.items()})
    write_table(out_dir / "text_shape", {uid: str(n) for uid, n in tokens.items()})
    return {"frames": sum(frames.values()) / len(frames), "tokens": sum(tokens.values()) / len(tokens)}
