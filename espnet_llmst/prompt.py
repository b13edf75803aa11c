"""Prompt templates: the text around the speech slot, and the target, for each task and direction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.foundation import require_model
from espnet_llmst.languages import english_name, iso639_3

SPEECH = "<speech>"
NAMES = {"english": english_name, "iso639_3": iso639_3}
TASKS = ("asr", "st", "smt", "srt", "mt")


@dataclass(frozen=True)
class Template:
    """How a method writes its prompts.

    Args:
        tasks: task -> {"prompt": text around one ``<speech>``, "target": text}; both may use the fields
            {src} {tgt} (language names), {transcript} and {translation}.
        languages: "english" names or "iso639_3" tags for {src} and {tgt}.
        chat: put the prompt into the tokenizer's chat template as a user turn.
        system: system turn of the chat template; None for none.
    """

    tasks: dict[str, dict[str, str]]
    languages: str = "english"
    chat: bool = False
    system: str | None = None
    path: str = field(default="", compare=False)


def load_tokenizer(model: str, added_tokens: Sequence[str] = ()):
    """The tokenizer of a language model, with tokens of ours appended behind its own."""
    from transformers import AutoTokenizer  # late: templates alone need no transformers

    require_model(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if added_tokens:
        tokenizer.add_tokens(list(added_tokens), special_tokens=True)
    return tokenizer


def load_template(path: str | Path) -> Template:
    """Read a template.

    Raises:
        InputError: no such file, an unknown key or task, or a prompt without exactly one speech slot.
    """
    content = read_yaml(path)
    try:
        template = Template(**content, path=str(path))
    except TypeError as error:
        raise InputError(f"{path}: {error}; known keys: tasks, languages, chat, system") from error
    if template.languages not in NAMES:
        raise InputError(f"{path}: languages: '{template.languages}' must be one of {', '.join(NAMES)}")
    for task, texts in template.tasks.items():
        if task not in TASKS or set(texts) != {"prompt", "target"}:
            raise InputError(f"{path}: task '{task}' must be one of {', '.join(TASKS)} with prompt and target")
        slots = texts["prompt"].count(SPEECH)
        if slots != (task != "mt"):
            raise InputError(f"{path}: the prompt of '{task}' has {slots} {SPEECH} slots instead of one")
    return template


def _fill(template: Template, kind: str, task: str, src: str, tgt: str, transcript: str, translation: str) -> str:
    if task not in template.tasks:
        raise InputError(f"{template.path}: no prompt for task '{task}'; add it under tasks:")
    name = NAMES[template.languages]
    values = {
        "{src}": name(src),
        "{tgt}": name(tgt),
        "{transcript}": transcript,
        "{translation}": translation,
    }
    text = template.tasks[task][kind]
    parts, start = [], 0
    while start < len(text):  # one pass, so that braces inside a transcript stay what they are
        key = next((k for k in values if text.startswith(k, start)), None)
        parts.append(values[key] if key else text[start])
        start += len(key) if key else 1
    return "".join(parts)


def render_instruction(template: Template, task: str, src: str, tgt: str) -> str:
    """The prompt's text with its speech slot, no transcript, no chat template."""
    return _fill(template, "prompt", task, src, tgt, "", "")


def render_target(
    template: Template, task: str, src: str, tgt: str, transcript: str = "", translation: str = ""
) -> str:
    """The text the model shall write."""
    return _fill(template, "target", task, src, tgt, transcript, translation)


def split_srt(template: Template, src: str, tgt: str, text: str) -> tuple[str, str] | None:
    """Transcript and translation of an srt output; None when the tags between them are missing (LLM-SRT)."""
    transcript, tags, translation = text.partition(render_target(template, "srt", src, tgt).strip())
    return (transcript.strip(), translation.strip()) if tags else None


def render_prompt(
    template: Template, tokenizer, task: str, src: str, tgt: str, transcript: str = ""
) -> tuple[str, str]:
    """The text before and after the speech slot, chat template and beginning-of-sequence token included.

    Args:
        tokenizer: the language model's transformers tokenizer.
        src: language code of the speech.
        tgt: language code of the text to write.
        transcript: what is said, for tasks that give it to the model.
    """
    text = _fill(template, "prompt", task, src, tgt, transcript, "")
    if template.chat:
        turns = [{"role": "system", "content": template.system}] if template.system else []
        turns.append({"role": "user", "content": text})
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    elif tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:  # an attribute does not tell reliably
        text = tokenizer.bos_token + text
    before, _, after = text.partition(SPEECH)
    return before, after


def encode_prompt(tokenizer, before: str, after: str) -> tuple[list[int], list[int]]:
    """Token ids of both sides; special tokens written in the text become their ids, none is added."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in (before, after))


def encode_target(tokenizer, target: str) -> list[int]:
    """Token ids of a target and the end of sequence."""
    ids = tokenizer(text_target=target, add_special_tokens=False)["input_ids"]  # Marian has two vocabularies
    return [*ids, tokenizer.eos_token_id]
