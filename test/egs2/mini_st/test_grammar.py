"""The sentence grammar of mini_st: agreement, distinctness, determinism, variety."""

import random
import re

import pytest
import sacrebleu
from local_modules import load

grammar = load("grammar")


@pytest.fixture(scope="module")
def corpus():
    return grammar.sentences(2900, seed=0)


def noun(word: str, determiner: str, adjective: str | None = None, number: str | None = None) -> dict:
    """A noun phrase of the lexicon, by its English words."""
    lexicon = grammar._tables()[0]
    entries = [e for nouns in lexicon["nouns"].values() for e in nouns if e["en"].split()[0] == word]
    qualities = [e for words in lexicon["adjectives"].values() for e in words if e["en"] == adjective]
    numbers = [e for e in lexicon["phrases"]["number"] if e["en"] == number]
    return {
        "kind": "noun",
        "determiner": determiner,
        "person": "3s",
        "entry": entries[0],
        "adjective": qualities[0] if qualities else None,
        "number": numbers[0] if numbers else None,
    }


def say(lang: str, template: str, **slots: dict) -> str:
    """A template filled with given values."""
    phrase = {"kind": "phrase", "entry": {lang: template}, "slots": slots}
    return grammar._finish(lang, grammar._fill(lang, phrase, ""))


def test_all_languages_and_all_different(corpus):
    assert all(set(texts) == {"en", "de", "fr", "es", "pt"} for texts in corpus)
    for lang in grammar.LANGUAGES:
        assert len({texts[lang] for texts in corpus}) == 2900


def test_same_seed_same_sentences_and_prefix(corpus):
    assert grammar.sentences(300, seed=0) == corpus[:300]
    assert grammar.sentences(300, seed=1) != corpus[:300]


def test_short_and_of_small_vocabulary(corpus):
    for lang in grammar.LANGUAGES:
        words = [re.findall(r"[\w'-]+", texts[lang].lower()) for texts in corpus]
        assert max(map(len, words)) <= grammar.MAX_WORDS
        assert 6 < sum(map(len, words)) / len(words) < 8
        assert 250 < len({w for sentence in words for w in sentence}) <= 450


def test_written_as_it_is_spoken(corpus):
    for texts in corpus:
        for lang, text in texts.items():
            assert re.fullmatch(r"¿?[A-ZÀ-Ý][\w' ,-]*[^\W\d](\.| ?\?)", text), text
            assert not re.search(r"\d|  ", text), text
            assert (lang == "fr" and text.endswith(" ?")) == (lang == "fr" and text.endswith("?")), text


@pytest.mark.parametrize("lang", ["en", "de", "fr", "es", "pt"])
def test_sentences_have_little_in_common(corpus, lang):
    references = [texts[lang] for texts in corpus[:300]]
    shuffled = random.Random(0).sample(references, len(references))
    assert sacrebleu.corpus_bleu(shuffled, [references]).score < 8


def test_no_missing_contraction(corpus):
    wrong = {
        "en": r"\ba [aeiou]|\ban [^aeiou]",
        "de": r"\b(in|von) dem\b",
        "fr": r"(?i)\b(de|à) le\b|(?<!-)\b(je|le|la|de|ne|que|ma) [aeiouhéèêœ]",
        "es": r"\b(a|de) el\b|\by i",
        "pt": r"\b(de|em) [oa]s?\b",
    }
    for texts in corpus:
        for lang, pattern in wrong.items():
            assert not re.search(pattern, texts[lang]), texts[lang]


def test_articles_and_adjectives_agree():
    ring, dress, bag = noun("ring", "a", "red"), noun("dress", "the", "green"), noun("bag", "the", "small")
    assert say("de", "Ich suche {o:acc}", o=ring) == "Ich suche einen roten Ring."
    assert say("de", "{o} ist da", o=ring) == "Ein roter Ring ist da."
    assert say("de", "mit {o:dat}", o=dress) == "Mit dem grünen Kleid."
    assert say("fr", "{o} coûte", o=ring) == "Une bague rouge coûte."
    assert say("fr", "{o} coûte", o=bag) == "Le petit sac coûte."
    assert say("es", "{o} cuesta", o=ring) == "Un anillo rojo cuesta."
    assert say("pt", "{o} custa", o=bag) == "A bolsa pequena custa."


