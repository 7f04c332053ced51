"""Families `letters` and `letter_questions`: the spelling of one word. All of their tasks share one set of words."""

from __future__ import annotations

import random

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import PLAIN_WORDS, WORDS, split_words

VOWELS = "aeiou"
PLACES = ("first", "second", "third", "fourth")
NUMERALS = ("zero", "one", "two", "three", "four", "five")


def _draw(rng: random.Random, test: bool) -> tuple[str, str]:
    word = rng.choice(split_words(WORDS + PLAIN_WORDS, test=test))
    return word, word


WORD = Inputs("word", "a word|one English word|a single word", _draw, keeps_words=True)


def letters() -> Family:
    """Input: one word. Answer: letters of it, or a changed word."""
    family = Family("letters", WORD)
    add = family.open
    for i, place in enumerate(PLACES):
        add(
            f"{place}_letter",
            bind(i, lambda w, i: w[i] if i < len(w) else None),
            f"give the {place} letter of the word|say which letter comes {place} in the word",
            f"the {place} letter of the word|letter number {i + 1} of the word",
        )
    for i, place in enumerate(("last", "second to last", "third to last"), 1):
        add(
            f"{place.replace(' ', '_')}_letter",
            bind(i, lambda w, i: w[-i]),
            f"give the {place} letter of the word|count from the end and name the {place} letter of the word",
            f"the {place} letter of the word",
        )
    for n in (2, 3, 4):
        numeral = NUMERALS[n]
        add(
            f"first_{numeral}_letters",
            bind(n, lambda w, n: w[:n] if len(w) >= n else None),
            f"write only the first {numeral} letters of the word|cut the word off after {numeral} letters",
            f"the first {numeral} letters of the word|the beginning of the word, {numeral} letters long",
        )
        add(
            f"last_{numeral}_letters",
            bind(n, lambda w, n: w[-n:] if len(w) >= n else None),
            f"write only the last {numeral} letters of the word|keep just the final {numeral} letters of the word",
            f"the last {numeral} letters of the word|the end of the word, {numeral} letters long",
        )
    for n in (1, 2):
        some = "letter" if n == 1 else "two letters"
        add(
            f"drop_first_{n}",
            bind(n, lambda w, n: w[n:]),
            f"remove the first {some} of the word|write the word without its first {some}",
            f"the word without its first {some}|everything of the word after the first {some}",
        )
        add(
            f"drop_last_{n}",
            bind(n, lambda w, n: w[:-n]),
            f"remove the last {some} of the word|write the word without its last {some}",
            f"the word without its last {some}|everything of the word but the last {some}",
        )
    for what, chosen in (("vowels", VOWELS), ("consonants", "bcdfghjklmnpqrstvwxyz")):
        add(
            f"only_{what}",
            bind(chosen, lambda w, chosen: "".join(c for c in w if c in chosen) or None),
            f"list the {what} of the word in order, without spaces|keep the {what} of the word and drop the rest",
            f"just the {what} of the word, in order|the {what} in the word as one string",
        )
        add(
            f"count_{what}",
            bind(chosen, lambda w, chosen: sum(c in chosen for c in w)),
            f"count the {what} in the word|say how many {what} the word has",
            f"the number of {what} in the word|how many {what} are in the word, in digits",
        )
    add(
        "count_letters",
        len,
        "count the letters of the word|say how long the word is in letters",
        "the number of letters in the word|the length of the word as a number",
    )
    add(
        "count_different_letters",
        lambda w: len(set(w)),
        "count the different letters of the word|say how many distinct letters the word has",
        "the number of different letters in the word|how many distinct letters the word uses",
    )
    add(
        "reversed",
        lambda w: w[::-1] if w != w[::-1] else None,
        "write the word backwards|reverse the letters of the word",
        "the word spelled backwards|the letters of the word in reverse order",
    )
    add(
        "upper",
        str.upper,
        "write the word in capital letters|put the whole word in upper case",
        "the word in capitals|the upper-case form of the word",
    )
    add(
        "capitalised",
        str.capitalize,
        "write the word with a capital first letter|capitalise the word",
        "the word with its first letter capitalised|the word starting with a capital",
    )
    add(
        "capital_end",
        lambda w: w[:-1] + w[-1].upper(),
        "make only the last letter of the word a capital|write the word with a capital at its end",
        "the word with only its last letter in upper case",
    )
    add(
        "twice",
        lambda w: f"{w} {w}",
        "write the word twice, with a space between|repeat the word one time after itself",
        "the word two times, separated by a space|the word, then the same word again",
    )
    for name, mark, spoken in (("spaces", " ", "spaces"), ("hyphens", "-", "hyphens"), ("dots", ".", "dots")):
        add(
            f"spelled_with_{name}",
            bind(mark, lambda w, mark: mark.join(w)),
            f"spell the word out with {spoken} between the letters|put {spoken} between all letters of the word",
            f"the letters of the word, separated by {spoken}|the word spelled out with {spoken}",
        )
    add(
        "swap_ends",
        lambda w: w[-1] + w[1:-1] + w[0] if w[0] != w[-1] else None,
        "swap the first and the last letter of the word|exchange the two outer letters of the word",
        "the word with its first and last letter exchanged|the word after swapping its outer letters",
    )
    add(
        "first_to_end",
        lambda w: w[1:] + w[0],
        "move the first letter of the word to its end|take the first letter off the word and put it last",
        "the word with its first letter moved to the end|the word that results when its first letter goes last",
    )
    add(
        "last_to_front",
        lambda w: w[-1] + w[:-1],
        "move the last letter of the word to its front|take the last letter off the word and put it first",
        "the word with its last letter moved to the front|the word that results when its last letter goes first",
    )
    add(
        "outer_letters",
        lambda w: w[0] + w[-1],
        "write the first and the last letter of the word together|join the two outer letters of the word",
        "the first letter of the word followed by its last letter|the two outer letters of the word",
    )
    add(
        "inner_letters",
        lambda w: w[1:-1] if len(w) > 3 else None,
        "remove the first and the last letter of the word|strip both outer letters off the word",
        "the word without its first and last letter|what stands between the outer letters of the word",
    )
    add(
        "sorted_backwards",
        lambda w: "".join(sorted(w, reverse=True)),
        "sort the letters of the word from z to a|put the letters of the word in reverse alphabetical order",
        "the letters of the word sorted from z to a|the word's letters in descending alphabetical order",
    )
    add(
        "first_vowel",
        lambda w: next((c for c in w if c in VOWELS), None),
        "find the first vowel of the word|name the vowel that comes first in the word",
        "the first vowel in the word|the earliest vowel of the word",
    )
    add(
        "last_vowel",
        lambda w: next((c for c in reversed(w) if c in VOWELS), None),
        "find the last vowel of the word|name the vowel that comes last in the word",
        "the last vowel in the word|the final vowel of the word",
    )
    add(
        "latest_letter",
        max,
        "find the letter of the word that comes last in the alphabet|name the word's letter closest to z",
        "the letter of the word that is latest in the alphabet|the letter in the word nearest to z",
    )
    add(
        "earliest_letter",
        min,
        "find the letter of the word that comes first in the alphabet|name the word's letter closest to a",
        "the letter of the word that is earliest in the alphabet|the letter in the word nearest to a",
    )
    add(
        "every_other_letter",
        lambda w: w[::2],
        "write every other letter of the word, beginning with the first|skip every second letter of the word",
        "letters one, three, five and so on of the word|the word without every second letter",
    )
    return family


