"""Joining by utterance id, buckets, and the record around the scores."""

import json
import random

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import corpus_score
from espnet_llmst.scoring.score import (
    align,
    bucket_edges_of,
    duration_buckets,
    environment,
    git_commit,
    length_buckets,
    score_hypotheses,
    split_srt,
)

REFS = {f"utt{i}": f"there are {i} small dogs in the garden" for i in range(8)}
HYPS = {utt: text.replace("small dogs", "dogs" if utt < "utt4" else "small dogs") for utt, text in REFS.items()}
DURATIONS = {utt: 2.5 * i for i, utt in enumerate(REFS)}


def test_result_holds_scores_and_their_origin():
    info = {"wall_seconds": 7.0, "speech_seconds": 1.0, "n": 8}
    result = score_hypotheses(
        HYPS,
        [REFS],
        tgt_lang="en",
        durations=DURATIONS,
        set_name="test.fr-en",
        decode_info=info,
        command="me",
    )
    assert (result["set"], result["n"], result["n_missing"], result["n_empty"]) == ("test.fr-en", 8, 0, 0)
    assert result["speech_seconds"] == sum(DURATIONS.values()) and result["decode_seconds"] == 7.0
    assert result["command"] == "me" and result["environment"] == environment()
    assert {"python", "sacrebleu", "transformers", "espnet_llmst"} <= set(result["environment"])
    for name in ("BLEU", "BLEU_lc", "chrF2", "TER"):
        assert result[name] == corpus_score(name, list(HYPS.values()), [list(REFS.values())], "en")
    assert json.loads(json.dumps(result)) == result


def test_speech_seconds_come_from_the_decoder_without_durations():
    result = score_hypotheses(HYPS, [REFS], tgt_lang="en", decode_info={"speech_seconds": 3.0}, metrics=["chrF2"])
    assert result["speech_seconds"] == 3.0 and result["decode_seconds"] is None and result["buckets"] == {}
    assert "BLEU" not in result


def test_order_of_lines_does_not_matter():
    shuffled = list(HYPS.items())
    random.Random(1).shuffle(shuffled)
    first = score_hypotheses(HYPS, [REFS], tgt_lang="en", durations=DURATIONS)
    other = score_hypotheses(
        dict(shuffled),
        [dict(reversed(REFS.items()))],
        tgt_lang="en",
        durations=dict(reversed(DURATIONS.items())),
    )
    assert other == first


def test_missing_hypothesis():
    hyps = {utt: text for utt, text in HYPS.items() if utt != "utt3"} | {"utt5": " "}
    with pytest.raises(InputError, match=r"1 of 8 reference .* first utt3: .*--allow_missing"):
        score_hypotheses(hyps, [REFS], tgt_lang="en")
    result = score_hypotheses(hyps, [REFS], tgt_lang="en", allow_missing=True)
    assert (result["n"], result["n_missing"], result["n_empty"]) == (8, 1, 1)
    assert result["BLEU"] == score_hypotheses(hyps | {"utt3": ""}, [REFS], tgt_lang="en")["BLEU"]


def test_hypothesis_without_reference():
    with pytest.raises(InputError, match="1 hypothesis utterance.* first zzz"):
        score_hypotheses(HYPS | {"zzz": "x"}, [REFS], tgt_lang="en", allow_missing=True)


def test_references_must_agree():
    with pytest.raises(InputError, match="reference 1 and reference 2 differ .* utt7"):
        score_hypotheses(HYPS, [REFS, {u: t for u, t in REFS.items() if u != "utt7"}], tgt_lang="en")
    with pytest.raises(InputError, match="no reference utterance"):
        score_hypotheses({}, [{}], tgt_lang="en")


def test_buckets_split_at_the_edges_and_score_their_own_utterances():
    ids = duration_buckets(list(REFS), DURATIONS, [5.0, 7.5, 100.0])
    assert ids == {
        "0-5s": ["utt0", "utt1"],
        "5-7.5s": ["utt2"],
        "7.5-100s": ["utt3", "utt4", "utt5", "utt6", "utt7"],
        "100s+": [],
    }
    result = score_hypotheses(HYPS, [REFS], tgt_lang="en", durations=DURATIONS, bucket_edges=[10.0, 100.0])
    early, late, empty = (result["buckets"][name] for name in ("0-10s", "10-100s", "100s+"))
    first = corpus_score("BLEU", list(HYPS.values())[:4], [list(REFS.values())[:4]], "en", n_bootstrap=0)
    assert (early["n"], early["BLEU"]) == (4, first["score"]) and early["BLEU"] < 100
    assert early["ci95"] == corpus_score("BLEU", list(HYPS.values())[:4], [list(REFS.values())[:4]], "en")["ci95"]
    assert (late["n"], late["BLEU"]) == (4, pytest.approx(100)) and empty == {"n": 0}


