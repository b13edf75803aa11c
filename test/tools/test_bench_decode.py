"""The decoding benchmark runs where only torch and transformers are installed, and its figures add up."""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
ABSENT = "espnet espnet2 kaldiio configargparse typeguard humanfriendly torch_complex soundfile jiwer sacrebleu".split()
RUN = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.path[:0] = [{str(REPO)!r}, {str(REPO / "test/espnet_llmst/search")!r}]
import test_graphs_gpu  # runs there too
sys.argv = ["bench_decode.py", *sys.argv[1:]]
runpy.run_path({str(REPO / "tools/bench_decode.py")!r}, run_name="__main__")
"""


def test_llast_8b_made_small(tmp_path):
    options = "--preset llast_8b --scale 0.02 --dtype float32 --rows 2 --rounds 1 --ways engine engine_graphs hf_2"
    file = tmp_path / "bench.json"
    command = [sys.executable, "-c", RUN, *options.split(), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(file.read_text(encoding="utf-8"))
    assert [result["frames"][0] for result in results] == [250, 62]
    for result in results:
        assert result["mean_prompt"] == 20 + result["frames"][0] and not result["failed"]
        assert result["same_hypotheses"] == {"engine_graphs": 4, "hf_2": 4} and result["utterances"] == 4
        assert result["kv_bytes_ratio"] > 2 and result["ratio_hf_batched"] == result["ratios"]["hf_2"] > 0
    first, second = (result["roofline_ms"] for result in results)
    assert first["prefill"] > 3 * second["prefill"] > 0 and first["total"] == first["prefill"] + first["decode"]
    assert "roofline, ms per utterance" in done.stdout