def letter_questions() -> Family:
    """Input: one word. Answer: one of two labels."""
    family = Family("letter_questions", WORD)
    for letter in "aeiounlrst":
        family.asks(
            f"has_{letter}",
            bind(letter, lambda w, c: c in w),
            f'the word contains the letter "{letter}"|there is "{letter}" somewhere in the word',
            f'Does the word contain the letter "{letter}"?|Is the letter "{letter}" in the word?',
        )
    for length in (4, 5, 6):
        numeral = ("four", "five", "six")[length - 4]
        family.asks(
            f"longer_than_{length}",
            bind(length, lambda w, n: len(w) > n),
            f"the word has more than {numeral} letters|the word is longer than {numeral} letters",
            f"Does the word have more than {numeral} letters?|Is the word longer than {numeral} letters?",
            ("long", "short") if length == 5 else ("yes", "no"),
        )
    family.asks(
        "starts_with_vowel",
        lambda w: w[0] in VOWELS,
        "the word starts with a vowel|the first letter of the word is a vowel",
        "Does the word start with a vowel?|Is the first letter of the word a vowel?",
    )
    family.either(
        "article",
        lambda w: w[0] in VOWELS,
        "the word begins with a vowel letter",
        "the word begins with a consonant",
        ("an", "a"),
    )
    family.asks(
        "ends_with_vowel",
        lambda w: w[-1] in VOWELS,
        "the word ends with a vowel|the last letter of the word is a vowel",
        "Does the word end with a vowel?|Is the last letter of the word a vowel?",
    )
    family.asks(
        "ends_with_e_or_r",
        lambda w: w[-1] in "er",
        'the word ends with "e" or "r"|the last letter of the word is "e" or "r"',
        'Does the word end with "e" or "r"?|Is the last letter of the word "e" or "r"?',
        ("true", "false"),
    )
    family.either(
        "even_length",
        lambda w: len(w) % 2 == 0,
        "the word has an even number of letters",
        "the word has an odd number of letters",
        ("even", "odd"),
    )
    family.either(
        "first_half",
        lambda w: w[0] < "n",
        "the word starts with a letter from a to m",
        "the word starts with a letter from n to z",
        ("first", "second"),
    )
    family.asks(
        "repeats_a_letter",
        lambda w: len(set(w)) < len(w),
        "a letter occurs more than once in the word|the word uses some letter twice or more",
        "Does a letter occur more than once in the word?|Does the word use some letter twice or more?",
    )
    family.asks(
        "vowel_at_second_place",
        lambda w: w[1] in VOWELS,
        "the second letter of the word is a vowel|a vowel stands at the second place of the word",
        "Is the second letter of the word a vowel?|Does a vowel stand at the second place of the word?",
        ("true", "false"),
    )
    family.either(
        "ends_compared",
        lambda w: w[0] < w[-1] if w[0] != w[-1] else None,
        "the first letter of the word comes before its last letter in the alphabet",
        "the first letter of the word comes after its last letter in the alphabet",
        ("up", "down"),
    )
    family.asks(
        "three_vowels",
        lambda w: sum(c in VOWELS for c in w) >= 3,
        "the word has at least three vowels|the word contains three vowels or more",
        "Does the word have at least three vowels?|Are there three vowels or more in the word?",
        ("Y", "N"),
    )
    return family
