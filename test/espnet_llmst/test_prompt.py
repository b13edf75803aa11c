"""Rendering of prompts and targets."""

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from espnet_llmst.cli import InputError
from espnet_llmst.prompt import (
    Template,
    encode_prompt,
    encode_target,
    load_template,
    render_prompt,
    render_target,
)

TAGS = Template(
    tasks={
        "srt": {"prompt": "<speech><|{src}|><|{tgt}|>", "target": "{transcript}<|{src}|><|{tgt}|>{translation}"},
        "smt": {"prompt": "<speech>{transcript}<|{src}|><|{tgt}|>", "target": "{translation}"},
    },
    languages="iso639_3",
)


@pytest.fixture
def tokenizer(llama_dir):
    return AutoTokenizer.from_pretrained(llama_dir)


def test_chat_prompt_surrounds_the_speech(prompt_file, tokenizer):
    before, after = render_prompt(load_template(prompt_file), tokenizer, "st", "fr", "en")
    assert (before, after) == ("<s>[INST] ", "\nTranslate the French sentence to English. [/INST]")
    prefix, suffix = encode_prompt(tokenizer, before, after)
    assert prefix[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in prefix[1:] + suffix


def test_plain_prompt_begins_with_bos_where_the_tokenizer_adds_one(tokenizer):
    assert render_prompt(TAGS, tokenizer, "srt", "zh-CN", "de") == ("<s>", "<|zho|><|deu|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    assert render_prompt(TAGS, tokenizer, "srt", "zh-CN", "de")[0] == ""


def test_braces_in_a_transcript_stay(tokenizer):
    _, after = render_prompt(TAGS, tokenizer, "smt", "en", "de", "the {tgt} sign")
    assert after == "the {tgt} sign<|eng|><|deu|>"
    assert render_target(TAGS, "srt", "en", "de", "a {src}", "b") == "a {src}<|eng|><|deu|>b"


def test_target_ends_with_eos_and_survives_the_tokenizer(tokenizer):
    text = "Où est la gare ? Zwölf Žluťoučký 🙂"  # unseen characters go through byte fallback
    ids = encode_target(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: {st: {prompt: no slot, target: x}}", "0 <speech> slots"),
        ("tasks: {translate: {prompt: <speech>, target: x}}", "task 'translate' must be one of asr, st"),
        ("tasks: {st: {prompt: <speech>}}", "with prompt and target"),
        ("tasks: {}\nlanguages: klingon", "'klingon' must be one of english, iso639_3"),
        ("task: {}", "known keys: tasks, languages"),
    ],
)
def test_bad_templates_are_one_clear_line(tmp_path, content, message):
    path = tmp_path / "prompt.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_template(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_task_or_file_is_named(tokenizer, tmp_path):
    with pytest.raises(InputError, match="no prompt for task 'asr'"):
        render_prompt(TAGS, tokenizer, "asr", "fr", "fr")
    with pytest.raises(InputError, match="nowhere.yaml does not exist"):
        load_template(tmp_path / "nowhere.yaml")
