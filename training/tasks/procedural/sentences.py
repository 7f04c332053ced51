"""Families `sentence_parts` and `edit_sentence`: short sentences with known parts."""

from __future__ import annotations

import random
from collections.abc import Mapping

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import CATEGORIES, with_article

Parts = Mapping[str, str]

_VERBS = (
    ("painted", "paint", "paints"), ("cleaned", "clean", "cleans"), ("bought", "buy", "buys"),
    ("sold", "sell", "sells"), ("found", "find", "finds"), ("lost", "lose", "loses"), ("drew", "draw", "draws"),
    ("broke", "break", "breaks"), ("moved", "move", "moves"), ("stole", "steal", "steals"),
    ("repaired", "repair", "repairs"), ("admired", "admire", "admires"), ("carried", "carry", "carries"),
    ("saw", "see", "sees"), ("wanted", "want", "wants"), ("forgot", "forget", "forgets"),
)  # fmt: skip
_PEOPLE = ("old", "young", "tall", "clever", "lazy", "friendly", "tired", "famous", "brave", "quiet")
_THINGS = ("small", "big", "new", "dirty", "heavy", "cheap", "strange", "lovely", "broken", "red", "blue", "green")
_WHEN = ("today", "yesterday", "again", "quickly", "secretly", "carefully", "twice", "alone")


def _draw(rng: random.Random, test: bool) -> tuple[str, Parts]:
    past, base, present = rng.choice(_VERBS)
    things = CATEGORIES["piece of furniture"] + CATEGORIES["musical instrument"] + CATEGORIES["vehicle"]
    parts = {
        "who_is": rng.choice(_PEOPLE),
        "who": rng.choice(CATEGORIES["job"]),
        "past": past,
        "base": base,
        "present": present,
        "thing_is": rng.choice(_THINGS),
        "thing": rng.choice(things),
        "when": rng.choice(_WHEN),
        "order": rng.choice(("back", "front")),
    }
    return _sentence(parts), parts


def _sentence(parts: Parts, form: str = "the {who_is} {who} {past} the {thing_is} {thing}") -> str:
    """A statement with the adverb at the end, or in front if `order` is `front`."""
    core = form.format(**parts)
    words = f"{parts['when']} {core}" if parts["order"] == "front" else f"{core} {parts['when']}"
    return words[0].upper() + words[1:] + "."


def _words(parts: Parts) -> list[str]:
    return _sentence(parts).rstrip(".").split()


SENTENCE = Inputs("sentence", "a sentence|one short sentence|an English sentence", _draw)


def sentence_parts() -> Family:
    """Input: a sentence. Answer: a word of it or a number about it."""
    family = Family("sentence_parts", SENTENCE)
    add = family.open
    for name, key, do, give in (
        ("who", "who", "say who did something in the sentence, by the job alone", "the job of the person who acts"),
        ("thing", "thing", "name the thing to which something was done", "the object of the sentence as one noun"),
        ("verb", "past", "find the verb of the sentence", "the verb as it stands in the sentence"),
        (
            "verb_base",
            "base",
            "give the verb of the sentence in its base form",
            "the infinitive of the verb, without to",
        ),
        ("verb_present", "present", "give the verb in the present tense", "the verb with he, in the present tense"),
        ("who_is", "who_is", "find the adjective for the person", "the word that tells what the person is like"),
        ("thing_is", "thing_is", "find the adjective for the thing", "the word that tells what the thing is like"),
        ("adverb", "when", "find the adverb of the sentence", "the word that tells when or how it was done"),
    ):
        add(name, bind(key, lambda parts, key: parts[key]), do, give)
    for name, form, do, give in (
        (
            "doer",
            "the {who_is} {who}",
            "copy the subject of the sentence",
            "the subject with its article and adjective",
        ),
        (
            "object",
            "the {thing_is} {thing}",
            "copy the object of the sentence",
            "the object with its article and adjective",
        ),
        (
            "action",
            "{past} {thing}",
            "shorten the sentence to the verb and the thing",
            "two words: the verb and the object noun",
        ),
        (
            "telegram",
            "{who} {past} {thing}",
            "shorten the sentence to three words",
            "who, verb and thing, like in a telegram",
        ),
        (
            "pair",
            "{who}, {thing}",
            "list the two nouns of the sentence",
            "the person and the thing with a comma between",
        ),
        (
            "adjectives",
            "{who_is}, {thing_is}",
            "list the two adjectives of the sentence",
            "both adjectives with a comma between",
        ),
        (
            "new_thing",
            "{thing_is} {thing}",
            "name the thing with its adjective",
            "the adjective and noun of the object",
        ),
    ):
        add(name, bind(form, lambda parts, form: form.format(**parts)), do, give)
    for i, place in ((1, "second"), (2, "third"), (3, "fourth"), (-1, "last"), (-2, "second to last")):
        add(
            f"{place.replace(' ', '_')}_word",
            bind(i, lambda parts, i: _words(parts)[i]),
            f"give the {place} word of the sentence|say which word is the {place} one in the sentence",
            f"the {place} word of the sentence, without punctuation",
        )
    add(
        "longest_word",
        lambda parts: _single([w for w in _words(parts) if len(w) == max(map(len, _words(parts)))]),
        "find the longest word of the sentence|pick the word of the sentence with the most letters",
        "the longest word in the sentence|the word that has more letters than all others in the sentence",
    )
    add(
        "letters_of_doer",
        lambda parts: len(parts["who"]),
        "count the letters of the noun that names the person|say how long the word for the person is",
        "the number of letters in the word for the person",
    )
    return family


