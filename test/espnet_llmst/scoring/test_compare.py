"""llmst_compare: sacreBLEU's paired tests, buckets, changed utterances, and decodes read back from scores.json."""

import json
import re
import subprocess
import sys

import pytest

from espnet_llmst.bin import llmst_compare, llmst_score
from espnet_llmst.cli import run
from espnet_llmst.scoring.compare import changed_utterances, compare, paired_test, sentence_chrf, verdict
from espnet_llmst.scoring.decodes import Sources, find_scores, load

WORDS = "the a small green house dog sees buys sleeps near far garden river today never".split()
REF = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(4 + i % 9)) + "." for i in range(60)]
FAIR = [line.replace("garden", "yard") if i % 2 else line for i, line in enumerate(REF)]
POOR = [line.replace("the", "one").replace("river", "sea") if i % 3 else "no" for i, line in enumerate(REF)]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"utt{i:02d} {line}\n" for i, line in enumerate(lines)), encoding="utf-8")
    return str(path)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe with decodes of two methods, scored from inside it."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "dump" / "raw" / "test.de-en"
    write(data / "text.tc.en", REF)
    write(data / "utt2num_samples", [16000 * (1 + i % 20) for i in range(60)])
    for method, hyps in (("poor", POOR), ("fair", FAIR)):
        write(tmp_path / f"exp/{method}/1_all/decode_beam5/test.de-en/1best_recog/text", hyps)
        score(method)
    return tmp_path


def score(method):
    """As stage 8 does."""
    decode = f"exp/{method}/1_all/decode_beam5/test.de-en"
    options = f"--hyp {decode}/1best_recog/text --ref dump/raw/test.de-en/text.tc.en --tgt_lang en"
    more = f"--durations dump/raw/test.de-en/utt2num_samples --out {decode}/scores.json --metrics BLEU chrF2"
    assert run(llmst_score.main, f"{options} {more}".split()) == 0


NEAR = [FAIR[i] if i % 5 else REF[i].replace("small", "big") for i in range(60)]


def sacrebleu_command(tmp_path, option):
    """What the sacrebleu command prints of FAIR against NEAR (its JSON form fails on its own float32)."""
    names = ("r", "near.txt", "fair.txt")
    for name, lines in zip(names, (REF, NEAR, FAIR), strict=True):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    options = [names[0], "-i", *names[1:], option, "-m", "bleu", "chrf", "ter", "-w", "6", "--format", "text"]
    command = [sys.executable, "-m", "sacrebleu", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path)
    return done.stdout


def test_both_tests_equal_the_sacrebleu_command(tmp_path):
    bootstrap, randomised = sacrebleu_command(tmp_path, "--paired-bs"), sacrebleu_command(tmp_path, "--paired-ar")
    triple, chance = r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", r"\(p = ([\d.]+)\)"
    scores = [[float(value) for value in found] for found in re.findall(triple, bootstrap)]
    p_bs, p_ar = ([float(value) for value in re.findall(chance, text)] for text in (bootstrap, randomised))
    assert len(scores) == 6 and len(p_bs) == len(p_ar) == 3 and max(p_bs) > 0.001
    for i, name in enumerate(("BLEU", "chrF2", "TER")):
        ours = paired_test(name, (NEAR, FAIR), [REF], "en")
        assert (ours["p_bootstrap"], ours["p_randomisation"]) == pytest.approx((p_bs[i], p_ar[i]), abs=1e-4)
        for system, row in enumerate((scores[i], scores[3 + i])):
            assert ours["scores"][system] == pytest.approx(row[0], abs=1e-5)
            bounds = [max(0, row[1] - row[2]), row[1] + row[2] if name == "TER" else min(100, row[1] + row[2])]
            assert ours["ci95"][system] == pytest.approx(bounds, abs=1e-4)
        assert ours["difference_ci95"][0] < ours["difference"] < ours["difference_ci95"][1]
        assert f"{name:10} {ours['signatures'][0]}\n" in bootstrap
        assert f"{name:10} {ours['signatures'][1]}\n" in randomised


def test_no_difference_is_found_between_equals():
    half = [FAIR[i] if i % 4 < 2 else REF[i] for i in range(60)]
    other = [REF[i] if i % 4 < 2 else FAIR[i] for i in range(60)]
    result = paired_test("chrF2", (half, other), [REF], "en", n_trials=1000)
    assert result["p_bootstrap"] > 0.05 and result["p_randomisation"] > 0.05
    low, high = result["difference_ci95"]
    assert low < 0 < high and verdict("chrF2", result) == "no difference shown"
    same = paired_test("chrF2", (FAIR, FAIR), [REF], "en", n_trials=10)
    assert same["p_bootstrap"] is same["p_randomisation"] is None and verdict("chrF2", same) == "the same texts"