def test_buckets_by_length_of_the_reference():
    refs = {"a": "one two", "b": "one two three", "c": "one"}
    assert length_buckets(refs, "en", [2, 3]) == {"0-2 words": ["c"], "2-3 words": ["a"], "3 words+": ["b"]}
    assert length_buckets({"a": "天气 很好", "b": "好"}, "zh-CN", [4]) == {"0-4 chars": ["b"], "4 chars+": ["a"]}
    result = score_hypotheses(HYPS, [REFS], tgt_lang="en", length_edges=[8.0, 9.0], n_bootstrap=0)
    assert result["length_buckets"] == {
        "0-8 words": {"n": 0},
        "8-9 words": {"n": 8, "BLEU": result["BLEU"]["score"]},
        "9 words+": {"n": 0},
    }


def test_groups_named_by_a_table():
    groups = dict.fromkeys(list(REFS)[:3], "known") | {list(REFS)[7]: "new", "elsewhere": "other"}
    result = score_hypotheses(HYPS, [REFS], tgt_lang="en", groups=groups, n_bootstrap=0)
    known = corpus_score("BLEU", list(HYPS.values())[:3], [list(REFS.values())[:3]], "en", n_bootstrap=0)
    assert result["groups"]["known"] == {"n": 3, "BLEU": known["score"]}
    assert result["groups"]["new"]["n"] == 1 and result["groups"]["other"] == {"n": 0}


def test_error_rate_bucket_without_words_has_no_score():
    refs, hyps = {"a": "one dog", "b": "[noise]"}, {"a": "one dog", "b": "hm"}
    result = score_hypotheses(
        hyps, [refs], tgt_lang="de", durations={"a": 1, "b": 9}, bucket_edges=[5], metrics=["WER"]
    )
    assert result["buckets"] == {"0-5s": {"n": 1, "WER": 0.0, "ci95": [0.0, 0.0]}, "5s+": {"n": 1}}
    assert result["WER"]["score"] == pytest.approx(50)


def test_every_utterance_needs_a_duration():
    with pytest.raises(InputError, match="utterance utt0 has no duration"):
        score_hypotheses(HYPS, [REFS], tgt_lang="en", durations={"utt1": 1.0})


@pytest.mark.parametrize("text", ["", "5,x", "10,5", "0,5", "5,5", "-1,5", "nan"])
def test_bad_bucket_edges(text):
    with pytest.raises(InputError, match="rising list"):
        bucket_edges_of(text)


def test_bucket_edges():
    assert bucket_edges_of("5,10,15.5") == [5.0, 10.0, 15.5]
    assert bucket_edges_of("lst") == [5, 10, 15, 20, 50] and bucket_edges_of("aligned") == [10, 20]
    assert bucket_edges_of("auto", [float(i) for i in range(10)]) == [2, 4, 6, 8]
    assert bucket_edges_of("auto", [1.0, 1.0, 1.0, 7.0, 7.0]) == [7.0]
    assert bucket_edges_of("auto", [3.0]) == []


def test_srt_output_splits_at_its_tags():
    hyps = {"a": "Guten Tag.<|deu|><|eng|> Good day.", "b": "Ja <|eng|>", "c": "<|deu|><|eng|>x<|deu|><|eng|>y"}
    transcripts, translations, malformed = split_srt(hyps, "<|deu|><|eng|>")
    assert transcripts == {"a": "Guten Tag.", "b": "Ja <|eng|>", "c": ""} and malformed == 1
    assert translations == {"a": "Good day.", "b": "", "c": "x<|deu|><|eng|>y"}


def test_aligned_columns_are_in_the_order_of_ids():
    ids, hyps, refs, missing = align({"b": "2", "é": "3"}, [{"é": "z", "b": "y", "a": "x"}], allow_missing=True)
    assert (ids, hyps, refs, missing) == (["a", "b", "é"], ["", "2", "3"], [["x", "y", "z"]], 1)


def test_commit_is_of_our_code_or_unknown():
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
