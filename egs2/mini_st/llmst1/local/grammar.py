"""Multi-parallel sentences in English, German, French, Spanish and Portuguese, drawn from a small grammar.

A frame (pattern and the words in its slots) is drawn once and realised in every language, so the five
sentences mean the same. Words stand in ``lexicon.yaml``, sentence patterns in ``patterns.yaml``; this file
knows agreement, articles, cases, contractions and elision.
"""

import functools
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("en", "de", "fr", "es", "pt")
MAX_WORDS = 11  # longer sentences are not given
PERSONS = ("1s", "3s", "1p", "3p")
PRONOUNS = {
    "I": {"en": "I", "de": "ich", "fr": "je", "es": "", "pt": "", "person": "1s"},
    "we": {"en": "we", "de": "wir", "fr": "nous", "es": "", "pt": "", "person": "1p"},
}
# German determiners for masculine, feminine, neuter
DE_THE = {"nom": ("der", "die", "das"), "acc": ("den", "die", "das"), "dat": ("dem", "der", "dem")}
DE_A = {"nom": ("", "e", ""), "acc": ("en", "e", ""), "dat": ("em", "er", "em")}
DE_WEAK = {"nom": ("e", "e", "e"), "acc": ("en", "e", "e"), "dat": ("en", "en", "en")}
DE_MIXED = {"nom": ("er", "e", "es"), "acc": ("en", "e", "es"), "dat": ("en", "en", "en")}
# Romance determiners for masculine, feminine
ARTICLES = {
    "fr": {"the": ("le", "la"), "a": ("un", "une"), "my": ("mon", "ma"), "some": ("de le", "de la")},
    "es": {"the": ("el", "la"), "a": ("un", "una"), "my": ("mi", "mi"), "some": ("", "")},
    "pt": {"the": ("o", "a"), "a": ("um", "uma"), "my": ("meu", "minha"), "some": ("", "")},
}
# What melts together between two neighbouring words. Our French lexicon has no aspirated h.
VOWEL = "(?=[aeiouhéèêœàâ])"
CONTRACTIONS = {
    "en": [(r"\ba (?=[aeiou])", "an ")],
    "de": [(r"\b(in|von) dem\b", lambda m: {"in": "im", "von": "vom"}[m[1].lower()])],
    "fr": [
        (rf"(?i)\b(l)[ea] {VOWEL}", r"\1'"),
        (rf"(?i)(?<!-)\b(d|j|n|qu)e {VOWEL}", r"\1'"),  # but "puis-je acheter"
        (rf"\bma {VOWEL}", "mon "),
        (r"\bde le ", "du "),
        (r"\bà le ", "au "),
    ],
    "es": [(r"\ba el ", "al "), (r"\bde el ", "del "), (r"\by (?=i)", "e ")],
    "pt": [(r"\bde ([oa]) ", r"d\1 "), (r"\bem ([oa]) ", r"n\1 ")],
}
FIELD = re.compile(r"\{(\w+)(?:([:>@])(\w+))?\}")


