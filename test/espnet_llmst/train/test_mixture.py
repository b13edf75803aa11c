"""Tasks and directions of a phase become one training set."""

from collections import Counter

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.prompt import Template, load_template
from espnet_llmst.train.mixture import (
    Part,
    choose_utterances,
    decode_task,
    expand_mixture,
    find_sets,
    make_mix,
    parse_direction,
)


@pytest.mark.parametrize(
    ("direction", "pair"),
    [
        ("fr-en", ("fr", "en")),
        ("zh-CN-en", ("zh-CN", "en")),
        ("en-sv-SE", ("en", "sv-SE")),
        ("en_us-de_de", ("en_us", "de_de")),
    ],
)
def test_directions(direction, pair):
    assert parse_direction(direction) == pair


@pytest.mark.parametrize("direction", ["fr", "fr-", "-en", "fr-fr", ""])
def test_bad_direction_is_one_clear_line(direction):
    with pytest.raises(InputError, match="is no direction"):
        parse_direction(direction)


def test_entries_without_directions_take_the_runs_own():
    parts = expand_mixture([{"task": "st"}, {"task": "asr"}], ["fr-en", "de-en"])
    assert parts == [Part("st", "fr", "en"), Part("st", "de", "en"), Part("asr", "fr", "fr"), Part("asr", "de", "de")]
    assert expand_mixture([{"task": "asr", "langs": ["fr"]}, {"task": "st", "directions": ["de-en"]}], []) == [
        Part("asr", "fr", "fr"),
        Part("st", "de", "en"),
    ]


@pytest.mark.parametrize(
    "mixture",
    [
        None,
        [],
        [{"task": "translate"}],
        [{"task": "st", "direction": ["fr-en"]}],
        [{"task": "st", "langs": ["fr"]}],
        [{"task": "asr", "langs": "fr"}],
        [{"task": "st", "hours": "17"}],
    ],
)
def test_bad_mixture_is_one_clear_line(mixture):
    with pytest.raises(InputError, match="mixture: "):
        expand_mixture(mixture, ["fr-en"])


def test_mix_of_translation_and_transcription(dump_dir, prompt_file, tmp_path):
    parts = expand_mixture([{"task": "st"}, {"task": "asr", "langs": ["fr"]}], ["fr-en", "de-en"])
    assert find_sets(dump_dir, "train", parts) == ["train.fr-en", "train.de-en"]
    counts = make_mix(dump_dir, "train", parts, load_template(prompt_file), tmp_path / "mix")
    assert set(counts.values()) == {3}
    texts, tasks = read_table(tmp_path / "mix/text"), read_table(tmp_path / "mix/utt2task")
    assert texts.keys() == tasks.keys() == read_table(tmp_path / "mix/wav.scp").keys() and len(texts) == 9
    assert texts["st.fr-en.fr_spk-train1"] == "The train 1." and tasks["st.fr-en.fr_spk-train1"] == "st fr en"
    assert texts["asr.fr-fr.fr_spk-train1"] == "Le train 1." and tasks["asr.fr-fr.fr_spk-train1"] == "asr fr fr"
    assert not (tmp_path / "mix/transcript").exists()


def test_transcription_reads_the_methods_own_sets(dump_dir):
    parts = expand_mixture([{"task": "asr", "langs": ["fr"]}], [])
    (dump_dir / "train.fr-de").mkdir()  # of another method
    assert find_sets(dump_dir, "train", parts) == ["train.fr-de"]
    assert find_sets(dump_dir, "train", parts, ["de-en", "fr-en"]) == ["train.fr-en"]
    (dump_dir / "train.fr").mkdir()  # of a corpus for transcription; augmentation is the speech that is translated
    assert find_sets(dump_dir, "train", parts, ["de-en", "fr-en"]) == ["train.fr"]
    augmented = expand_mixture([{"task": "st"}, {"task": "asr", "langs": ["fr"]}], ["fr-en"])
    assert find_sets(dump_dir, "train", augmented, ["fr-en"]) == ["train.fr-en"]