def edit_sentence() -> Family:
    """Input: a sentence. Answer: the same sentence in another form."""
    family = Family("edit_sentence", SENTENCE)
    for name, form, do, give in (
        (
            "future",
            "the {who_is} {who} will {base} the {thing_is} {thing}",
            "put the sentence into the future with will|rewrite the sentence so that it is still going to happen",
            "the sentence in the future tense|the same sentence with will",
        ),
        (
            "present",
            "the {who_is} {who} {present} the {thing_is} {thing}",
            "put the sentence into the present tense|rewrite the sentence as if it happens now",
            "the sentence in the simple present|the same sentence in the present tense",
        ),
        (
            "negative",
            "the {who_is} {who} did not {base} the {thing_is} {thing}",
            "negate the sentence with did not|rewrite the sentence so that it says the opposite, using did not",
            "the negated sentence|the sentence with did not and the base form of the verb",
        ),
        (
            "question",
            "Did the {who_is} {who} {base} the {thing_is} {thing} {when}?",
            "turn the sentence into a yes-no question|ask whether the sentence is true, starting with Did",
            "the sentence as a question that starts with Did",
        ),
        (
            "must",
            "the {who_is} {who} must {base} the {thing_is} {thing}",
            "rewrite the sentence with must|say that it has to be done, using must",
            "the sentence with must before the base form of the verb",
        ),
        (
            "plain",
            "the {who} {past} the {thing}",
            "remove the adjectives from the sentence|write the sentence without the words that describe the nouns",
            "the sentence without its two adjectives",
        ),
        (
            "no_adverb",
            "The {who_is} {who} {past} the {thing_is} {thing}.",
            "remove the adverb from the sentence|drop the word that tells when or how it was done",
            "the sentence without its adverb",
        ),
        (
            "swapped_adjectives",
            "the {thing_is} {who} {past} the {who_is} {thing}",
            "swap the two adjectives of the sentence|let the adjectives of the sentence change places",
            "the sentence with its two adjectives exchanged",
        ),
        (
            "plural",
            "the {who_is} {who}s {past} the {thing_is} {thing}",
            "make the person in the sentence plural|rewrite the sentence for several people of that job",
            "the sentence with a plural subject",
        ),
        (
            "pronoun",
            "they {past} the {thing_is} {thing}",
            "replace the subject of the sentence by they|put they in place of the person in the sentence",
            "the sentence with they as its subject",
        ),
        (
            "cleft",
            "It was the {who_is} {who}.",
            "answer who did it, beginning with It was|write a sentence that starts with It was and names the person",
            "a sentence of the form It was the ..., with the person and the adjective",
        ),
        (
            "imperative",
            "{Base} the {thing_is} {thing}!",
            "turn the sentence into a command with an exclamation mark|order somebody to do what the sentence tells",
            "a command made of the verb and the object, with an exclamation mark",
        ),
    ):
        family.open(name, bind(form, _edited), do, give)
    for name, change, do, give in (
        ("upper", str.upper, "write the sentence in capital letters", "the sentence in upper case"),
        ("lower", str.lower, "write the sentence in small letters only", "the sentence in lower case"),
        ("no_period", lambda s: s.rstrip("."), "remove the period of the sentence", "the sentence without a period"),
        (
            "exclaim",
            lambda s: s[:-1] + "!",
            "end the sentence with an exclamation mark",
            "the sentence with ! at its end",
        ),
        ("quoted", lambda s: f'"{s}"', "put the sentence in double quotes", "the sentence between double quotes"),
        ("backwards", _reversed, "reverse the words of the sentence, without period", "the words from last to first"),
        (
            "halved",
            lambda s: " ".join(s.split()[:4]),
            "cut the sentence off after four words",
            "the first four words of the sentence",
        ),
        (
            "rest",
            lambda s: " ".join(s.split()[4:]),
            "drop the first four words of the sentence",
            "what follows the first four words of the sentence",
        ),
    ):
        family.open(name, bind(change, lambda parts, change: change(_sentence(parts))), do, give)
    family.open(
        "indefinite",
        _with_indefinite_articles,
        "replace both the by a or an and drop the adverb|rewrite with indefinite articles and without the adverb",
        "the sentence with a or an for the, without its adverb",
    )
    return family


def _edited(parts: Parts, form: str) -> str:
    """Fill a form. A form with an end mark is a whole sentence; any other gets the adverb at its place in the input."""
    if form[-1] in ".?!":
        return form.format(**parts, Base=parts["base"].capitalize())
    return _sentence(parts, form)


def _with_indefinite_articles(parts: Parts) -> str:
    who, thing = with_article(parts["who_is"]).capitalize(), with_article(parts["thing_is"])
    return f"{who} {parts['who']} {parts['past']} {thing} {parts['thing']}."


def _reversed(sentence: str) -> str:
    return " ".join(sentence.rstrip(".").split()[::-1])


def _single(words: list[str]) -> str | None:
    return words[0] if len(set(words)) == 1 else None
