"""Decoding results on disk: ESPnet's ``1best_recog`` files, per job and merged."""

import json
import shutil
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import atomic_write, read_table, write_table
from espnet_llmst.search.hypothesis import Hypothesis

FILES = ("text", "token", "score", "transcript")


def write_results(
    output_dir: Path, results: dict[str, list[Hypothesis]], transcripts: dict[str, str] | None = None
) -> None:
    """Write ``<n>best_recog/{text,token,score}``, one line per utterance (a text may be empty).

    ``transcripts`` are the first halves of srt outputs; they go to ``1best_recog/transcript``.
    """
    if transcripts is not None:
        table = {utt: _one_line(text) for utt, text in transcripts.items()}
        write_table(output_dir / "1best_recog" / "transcript", table)
    for rank in range(max(map(len, results.values()), default=0)):
        best = {utt: nbest[rank] for utt, nbest in results.items() if rank < len(nbest)}
        directory = output_dir / f"{rank + 1}best_recog"
        write_table(directory / "text", {utt: _one_line(hyp.text) for utt, hyp in best.items()})
        write_table(directory / "token", {utt: _one_line(" ".join(hyp.tokens)) for utt, hyp in best.items()})
        write_table(directory / "score", {utt: f"{hyp.score:.6f}" for utt, hyp in best.items()})


def write_info(output_dir: Path, info: dict) -> None:
    """Write ``decode.json``; it is the last file of a decode and so its mark of completion."""
    with atomic_write(output_dir / "decode.json") as file:
        json.dump(info, file, indent=1, ensure_ascii=False)


def merge_jobs(output_dir: Path, num_jobs: int) -> dict:
    """Join ``<output_dir>/job.<n>/`` of all jobs into ``<output_dir>``; returns the joined information.

    Raises:
        InputError: a job has not finished.
    """
    jobs = [output_dir / f"job.{number}" for number in range(1, num_jobs + 1)]
    for job in jobs:
        if not (job / "decode.json").exists():
            raise InputError(f"{job}: this decoding job has not finished; see its log and run stage 7 again")
    for old in output_dir.glob("*best_recog"):
        shutil.rmtree(old)
    infos = [json.loads((job / "decode.json").read_text(encoding="utf-8")) for job in jobs]
    for directory in sorted({path.name for job in jobs for path in job.glob("*best_recog")}):
        for name in FILES:
            parts = [job / directory / name for job in jobs]
            tables = [read_table(part, allow_empty=True) for part in parts if part.exists()]
            if tables:
                write_table(output_dir / directory / name, {utt: line for t in tables for utt, line in t.items()})
    info = {**infos[0], "num_jobs": num_jobs}
    for key in ("n", "resumed", "malformed", "speech_seconds", "search_seconds", "gpu_seconds"):
        info[key] = sum(one[key] for one in infos)
    info["loops"] = sorted(utt for one in infos for utt in one["loops"])
    info["wall_seconds"] = max(one["wall_seconds"] for one in infos)
    write_info(output_dir, info)
    for job in output_dir.glob("job.*"):  # also those of a run with more of them
        shutil.rmtree(job)
    return info


def _one_line(text: str) -> str:
    return " ".join(text.split())