def test_numbers_agree():
    bags, hats = noun("bag", "num", number="two"), noun("hat", "num", number="two")
    assert say("pt", "Há {o}", o=bags) == "Há duas bolsas."
    assert say("pt", "Há {o}", o=hats) == "Há dois chapéus."
    assert say("de", "Da sind {o}", o=hats) == "Da sind zwei Hüte."


def test_contractions_and_elision():
    hotel, church, wine = noun("hotel", "the"), noun("church", "the"), noun("wine", "some")
    aunt, orange = noun("aunt", "my"), noun("orange", "a")
    assert say("fr", "à côté de {p}", p=hotel) == "À côté de l'hôtel."
    assert say("fr", "à côté de {p}", p=noun("museum", "the")) == "À côté du musée."
    assert say("fr", "{p} ferme", p=church) == "L'église ferme."
    assert say("fr", "je achète {w}", w=wine) == "J'achète du vin."
    assert say("fr", "Où puis-je acheter {o} ?", o=orange) == "Où puis-je acheter une orange ?"
    assert say("es", "al lado de {p}", p=hotel) == "Al lado del hotel."
    assert say("es", "inglés y italiano") == "Inglés e italiano."
    assert say("pt", "em {p}", p=church) == "Na igreja."
    assert say("pt", "ao lado de {p}", p=hotel) == "Ao lado do hotel."
    assert say("de", "von {p:dat}", p=hotel) == "Vom Hotel."
    assert say("de", "mit {k:dat}", k=aunt) == "Mit meiner Tante."
    assert say("en", "{o}", o=orange) == "An orange."


def test_verbs_and_jobs_agree():
    verbs, jobs = grammar._tables()[0]["verbs"], grammar._tables()[0]["jobs"]
    we = {"kind": "pronoun", "entry": grammar.PRONOUNS["we"], "person": "1p"}
    assert say("fr", "{s} {want>s} partir", s=we) == "Nous voulons partir."
    assert say("es", "{s} {want>s} salir", s=we) == "Queremos salir."
    assert say("de", "{s} {want>s} gehen", s=noun("aunt", "my")) == "Meine Tante will gehen."
    assert [grammar._conjugate(verbs["have"]["en"], p) for p in grammar.PERSONS] == [
        "have",
        "has",
        "have",
        "have",
    ]
    cook = {"kind": "job", "entry": next(job for job in jobs if job["en"] == "cook")}
    woman = {"kind": "name", "entry": "Eva", "gender": "f", "person": "3s"}
    assert say("de", "{s} ist {j@s}", s=woman, j=cook) == "Eva ist Köchin."
    assert say("fr", "{s} est {j@s}", s=noun("father", "my"), j=cook) == "Mon père est cuisinier."


def test_half_hours_in_german():
    hour = {"kind": "phrase", "entry": grammar._tables()[0]["phrases"]["hour"][0], "slots": {}}
    assert say("de", "um halb {h:next}", h=hour) == "Um halb drei."
    assert say("pt", "às {h} e meia", h=hour) == "Às duas e meia."


def test_every_template_uses_its_slots_in_every_language():
    lexicon, patterns = grammar._tables()
    phrases = [entry for entries in lexicon["phrases"].values() for entry in entries]
    for entry in patterns + phrases:
        for lang in grammar.LANGUAGES:
            fields = grammar.FIELD.findall(entry[lang])
            used = {name for name, _, _ in fields} | {target for _, sign, target in fields if sign in (">", "@")}
            assert set(entry.get("slots", {})) <= used, (entry, lang)
            assert used <= set(entry.get("slots", {})) | set(lexicon["verbs"]), (entry, lang)


def test_lm_sentences_leave_out_the_held_out_ones(corpus):
    held_out = corpus[:500]
    text = grammar.lm_sentences(3000, seed=0, exclude=iter(held_out))
    assert len(text) == 3000
    for lang in grammar.LANGUAGES:
        assert not {t[lang] for t in text} & {t[lang] for t in held_out}


def test_too_many_sentences_are_refused(monkeypatch):
    pattern = {"weight": 1, "slots": {"n": "number"}, **dict.fromkeys(grammar.LANGUAGES, "{n}")}
    tables = (grammar._tables()[0], [pattern])
    monkeypatch.setattr(grammar, "_tables", lambda: tables)
    assert len(grammar.sentences(19)) == 19
    with pytest.raises(ValueError, match="no 20 different sentences"):
        grammar.sentences(20)
