"""Metrics against sacreBLEU's command line and jiwer, tokenizers, normalisers, intervals."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import jiwer
import numpy as np
import pytest
import sentencepiece
from sacrebleu.metrics import BLEU, CHRF, TER

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import (
    ALL_METRICS,
    bleu_tokenizer,
    corpus_score,
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
ASIAN_TER = ["--ter-normalized", "--ter-asian-support"]
JA_HYP = ["私は猫が好きです。", "今日は天気がいい", "東京へ行きました。"]
JA_REF = ["私は犬が好きです。", "今日は天気がとてもいいです。", "昨日、東京に行きました。"]
needs_mecab = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("MeCab", "ipadic")), reason="sacrebleu[ja] is not installed"
)


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
    [
        ("en", EN_HYP, EN_REF, []),
        ("zh-CN", ZH_HYP, ZH_REF, ["-tok", "zh", *ASIAN_TER]),
        pytest.param("ja", JA_HYP, JA_REF, ["-tok", "ja-mecab", *ASIAN_TER], marks=needs_mecab),
    ],
)
def test_scores_intervals_and_signatures_equal_the_sacrebleu_command(tmp_path, lang, hyps, refs, options):
    theirs = sacrebleu_command(tmp_path, hyps, refs, "-m", "bleu", "chrf", "ter", "--confidence", *options)
    for name, their in zip(("BLEU", "chrF2", "TER"), theirs, strict=True):
        ours = corpus_score(name, hyps, [refs], lang)
        assert their["name"] == name
        assert ours["score"] == pytest.approx(their["score"], abs=1e-8)
        assert ours["signature"] == their["signature"]
        mean, half = their["confidence_mean"], their["confidence_var"]
        expected = [max(mean - half, 0), mean + half if name == "TER" else min(mean + half, 100)]
        assert ours["ci95"] == pytest.approx(expected, abs=1e-5)  # the command averages in float32


@pytest.mark.parametrize(
    ("name", "option", "metric"),
    [
        ("BLEU_lc", "-lc", "bleu"),
        ("chrF2_lc", "--chrf-lowercase", "chrf"),
        ("TER_cased", "--ter-case-sensitive", "ter"),
    ],
)
def test_the_other_case_equals_the_sacrebleu_command(tmp_path, name, option, metric):
    theirs = sacrebleu_command(tmp_path, EN_HYP, EN_REF, "-m", metric, option)
    ours = corpus_score(name, EN_HYP, [EN_REF], "en", n_bootstrap=0)
    assert ours.get("verbose_score", "") == theirs.get("verbose_score", "")
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-8) and ours["signature"] == theirs["signature"]
    assert "ci95" not in ours
    default = corpus_score(name.split("_")[0], EN_HYP, [EN_REF], "en", n_bootstrap=0)
    assert ours["score"] > default["score"]  # lower-cased BLEU and chrF2 are better, cased TER is worse
    assert {"case:lc" in ours["signature"], "case:lc" in default["signature"]} == {True, False}


def test_several_references_equal_sacrebleu():
    refs = [EN_REF, [f"{line} Indeed" for line in EN_HYP]]
    for name, metric in (("BLEU", BLEU()), ("chrF2", CHRF()), ("TER", TER())):
        ours = corpus_score(name, EN_HYP, refs, "en", n_bootstrap=0)
        assert ours["score"] == metric.corpus_score(EN_HYP, refs).score
        assert ours["signature"].startswith("nrefs:2|")


SPBLEU = """
import json, sys
from sacrebleu.metrics import BLEU
from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import corpus_score
hyps, refs = json.load(sys.stdin)
try:
    ours = corpus_score("spBLEU", hyps, [refs], "de", n_bootstrap=0)
    ours["theirs"] = BLEU(tokenize="flores200").corpus_score(hyps, [refs]).score
except InputError as error:
    ours = {"error": str(error)}
