"""The llmst_score command: sacreBLEU's published example, and bad input as one line."""

import json
import subprocess
import sys

import pytest

from espnet_llmst.bin import llmst_score
from espnet_llmst.cli import run

# The example of sacreBLEU's README, score included
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
    ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
]


def table(path, lines, first=1):
    path.write_text("".join(f"utt{i} {line}\n" for i, line in enumerate(lines, first)), encoding="utf-8")
    return str(path)


@pytest.fixture
def example(tmp_path):
    """Options that score the example; the output is ``decode_x/test.en/scores.json``."""
    refs = [table(tmp_path / f"ref{i}", lines) for i, lines in enumerate(REFERENCES)]
    (tmp_path / "test.en").mkdir()
    hyp = table(tmp_path / "hyp", SYSTEM)
    return [
        "--hyp",
        hyp,
        "--ref",
        *refs,
        "--tgt_lang",
        "en",
        "--out",
        str(tmp_path / "test.en" / "scores.json"),
    ]


def scores(tmp_path):
    return json.loads((tmp_path / "test.en" / "scores.json").read_text(encoding="utf-8"))


def error_of(capsys, argv):
    assert run(llmst_score.main, argv) == 1
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    return lines[0]


def test_example_of_sacrebleu(example, tmp_path, capsys):
    assert run(llmst_score.main, example) == 0
    result = scores(tmp_path)
    assert result["BLEU"]["score"] == pytest.approx(48.530827, abs=1e-6)
    assert result["BLEU"]["signature"].startswith("nrefs:2|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp")
    assert (result["set"], result["n"], result["buckets"]) == ("test.en", 3, {})
    assert result["command"].startswith("llmst_score --hyp ")
    assert capsys.readouterr().out.startswith("test.en: n=3  BLEU 48.5 [")


@pytest.mark.parametrize(("tokenizer", "score"), [("none", 49.1919566), ("intl", 43.91623493)])
def test_example_with_other_tokenizers(example, tmp_path, tokenizer, score):
    assert run(llmst_score.main, [*example, "--tokenize", tokenizer]) == 0
    assert scores(tmp_path)["BLEU"]["score"] == pytest.approx(score, abs=1e-6)


def test_durations_and_decode_info(example, tmp_path):
    durations = table(tmp_path / "utt2num_samples", [16000, 80000, 320000])
    (tmp_path / "decode.json").write_text('{"wall_seconds": 13.0, "speech_seconds": 99.0, "n": 3}')
    more = ["--durations", durations, "--decode_info", str(tmp_path / "decode.json"), "--buckets", "5,30"]
    assert run(llmst_score.main, [*example, *more, "--set", "tst"]) == 0
    result = scores(tmp_path)
    assert (result["set"], result["speech_seconds"], result["decode_seconds"]) == ("tst", 26.0, 13.0)
    assert {name: bucket["n"] for name, bucket in result["buckets"].items()} == {
        "0-5s": 1,
        "5-30s": 2,
        "30s+": 0,
    }
    assert result["buckets"]["0-5s"]["BLEU"] == pytest.approx(100)


def test_metrics_of_a_translation_and_more(example, tmp_path):
    assert run(llmst_score.main, example) == 0
    names = {name for name, value in scores(tmp_path).items() if isinstance(value, dict) and "signature" in value}
    assert names == {"BLEU", "BLEU_lc", "chrF2", "chrF2_lc", "TER", "TER_cased"}
    assert run(llmst_score.main, [*example, "--metrics", "chrF2", "--also", "TER"]) == 0
    result = scores(tmp_path)
    assert "BLEU" not in result and {"chrF2", "TER"} <= set(result)
    assert list(result["length_buckets"]["0-10 words"]) == ["n", "chrF2", "ci95"]


def test_srt_output_is_split(tmp_path):
    hyp = table(tmp_path / "hyp", ["drei Hunde<|de|><|en|>three dogs", "ja"])
    refs = {"asr": table(tmp_path / "de", ["Drei Hunde!", "Ja."]), "st": table(tmp_path / "en", ["three dogs", "yes"])}
    out = str(tmp_path / "test.en" / "scores.json")
    for kind, ref in refs.items():
        options = ["--hyp", hyp, "--ref", ref, "--tgt_lang", "de", "--kind", kind, "--srt_tags", "<|de|><|en|>"]
        assert run(llmst_score.main, [*options, "--out", out]) == 0
        assert scores(tmp_path)["n_malformed"] == 1
        if kind == "asr":
            assert scores(tmp_path)["WER"]["score"] == 0
        else:
            assert scores(tmp_path)["TER"]["score"] == pytest.approx(100 / 3) and scores(tmp_path)["n_empty"] == 1


def test_asr(tmp_path, capsys):
    hyp, ref = (
        table(tmp_path / "hyp", ["drei hunde", "ja"]),
        table(tmp_path / "ref", ["Drei Hunde!", "Ja, ja."]),
    )
    out = str(tmp_path / "scores.json")
    assert run(llmst_score.main, f"--hyp {hyp} --ref {ref} --tgt_lang de --kind asr --out {out}".split()) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["WER"]["score"] == pytest.approx(25) and "CER" in result and "BLEU" not in result
    assert "WER 25.0" in capsys.readouterr().out