@functools.cache
def _tables() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The lexicon and the patterns, read once."""
    here = Path(__file__).parent
    lexicon = yaml.safe_load((here / "lexicon.yaml").read_text(encoding="utf-8"))
    patterns = yaml.safe_load((here / "patterns.yaml").read_text(encoding="utf-8"))
    return lexicon, patterns


def sentences(n: int, seed: int | str = 0, exclude: Iterable[dict[str, str]] = ()) -> list[dict[str, str]]:
    """Draw ``n`` sentences, each ``{language: text}``, all different in every language.

    The same seed gives the same sentences, and the first k of n are those of k.

    Args:
        n: How many.
        seed: Of the random generator.
        exclude: Sentences (in some or all languages) of which no text may come again.

    Raises:
        ValueError: The grammar has no ``n`` different sentences to give.
    """
    rng = random.Random(f"sentences {seed}")
    seen: dict[str, set[str]] = {lang: set() for lang in LANGUAGES}
    for other in exclude:
        _remember(seen, other)
    drawn: list[dict[str, str]] = []
    misses = 0
    while len(drawn) < n:
        frame = _draw_frame(rng)
        texts = {lang: _finish(lang, _fill(lang, frame, "")) for lang in LANGUAGES}
        if any(texts[lang] in seen[lang] or texts[lang].count(" ") >= MAX_WORDS for lang in LANGUAGES):
            misses += 1
            if misses > 100 + 20 * n:
                raise ValueError(f"the grammar gives no {n} different sentences: ask for fewer")
            continue
        _remember(seen, texts)
        drawn.append(texts)
    return drawn


def _remember(seen: dict[str, set[str]], texts: dict[str, str]) -> None:
    """Note that these texts have been used; those of a language that the grammar lacks never come."""
    for lang in seen.keys() & texts.keys():
        seen[lang].add(texts[lang])


def lm_sentences(n: int, seed: int | str = 0, exclude: Iterable[dict[str, str]] = ()) -> list[dict[str, str]]:
    """Text for language models: ``n`` sentences of their own stream; give dev and test as ``exclude``."""
    return sentences(n, seed=f"lm {seed}", exclude=exclude)


# ---- drawing a frame


def _draw_frame(rng: random.Random) -> dict[str, Any]:
    """A pattern with its slots filled, in which no word is drawn twice."""
    patterns = _tables()[1]
    while True:
        (pattern,) = rng.choices(patterns, [p["weight"] for p in patterns])
        frame = _draw_slots(pattern, rng)
        ids = _entry_ids(frame)
        if len(ids) == len(set(ids)):
            return frame


def _draw_slots(entry: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A phrase or pattern with every slot it names filled."""
    slots = {name: _draw(spec, rng) for name, spec in entry.get("slots", {}).items()}
    return {"kind": "phrase", "entry": entry, "slots": slots}


def _draw(spec: str, rng: random.Random) -> dict[str, Any]:
    """One value for a slot such as ``person*4 | my kin | a colour thing``."""
    choices, weights = _alternatives(spec)
    (words,) = rng.choices(choices, weights)
    head, *rest = words
    lexicon = _tables()[0]
    if head == "person":
        gender = rng.choice("fm")
        name = rng.choice(lexicon["names"][gender])
        return {"kind": "name", "entry": name, "gender": gender, "person": "3s"}
    if head in PRONOUNS:
        return {"kind": "pronoun", "entry": PRONOUNS[head], "person": PRONOUNS[head]["person"]}
    if head == "verb":
        return {"kind": "verb", "entry": lexicon["verbs"][rng.choice(rest[0].split(","))]}
    if head == "adj":
        return {"kind": "adjective", "entry": rng.choice(lexicon["adjectives"][rest[0]])}
    if head == "job":
        return {"kind": "job", "entry": rng.choice(lexicon["jobs"])}
    if head in ("the", "a", "my", "num", "some"):
        return _draw_noun(head, rest, rng)
    return _draw_slots(rng.choice(lexicon["phrases"][head]), rng)


@functools.cache
def _alternatives(spec: str) -> tuple[list[list[str]], list[int]]:
    """The alternatives of a slot, each as words, and their weights."""
    choices, weights = [], []
    for part in spec.split("|"):
        words, _, weight = part.partition("*")
        choices.append(words.split())
        weights.append(int(weight or 1))
    return choices, weights


def _draw_noun(determiner: str, words: list[str], rng: random.Random) -> dict[str, Any]:
    """A noun phrase: determiner, perhaps an adjective, noun."""
    lexicon = _tables()[0]
    value = {"kind": "noun", "determiner": determiner, "person": "3p" if determiner == "num" else "3s"}
    value["entry"] = rng.choice(lexicon["nouns"][words[-1]])
    value["adjective"] = rng.choice(lexicon["adjectives"][words[0]]) if len(words) == 2 else None
    value["number"] = rng.choice(lexicon["phrases"]["number"]) if determiner == "num" else None
    return value


def _entry_ids(value: dict[str, Any]) -> list[int]:
    """Identities of all the words in a frame."""
    own = [] if value["kind"] == "pronoun" else [id(value["entry"])]
    return own + [i for child in value.get("slots", {}).values() for i in _entry_ids(child)]


# ---- putting it into words


def _finish(lang: str, text: str) -> str:
    """Contractions, blanks, capital and full stop."""
    text = " ".join(text.split())
    for pattern, replacement in CONTRACTIONS[lang]:
        text = re.sub(pattern, replacement, text)
    start = 1 if text.startswith("¿") else 0
    text = text[:start] + text[start].upper() + text[start + 1 :]
    return text if text.endswith("?") else text + "."