print(json.dumps(ours))
"""


def spbleu(folder, hyps, refs):
    """spBLEU in a process of its own: sacreBLEU reads the folder of its models when it is imported."""
    environ = {**os.environ, "SACREBLEU": str(folder), "https_proxy": "http://127.0.0.1:9"}  # no network
    options = {"input": json.dumps([hyps, refs]), "env": environ, "capture_output": True, "text": True, "timeout": 60}
    return json.loads(subprocess.run([sys.executable, "-c", SPBLEU], check=True, **options).stdout)


def test_spbleu_is_bleu_of_the_pieces_of_the_flores200_model(tmp_path):
    """With a small model in the place of the published one, which is not at hand without a network."""
    (tmp_path / "text").write_text("\n".join((EN_HYP + EN_REF) * 20), encoding="utf-8")
    (tmp_path / "models").mkdir()
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    model = tmp_path / "models" / "flores200sacrebleuspm"
    with open(model, "wb") as file:
        lines = iter((tmp_path / "text").read_text(encoding="utf-8").split("\n"))
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=file, **options)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    split = [[" ".join(pieces.encode(line, out_type=str)) for line in lines] for lines in (EN_HYP, EN_REF)]
    ours = spbleu(tmp_path, EN_HYP, EN_REF)
    assert ours["score"] == pytest.approx(ours["theirs"])
    assert ours["score"] == pytest.approx(BLEU(tokenize="none").corpus_score(split[0], [split[1]]).score)
    assert "tok:flores200" in ours["signature"]


def test_spbleu_without_its_model_says_where_it_belongs(tmp_path):
    error = spbleu(tmp_path, ["a"], ["a"])["error"]
    assert "flores200" in error and str(tmp_path / "models" / "flores200sacrebleuspm") in error and "\n" not in error


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
        ("zho_Hans", "zh"),
        ("yue_hant_hk", "zh"),
        ("deu", "13a"),
        ("mdw", "13a"),
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


@needs_mecab
def test_japanese_with_mecab():
    score = corpus_score("BLEU", ["私は猫が好きです。"], [["私は犬が好きです。"]], "ja", n_bootstrap=0)
    assert 0 < score["score"] < 100 and "tok:ja-mecab" in score["signature"]


def test_another_tokenizer_is_named_in_the_signature():
    assert "tok:intl" in corpus_score("BLEU", EN_HYP, [EN_REF], "en", tokenize="intl")["signature"]


@pytest.mark.parametrize(("lang", "tok"), [("zh-CN", "char"), ("ja_jp", "char"), ("ko", "char"), ("de", "13a")])
def test_bleu_of_characters_where_there_are_no_words(lang, tok):
    assert f"|tok:{tok}|" in corpus_score("BLEU_char", ["a b"], [["a c"]], lang, n_bootstrap=0)["signature"]


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
    assert corpus_score("WER", hyps, [refs], "fr")["score"] == pytest.approx(100 * jiwer.wer(*by_hand))
    assert corpus_score("CER", hyps, [refs], "fr")["score"] == pytest.approx(100 * jiwer.cer(*by_hand))
    assert corpus_score("WER", hyps, [refs], "fr")["score"] == pytest.approx(100 * 2 / 8)


def test_interval_of_error_rates_is_that_of_resampled_utterances():
    refs = ["eins zwei drei vier"] * 30 + ["fünf sechs"] * 30
    hyps = ["eins zwei drei vier"] * 20 + ["eins drei acht"] * 10 + ["fünf sechs"] * 29 + [""]
    score = corpus_score("WER", hyps, [refs], "de")
    edits = np.array([0] * 20 + [2] * 10 + [0] * 29 + [2])
    words = np.array([4] * 30 + [2] * 30)
    draws = np.random.default_rng(12345).choice(60, size=(1000, 60))
    rates = np.sort(100 * edits[draws].sum(1) / words[draws].sum(1))
    middle, half = rates.mean(), (rates[974] - rates[25]) / 2
    assert score["score"] == pytest.approx(100 * 22 / 180)
    assert score["verbose_score"] == "(Sub = 5.6 Del = 6.7 Ins = 0.0 ref_len = 180)"
    assert score["ci95"] == pytest.approx([middle - half, middle + half], abs=1e-3)
    assert score["signature"].startswith("nrefs:1|bs:1000|seed:12345|norm:whisper-basic|blanks:yes|jiwer:")


def test_english_has_a_normaliser_of_its_own():
    hyps, refs = ["Mister Smith will not buy twenty-five dogs"], ["Mr. Smith won't buy 25 dogs."]
    score = corpus_score("WER", hyps, [refs], "en-US")
    assert score["score"] == 0 and "norm:whisper-english" in score["signature"]
    assert corpus_score("WER", hyps, [refs], "de")["score"] > 0


def test_normaliser_needs_no_torch():
    code = (
        "import sys; from espnet_llmst.scoring.metrics import whisper_normalizer; "
        "whisper_normalizer('en'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert whisper_normalizer("fr")[0]("Ça va?").strip() == "ça va"


def test_cer_of_chinese_ignores_blanks():
    score = corpus_score("CER", ["今天 天气,很好"], [["今天天气很坏。"]], "zh")
    assert score["score"] == pytest.approx(100 / 6) and "blanks:no" in score["signature"]


@pytest.mark.parametrize("lang", ["English", "xx", ""])
def test_a_language_that_is_none_is_bad_input(lang):
    with pytest.raises(InputError, match="language code"):
        bleu_tokenizer(lang)


def test_bad_requests():
    with pytest.raises(InputError, match="unknown metric 'METEOR'"):
        corpus_score("METEOR", EN_HYP, [EN_REF], "en")
    with pytest.raises(InputError, match="takes one reference, not 2"):
        corpus_score("WER", EN_HYP, [EN_REF, EN_REF], "en")
    with pytest.raises(InputError, match="every reference is empty"):
        corpus_score("WER", ["a"], [["[laughter]"]], "en")
    assert set(ALL_METRICS) == {*"BLEU BLEU_lc BLEU_char spBLEU chrF2 chrF2_lc TER TER_cased WER CER".split()}