def test_verdict_heeds_the_direction_of_the_metric():
    ter = paired_test("TER", (POOR, FAIR), [REF], "en", n_trials=500)
    assert ter["difference"] < 0 and verdict("TER", ter) == "B better"
    bleu = paired_test("BLEU", (FAIR, POOR), [REF], "en", n_trials=500)
    assert bleu["difference"] < 0 and verdict("BLEU", bleu) == "A better"


def test_error_rates_have_paired_tests_too():
    result = paired_test("WER", (POOR, FAIR), [REF], "en", n_trials=500)
    assert result["difference"] < 0 and result["p_bootstrap"] < 0.01 and verdict("WER", result) == "B better"
    assert "norm:whisper-english" in result["signatures"][1]


def test_statistics_are_extracted_once_per_text(monkeypatch):
    from sacrebleu.metrics import TER

    calls, extract = [], TER._extract_corpus_statistics
    monkeypatch.setattr(TER, "_extract_corpus_statistics", lambda *args: calls.append(1) or extract(*args))
    paired_test("TER", (POOR, FAIR), [REF], "en", n_trials=10, n_bootstrap=10)
    assert len(calls) == 2


def test_changed_utterances_are_sorted_by_gain(recipe):
    (a,), (b,) = (load(recipe / "exp" / name, Sources()) for name in ("poor", "fair"))
    rows = changed_utterances(a, b)
    gains = [row["chrF2"][1] - row["chrF2"][0] for row in rows]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0
    assert {row["utt"] for row in rows} == {f"utt{i:02d}" for i in range(60) if POOR[i] != FAIR[i]}
    first = rows[0]
    number = int(first["utt"][3:])
    assert first["hyps"] == [POOR[number], FAIR[number]] and first["seconds"] == 1 + number % 20
    assert first["chrF2"] == [sentence_chrf([text], [[REF[number]]])[0] for text in first["hyps"]]


def test_buckets_hold_their_own_tests(recipe):
    (a,), (b,) = (load(recipe / "exp" / name, Sources()) for name in ("poor", "fair"))
    result = compare(a, b, ["BLEU"], bucket_edges=[11.0, 99.0], length_edges=[8.0], n_trials=100, n_bootstrap=100)
    assert [bucket["n"] for bucket in result["buckets"].values()] == [30, 30, 0]
    late = [i for i in range(60) if i % 20 >= 10]
    columns = [[lines[i] for i in late] for lines in (POOR, FAIR, REF)]
    by_hand = paired_test("BLEU", tuple(columns[:2]), columns[2:], "en", n_trials=100, n_bootstrap=100)
    assert result["buckets"]["11-99s"] == {"n": 30, **by_hand}
    assert set(result["length_buckets"]) == {"0-8 words", "8 words+"}
    assert result["n_equal"] + len(result["changed"]) == 60


def test_command_on_decode_folders(recipe, capsys):
    options = ["exp/poor", "exp/fair/1_all/decode_beam5/test.de-en", "--top", "1", "--json", "out.json"]
    assert run(llmst_compare.main, [*options, "--n_trials", "100", "--metrics", "BLEU"]) == 0
    text = capsys.readouterr().out
    assert "## test.de-en: 60 utterances" in text and "- A: poor/1\\_all/beam5" in text
    assert re.search(r"^\| BLEU \| [\d.]+ \[.*\| B better \|$", text, re.M)
    assert "| 0-5s, 12 | " in text and "### BLEU by reference length" in text
    assert text.count("chrF2 ") == 2 and "Greatest gains" in text and "Greatest losses" in text
    (result,) = json.loads((recipe / "out.json").read_text(encoding="utf-8"))
    assert result["systems"] == ["poor/1_all/beam5", "fair/1_all/beam5"] and "chrF2" not in result["metrics"]
    heads = [line for line in text.split("\n") if line.startswith("|")]
    assert len({line.count("|") for line in heads}) == 1


def test_command_on_hypothesis_files(recipe, capsys):
    hyps = [write(recipe / name, lines) for name, lines in (("a", POOR), ("b", FAIR))]
    options = ["--ref", "dump/raw/test.de-en/text.tc.en", "--tgt_lang", "en", "--n_trials", "100"]
    assert run(llmst_compare.main, [*hyps, *options, "--metrics", "chrF2"]) == 0
    text = capsys.readouterr().out
    assert "B better" in text and "by duration" not in text
    assert run(llmst_compare.main, [hyps[0], "exp/fair", *options, "--metrics", "chrF2"]) == 0