def _fill(lang: str, phrase: dict[str, Any], form: str) -> str:
    """A phrase in words: its template (of this form where it has one) with every slot realised."""
    entry, slots = phrase["entry"], phrase["slots"]
    template = entry.get(f"{lang}_{form}", entry[lang])

    def realise(match: re.Match[str]) -> str:
        name, sign, argument = match.groups()
        if sign == ">":
            verb = slots[name]["entry"] if name in slots else _tables()[0]["verbs"][name]
            return _conjugate(verb[lang], slots[argument]["person"])
        if sign == "@":
            return _agree(lang, slots[name], _gender(lang, slots[argument]))
        return _realise(lang, slots[name], argument or "nom")

    return FIELD.sub(realise, template)


def _realise(lang: str, value: dict[str, Any], form: str) -> str:
    """Any slot value in words."""
    if value["kind"] == "name":
        return value["entry"]
    if value["kind"] == "pronoun":
        return value["entry"][lang]
    if value["kind"] == "noun":
        return _noun_phrase(lang, value, form)
    return _fill(lang, value, form)


def _conjugate(forms: list[str], person: str) -> str:
    """The form of a verb for a person; see the head of lexicon.yaml for the lists."""
    index = PERSONS.index(person)
    if len(forms) == 3 and person in ("1p", "3p"):
        return forms[2]
    if len(forms) == 2:
        return forms[person == "3s"]
    return forms[index] if len(forms) > 1 else forms[0]


def _gender(lang: str, value: dict[str, Any]) -> str:
    """m, f (or n) of what a word agrees with."""
    if value["kind"] == "name":
        return value["gender"]
    if value["kind"] == "noun":
        # English has no gender of its own; German jobs of relatives follow the German noun
        return value["entry"]["de" if lang == "en" else lang].split()[0]
    return "f" if value["entry"].get("f") else "m"


def _agree(lang: str, value: dict[str, Any], gender: str) -> str:
    """An adjective after "to be", a job, or a number, agreeing in gender."""
    entry = value["entry"]
    if value["kind"] == "phrase":
        return entry.get(f"{lang}_f", entry[lang]) if gender == "f" else entry[lang]
    forms = entry[lang].split()
    if lang == "en" and value["kind"] == "job":
        return f"a {forms[0]}"
    return forms[-1] if gender == "f" else forms[0]


def _noun_phrase(lang: str, value: dict[str, Any], form: str) -> str:
    """Determiner, adjective and noun of a language; form ``bare`` is the noun alone."""
    if lang == "en":
        return _english_noun(value, form)
    gender, *forms = value["entry"][lang].split()
    if form == "bare":
        return forms[0]
    if value["determiner"] == "num":
        return f"{_agree(lang, {'kind': 'phrase', 'entry': value['number']}, gender)} {forms[1]}"
    if lang == "de":
        return _german_noun(value, gender, forms[0], form)
    determiner = ARTICLES[lang][value["determiner"]][gender == "f"]
    adjective = value["adjective"]
    if not adjective:
        return f"{determiner} {forms[0]}"
    quality = _agree(lang, {"kind": "adjective", "entry": adjective}, gender)
    if lang == "fr" and adjective.get("fr_before"):
        return f"{determiner} {quality} {forms[0]}"
    return f"{determiner} {forms[0]} {quality}"


def _english_noun(value: dict[str, Any], form: str) -> str:
    """The red coat, a coat, my coat, two coats, tea."""
    forms = value["entry"]["en"].split()
    if value["determiner"] == "num":
        return f"{value['number']['en']} {forms[1]}"
    if value["determiner"] == "some" or form == "bare":
        return forms[0]
    adjective = value["adjective"]["en"] + " " if value["adjective"] else ""
    return f"{value['determiner']} {adjective}{forms[0]}"


def _german_noun(value: dict[str, Any], gender: str, noun: str, case: str) -> str:
    """Singular with article and adjective endings for nominative, accusative or dative."""
    determiner, column = value["determiner"], "mfn".index(gender)
    if determiner == "some":
        return noun
    article = DE_THE[case][column] if determiner == "the" else DE_A[case][column]
    article = {"the": "", "a": "ein", "my": "mein"}[determiner] + article
    if not value["adjective"]:
        return f"{article} {noun}"
    ending = (DE_WEAK if determiner == "the" else DE_MIXED)[case][column]
    return f"{article} {value['adjective']['de']}{ending} {noun}"
