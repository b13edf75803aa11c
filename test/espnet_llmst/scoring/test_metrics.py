"""Metrics against sacreBLEU's command line and jiwer, tokenizers, normalisers, intervals."""

import importlib.util
import json
import subprocess
import sys
import time

import jiwer
import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import (
    ALL_METRICS,
    bleu_tokenizer,
    corpus_score,
    error_rate,
    sacrebleu_score,
    whisper_normalizer,
)

EN_HYP = [
    "The dog bit the man.",
    "It wasn't surprising.",
    "",
    "The man HAD just bitten him.",
    "Yes, 12.5 per cent",
]
EN_REF = [
    "The dog bit a man.",
    "It was not unexpected.",
    "Go!",
    "The man had bitten him.",
    "Yes, 12.5 percent.",
]
ZH_HYP = ["今天天气很好。", "我们明天去北京", "他在2020年买了iPhone。", "谢谢你"]
ZH_REF = ["今天的天气很好。", "我们后天去北京。", "他2020年买了一部iPhone。", "谢谢您!"]
ZH_TER = ["--ter-normalized", "--ter-asian-support"]


def sacrebleu_command(tmp_path, hyps, refs, *options):
    (tmp_path / "hyp").write_text("".join(f"{line}\n" for line in hyps), encoding="utf-8")
    (tmp_path / "ref").write_text("".join(f"{line}\n" for line in refs), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        str(tmp_path / "ref"),
        "-i",
        str(tmp_path / "hyp"),
        "-w",
        "9",
    ]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("lang", "hyps", "refs", "options"),
    [("en", EN_HYP, EN_REF, []), ("zh-CN", ZH_HYP, ZH_REF, ["-tok", "zh", *ZH_TER])],
)
def test_scores_intervals_and_signatures_equal_the_sacrebleu_command(tmp_path, lang, hyps, refs, options):
    theirs = sacrebleu_command(tmp_path, hyps, refs, "-m", "bleu", "chrf", "ter", "--confidence", *options)
    for name, their in zip(("BLEU", "chrF2", "TER"), theirs, strict=True):
        ours = sacrebleu_score(name, hyps, [refs], lang)
        assert their["name"] == name
        assert ours["score"] == pytest.approx(their["score"], abs=1e-8)
        assert ours["signature"] == their["signature"]
        mean, half = their["confidence_mean"], their["confidence_var"]
        expected = [max(mean - half, 0), mean + half if name == "TER" else min(mean + half, 100)]
        assert ours["ci95"] == pytest.approx(expected, abs=1e-5)  # the command averages in float32


def test_lower_cased_bleu_equals_the_sacrebleu_command(tmp_path):
    theirs = sacrebleu_command(tmp_path, EN_HYP, EN_REF, "-lc")
    ours = sacrebleu_score("BLEU_lc", EN_HYP, [EN_REF], "en", n_bootstrap=0)
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-8)
    assert ours["score"] > sacrebleu_score("BLEU", EN_HYP, [EN_REF], "en", n_bootstrap=0)["score"]
    assert "case:lc" in ours["signature"] and "ci95" not in ours


@pytest.mark.parametrize(
    ("lang", "tokenizer"),
    [
        ("de", "13a"),
        ("pt_br", "13a"),
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("ZH_tw", "zh"),
        ("th", "char"),
        ("my", "char"),
    ],
)
def test_tokenizer_by_language(lang, tokenizer):
    assert bleu_tokenizer(lang) == tokenizer


def test_japanese_without_mecab_names_the_remedy(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "MeCab" else find(name))
    with pytest.raises(InputError, match=r"pip install 'sacrebleu\[ja\]'"):
        corpus_score("BLEU", ["猫"], [["猫"]], "ja-JP")
    assert corpus_score("chrF2", ["猫です"], [["猫です"]], "ja")["score"] == pytest.approx(100)


def test_japanese_with_mecab():
    pytest.importorskip("MeCab")
    pytest.importorskip("ipadic")
    score = corpus_score("BLEU", ["私は猫が好きです。"], [["私は犬が好きです。"]], "ja", n_bootstrap=0)
    assert 0 < score["score"] < 100 and "tok:ja-mecab" in score["signature"]