def test_transcript_is_kept_where_the_prompt_shows_it(dump_dir, tmp_path):
    tasks = {
        "smt": {"prompt": "<speech>{transcript}", "target": "{translation}"},
        "asr": {"prompt": "<speech>", "target": "{transcript}"},
    }
    parts = expand_mixture([{"task": "smt"}, {"task": "asr"}], ["fr-en"])
    make_mix(dump_dir, "train", parts, Template(tasks), tmp_path / "mix")
    transcripts = read_table(tmp_path / "mix/transcript")
    assert transcripts["smt.fr-en.fr_spk-train0"] == "Le train 0."
    assert transcripts.keys() == read_table(tmp_path / "mix/wav.scp").keys()


def test_missing_set_and_missing_text_are_named(dump_dir, prompt_file, tmp_path):
    template = load_template(prompt_file)
    with pytest.raises(InputError, match="train.es-en is missing: run stages 1 to 3"):
        make_mix(dump_dir, "train", [Part("st", "es", "en")], template, tmp_path / "mix")
    (dump_dir / "train.fr-en/text.tc.en").write_text("fr_spk-train0 one\n")
    with pytest.raises(InputError, match="utterance fr_spk-train1 has audio but no text"):
        make_mix(dump_dir, "train", [Part("st", "fr", "en")], template, tmp_path / "mix")
    (dump_dir / "train.fr-en/text.tc.en").unlink()
    with pytest.raises(InputError, match=r"text.tc.en is missing \(there are: fr\)"):
        make_mix(dump_dir, "train", [Part("st", "fr", "en")], template, tmp_path / "mix")


def test_what_has_no_text_is_left_out(dump_dir, prompt_file, tmp_path):
    """A test set that is also validated on keeps its utterances without text."""
    text = dump_dir / "train.fr-en/text.tc.en"
    text.write_text(text.read_text().replace("fr_spk-train1 The train 1.", "fr_spk-train1"))
    counts = make_mix(dump_dir, "train", [Part("st", "fr", "en")], load_template(prompt_file), tmp_path / "mix")
    assert list(counts.values()) == [2] and "st.fr-en.fr_spk-train1" not in read_table(tmp_path / "mix/text")


def test_a_phase_is_tested_by_its_best_task():
    for tasks, expected in ((["asr"], "asr"), (["asr", "st"], "st"), (["srt", "asr"], "srt"), (["smt"], "smt")):
        assert decode_task([Part(task, "fr", "en") for task in tasks]) == expected


def test_subset_by_speaker_lies_within_every_larger_one():
    utt2spk = {f"s{i % 4}-u{i:02d}": f"s{i % 4}" for i in range(20)}
    samples = dict.fromkeys(utt2spk, "16000")
    small, large = (choose_utterances(utt2spk, samples, seconds / 3600) for seconds in (7, 12))
    assert small < large and (len(small), len(large)) == (7, 12)
    assert sorted(Counter(utt2spk[utt] for utt in small).values()) == [2, 5]  # whole speakers, the last one cut


def test_hours_and_every_thin_out_the_examples(dump_dir, prompt_file, tmp_path):
    template = load_template(prompt_file)
    mixture = [{"task": "st", "hours": 41000 / 16000 / 3600}, {"task": "asr", "every": 2}]
    parts = expand_mixture(mixture, ["fr-en"])
    counts = make_mix(dump_dir, "train", parts, template, tmp_path / "mix")
    assert list(counts.values()) == [2, 2]
    with pytest.raises(InputError, match="no utterance fits"):
        make_mix(dump_dir, "train", [Part("st", "fr", "en", hours=1e-6)], template, tmp_path / "none")
    for entry in ({"hours": 0}, {"every": 0}, {"every": 1.5}):
        with pytest.raises(InputError, match="hours must be above 0 and every"):
            expand_mixture([{"task": "st", **entry}], ["fr-en"])