def test_missing_empty_and_extra_hypotheses(example, tmp_path, capsys):
    table(tmp_path / "hyp", SYSTEM[:2])
    assert "first utt3: finish decoding" in error_of(capsys, example)
    assert not (tmp_path / "test.en" / "scores.json").exists()
    (tmp_path / "hyp").write_text("utt1 The dog bit the man.\nutt2\n", encoding="utf-8")
    assert run(llmst_score.main, [*example, "--allow_missing"]) == 0
    assert (scores(tmp_path)["n_missing"], scores(tmp_path)["n_empty"]) == (1, 1)
    capsys.readouterr()
    table(tmp_path / "hyp", [*SYSTEM, "more"])
    assert "have no reference, first utt4" in error_of(capsys, example)


def test_separators_of_unicode_do_not_split_lines(tmp_path):
    texts = ["one\u2028two three four", "five\u0085six seven eight"]
    hyp, ref = table(tmp_path / "hyp", texts), table(tmp_path / "ref", texts)
    out = str(tmp_path / "scores.json")
    assert run(llmst_score.main, ["--hyp", hyp, "--ref", ref, "--tgt_lang", "en", "--out", out]) == 0
    result = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert result["n"] == 2 and result["BLEU"]["score"] == pytest.approx(100)


def test_other_bad_input(example, tmp_path, capsys):
    assert "rising list" in error_of(capsys, [*example, "--buckets", "9,3"])
    assert "--length_buckets 'lst'" in error_of(capsys, [*example, "--length_buckets", "lst"])
    assert "sampling rate" in error_of(capsys, [*example, "--fs", "0"])
    assert "no tokenizer 'x'" in error_of(capsys, [*example, "--tokenize", "x"])
    durations = table(tmp_path / "utt2num_samples", ["16000", "long", "3"])
    assert "utterance utt2: 'long'" in error_of(capsys, [*example, "--durations", durations])
    (tmp_path / "decode.json").write_text("[")
    assert "decode.json: cannot be read" in error_of(capsys, [*example, "--decode_info", str(tmp_path / "decode.json")])
    (tmp_path / "decode.json").write_text("[]")
    assert "not the decode.json" in error_of(capsys, [*example, "--decode_info", str(tmp_path / "decode.json")])
    table(tmp_path / "ref0", ["x"], first=7)
    assert "reference 1 and reference 2 differ" in error_of(capsys, example)


def test_module_exits_with_one_line(example, tmp_path):
    table(tmp_path / "hyp", SYSTEM[:1])
    command = [sys.executable, "-m", "espnet_llmst.bin.llmst_score", *example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("llmst_score: error: 2 of 3 reference") and done.stderr.count("\n") == 1


def test_start_up_is_light():
    code = "import sys, espnet_llmst.bin.llmst_score as m; m.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


COMET_SCORE = """#!{python}
import json, sys
args = sys.argv[1:]
given = {{option: args[args.index(option) + 1] for option in ("-s", "-t", "-r", "--model", "--gpus", "--to_json")}}
lines = {{option: open(given[option], encoding="utf-8").read().split("\\n")[:-1] for option in ("-s", "-t", "-r")}}
if given["--model"] == "none":
    sys.exit("first line\\nno such model")
rows = [{{"COMET": 1.0 if s == "Quelle" and t == r else 0.5}} for s, t, r in zip(*lines.values(), strict=True)]
json.dump({{given["-t"]: rows}}, open(given["--to_json"], "w"))
"""


@pytest.fixture
def comet(tmp_path):
    """A stand-in for unbabel-comet's command with its options and its form of answer; its scores are made up."""
    path = tmp_path / "comet-score"
    path.write_text(COMET_SCORE.format(python=sys.executable))
    path.chmod(0o755)
    ref = table(tmp_path / "ref", ["same", "two\u2028lines", "other"])
    hyp, src = table(tmp_path / "hyp", ["same", "two lines", "x"]), table(tmp_path / "src", ["Quelle"] * 3)
    options = ["--hyp", hyp, "--ref", ref, "--tgt_lang", "en", "--out", str(tmp_path / "test.en" / "scores.json")]
    return [*options, "--src", src, "--comet", str(path)]


def test_comet(comet, tmp_path, capsys):
    assert run(llmst_score.main, [*comet, "--comet_model", "some/model"]) == 0
    result = scores(tmp_path)["COMET"]
    assert result["score"] == pytest.approx(100 * 2.5 / 3) and result["ci95"] == pytest.approx([50, 100])
    assert result["signature"] == "nrefs:1|bs:1000|seed:12345|model:some/model|comet:unknown"
    assert "COMET 83.3 [50.0, 100.0]" in capsys.readouterr().out


def test_comet_that_cannot_run(comet, example, tmp_path, capsys):
    assert "no such model" in error_of(capsys, [*comet, "--comet_model", "none"])
    message = error_of(capsys, [*comet[:-1], str(tmp_path / "absent")])
    assert "absent: No such file" in message and "pip install unbabel-comet" in message
    assert "wrote no scores" in error_of(capsys, [*comet[:-1], "true"])
    assert "--comet needs the source texts" in error_of(capsys, [*example, "--comet", "true"])
    table(tmp_path / "src", ["Quelle"] * 2)
    assert "utterance utt3 is missing" in error_of(capsys, comet)