def test_another_tokenizer_is_named_in_the_signature():
    assert "tok:intl" in corpus_score("BLEU", EN_HYP, [EN_REF], "en", tokenize="intl")["signature"]


def test_unknown_tokenizer_is_bad_input():
    with pytest.raises(InputError, match="tokenizer 'nonsense'"):
        corpus_score("BLEU", EN_HYP, [EN_REF], "en", tokenize="nonsense")


def test_empty_hypotheses_score_zero_with_an_interval():
    score = corpus_score("BLEU", ["", ""], [["a b", "c d"]], "en")
    assert score["score"] == 0.0 and score["ci95"] == [0.0, 0.0]


def test_intervals_stay_within_the_range_of_the_metric():
    hyps = ["a b c d e"] * 9 + ["f"]
    refs = ["a b c d e"] * 9 + ["f g h i j k l m n o p q r s t u v w x y z a b c d e f g"]
    for name in ("BLEU", "chrF2", "TER"):
        score = corpus_score(name, hyps, [refs], "en")
        assert 0 <= score["ci95"][0] <= score["score"] <= score["ci95"][1] <= 100


def test_interval_when_some_resamples_have_no_match():
    for name in ("BLEU", "BLEU_lc", "chrF2", "TER"):
        score = corpus_score(name, ["a b c d e", "x"], [["a b c d e", "q"]], "en")
        assert score["ci95"][0] < score["score"] < 100


def test_bootstrap_is_fast_and_repeatable():
    refs = [" ".join(f"word{(i * j) % 91}" for j in range(3 + i % 25)) + "." for i in range(300)]
    hyps = [ref.replace("word7", "other").replace("word21 ", "") for ref in refs]
    start = time.process_time()
    first = {name: corpus_score(name, hyps, [refs], "de") for name in ("BLEU", "BLEU_lc", "chrF2", "TER")}
    assert time.process_time() - start < 2
    assert {name: corpus_score(name, hyps, [refs], "de") for name in first} == first


def test_wer_equals_jiwer_on_normalised_text():
    hyps, refs = (
        ["Ça va, l'ami", "", "Drei   Hunde [Lachen] bellen"],
        ["Ça va l’ami ?", "Oui.", "drei hunde bellten!"],
    )
    by_hand = (["ça va l ami", "oui", "drei hunde bellten"], ["ça va l ami", "", "drei hunde bellen"])
    assert error_rate("WER", hyps, refs, "fr")["score"] == pytest.approx(100 * jiwer.wer(*by_hand))
    assert error_rate("CER", hyps, refs, "fr")["score"] == pytest.approx(100 * jiwer.cer(*by_hand))
    assert error_rate("WER", hyps, refs, "fr")["score"] == pytest.approx(100 * 2 / 8)


def test_english_has_a_normaliser_of_its_own():
    hyps, refs = ["Mister Smith will not buy twenty-five dogs"], ["Mr. Smith won't buy 25 dogs."]
    score = error_rate("WER", hyps, refs, "en-US")
    assert score["score"] == 0 and "norm:whisper-english" in score["signature"]
    assert error_rate("WER", hyps, refs, "de")["score"] > 0


def test_normaliser_needs_no_torch():
    code = (
        "import sys; from espnet_llmst.scoring.metrics import whisper_normalizer; "
        "whisper_normalizer('en'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert whisper_normalizer("fr")[0]("Ça va?").strip() == "ça va"


def test_cer_of_chinese_ignores_blanks():
    score = error_rate("CER", ["今天 天气,很好"], ["今天天气很坏。"], "zh")
    assert score["score"] == pytest.approx(100 / 6) and "blanks:no" in score["signature"]


def test_bad_requests():
    with pytest.raises(InputError, match="unknown metric 'METEOR'"):
        corpus_score("METEOR", EN_HYP, [EN_REF], "en")
    with pytest.raises(InputError, match="takes one reference, not 2"):
        corpus_score("WER", EN_HYP, [EN_REF, EN_REF], "en")
    with pytest.raises(InputError, match="every reference is empty"):
        corpus_score("WER", ["a"], [["[laughter]"]], "en")
    assert set(ALL_METRICS) == {"BLEU", "BLEU_lc", "chrF2", "TER", "WER", "CER"}
