"""Writes a corpus kept as Opus and two tables in the layout of mboshi-french-parallel-corpus.

The tar holds ``*/opus/<id>.opus`` and ``*/{train,dev}.tsv`` with the columns id, n_samples_16k, mboshi, french.
"""

import csv
import io
import re
import tarfile
from pathlib import Path

import soundfile
import soxr

from espnet_llmst.cli import get_parser

RATE = 16000


def cleaned(text: str) -> str:
    """Lower case, without punctuation but the apostrophe."""
    return " ".join(re.sub(r"[^\w' ]", " ", text.lower()).split())


def unpack(tar: str | Path, root: Path) -> dict[str, int]:
    """Write ``<root>/full_corpus_newsplit``; utterances by split."""
    counts = {}
    with tarfile.open(tar) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        for split in ("train", "dev"):
            table = archive.extractfile(members[f"{split}.tsv"]).read().decode("utf-8")
            rows = list(csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))
            folder = root / "full_corpus_newsplit" / split
            folder.mkdir(parents=True, exist_ok=True)
            for row in rows:
                samples, rate = soundfile.read(archive.extractfile(members[f"{row['id']}.opus"]), dtype="float32")
                samples = soxr.resample(samples, rate, RATE)[: int(row["n_samples_16k"])]
                soundfile.write(folder / f"{row['id']}.wav", samples, RATE, subtype="PCM_16")
                for suffix, text in (("mb", row["mboshi"]), ("fr", row["french"])):
                    (folder / f"{row['id']}.{suffix}").write_text(text + "\n", encoding="utf-8")
                    (folder / f"{row['id']}.{suffix}.cleaned").write_text(cleaned(text) + "\n", encoding="utf-8")
            counts[split] = len(rows)
    return counts


if __name__ == "__main__":
    parser = get_parser("unpack_opus.py", "Write the Opus form of Mboshi-French in its original layout")
    parser.add_argument("--tar", required=True)
    parser.add_argument("--out_dir", type=Path, required=True)
    args = parser.parse_args()
    print(unpack(args.tar, args.out_dir))