def test_text_cannot_break_the_markdown(recipe, capsys):
    nasty = "| <script>alert(1)</script> `x` *y* [z](u)"
    write(recipe / "exp/fair/1_all/decode_beam5/test.de-en/1best_recog/text", [nasty, "", *FAIR[2:]])
    options = ["--n_trials", "10", "--metrics", "chrF2", "--top", "60"]
    assert run(llmst_compare.main, ["exp/poor", "exp/fair", *options]) == 1
    assert "text has changed since this was scored; run stage 8 again" in capsys.readouterr().err
    score("fair")
    assert run(llmst_compare.main, ["exp/poor", "exp/fair", *options]) == 0
    text = capsys.readouterr().out
    assert "\\| \\<script\\>alert(1)\\</script\\> \\`x\\` \\*y\\* \\[z\\](u)" in text and "*(empty)*" in text


def test_moved_experiment_finds_its_decode_and_data(recipe, monkeypatch, capsys):
    (recipe / "elsewhere").mkdir()
    (recipe / "exp").rename(recipe / "elsewhere" / "exp")
    (recipe / "dump" / "raw").rename(recipe / "elsewhere" / "sets")
    monkeypatch.chdir("/")
    folders = [str(recipe / "elsewhere" / "exp" / name) for name in ("poor", "fair")]
    options = ["--n_trials", "10", "--metrics", "chrF2"]
    assert run(llmst_compare.main, [*folders, *options]) == 1
    assert "give their dump/raw with --data" in capsys.readouterr().err
    assert run(llmst_compare.main, [*folders, *options, "--data", str(recipe / "elsewhere" / "sets")]) == 0


def test_phases_in_natural_order_without_controls(tmp_path):
    for name in ("10_last/d/s/scores.json", "2_next/d/s/scores.json", "2_next/d/s/scores_shuffled.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.parts[-4] for path in find_scores(tmp_path)] == ["2_next", "10_last"]


def error_of(capsys, *argv):
    assert run(llmst_compare.main, list(argv)) == 1
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    return lines[0]


def test_bad_input(recipe, capsys):
    assert "nowhere: no such file or folder" in error_of(capsys, "nowhere", "exp/fair")
    assert "dump: no scores.json" in error_of(capsys, "exp/poor", "dump")
    hyp = write(recipe / "hyp", FAIR[:9])
    assert "hyp: hypotheses without scores.json need --ref" in error_of(capsys, hyp, "exp/fair")
    refs = ["--ref", write(recipe / "ref", REF[:9]), "--tgt_lang", "en"]
    assert "hold different utterances, first utt09" in error_of(capsys, hyp, "exp/fair", *refs)
    refs[1] = write(recipe / "ref", ["other", *REF[1:]])
    other = write(recipe / "other", FAIR)
    assert "have different references, first of utt00" in error_of(capsys, other, "exp/fair", *refs)
    assert "was decoded more than once there" in error_of(capsys, "exp", "exp/fair")
    assert "rising list" in error_of(capsys, "exp/poor", "exp/fair", "--buckets", "best")
    scores = recipe / "exp/fair/1_all/decode_beam5/test.de-en/scores.json"
    scores.write_text('{"BLEU": {"score": 3}}')
    assert "its 'command' names no --hyp" in error_of(capsys, "exp/poor", "exp/fair")
    scores.write_text("{")
    assert "cannot be read as JSON" in error_of(capsys, "exp/poor", "exp/fair")


def test_start_up_is_light():
    code = "import sys, espnet_llmst.bin.llmst_compare as m; m.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_options_of_a_file_are_found_again(recipe, capsys):
    """A decode that was scored by --config is read back; --n_bootstrap 0 is one clear line."""
    decode = "exp/fair/1_all/decode_beam5/test.de-en"
    settings = {"hyp": f"{decode}/1best_recog/text", "ref": ["dump/raw/test.de-en/text.tc.en"], "tgt_lang": "en"}
    (recipe / "score.yaml").write_text(json.dumps(settings | {"metrics": ["BLEU", "WER"]}))
    assert run(llmst_score.main, ["--config", "score.yaml", "--out", f"{decode}/scores.json"]) == 0
    assert run(llmst_compare.main, ["exp/poor", "exp/fair", "--n_trials", "10", "--n_bootstrap", "10"]) == 0
    assert "TER" in capsys.readouterr().out  # a translation that also has a word error rate stays one
    assert run(llmst_compare.main, ["exp/poor", "exp/fair", "--n_bootstrap", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err
