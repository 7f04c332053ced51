"""Families `pick_word`, `edit_list` and `compare_words`: comma-separated lists of words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import WORDS

Words = Sequence[str]


def _draw(rng: random.Random, test: bool) -> tuple[str, list[str]]:
    words = rng.sample(WORDS, rng.randint(3, 5))
    return ", ".join(words), words


def _draw_two(rng: random.Random, test: bool) -> tuple[str, list[str]]:
    first, second = rng.sample(WORDS, 2)
    if rng.random() < 0.3:  # so that questions on shared letters and lengths have both answers
        near = [w for w in WORDS if (w[0] == first[0] or w[-1] == first[-1] or len(w) == len(first)) and w != first]
        second = rng.choice(near)
    return f"{first}, {second}", [first, second]


LIST = Inputs("word_list", "a list of words|some words separated by commas|a comma-separated list of words", _draw)
TWO = Inputs("two_words", "two words|two words with a comma between them|a pair of words", _draw_two)


def _only(words: Words) -> str | None:
    return words[0] if len(words) == 1 else None


def pick_word() -> Family:
    """Input: a list of words. Answer: one of them."""
    family = Family("pick_word", LIST)
    add = family.open
    for i, place in enumerate(("first", "second", "third"), 0):
        add(
            place,
            bind(i, lambda ws, i: ws[i]),
            f"pick the {place} word of the list|say which word comes {place} in the list",
            f"the {place} word of the list|word number {i + 1} in the list",
        )
    for i, place in enumerate(("last", "second to last"), 1):
        add(
            place.replace(" ", "_"),
            bind(i, lambda ws, i: ws[-i]),
            f"pick the {place} word of the list|name the word that is {place} in the list",
            f"the {place} word of the list",
        )
    for what, sign in (("longest", -1), ("shortest", 1)):
        add(
            what,
            bind(sign, lambda ws, sign: _only(_extreme(ws, sign))),
            f"pick the {what} word of the list|find the word with the {'most' if sign < 0 else 'fewest'} letters",
            f"the {what} word of the list|the list's word with the {'most' if sign < 0 else 'fewest'} letters",
        )
        add(
            f"{what}_length",
            bind(sign, lambda ws, sign: len(_extreme(ws, sign)[0])),
            f"say how many letters the {what} word of the list has|measure the {what} word of the list in letters",
            f"the number of letters in the list's {what} word|the length of the {what} word, as a number",
        )
    for length in (3, 4, 5, 6):
        numeral = ("three", "four", "five", "six")[length - 3]
        add(
            f"with_{length}_letters",
            bind(length, lambda ws, n: _only([w for w in ws if len(w) == n])),
            f"find the word in the list that has {numeral} letters|pick the list's only {numeral}-letter word",
            f"the word of the list that is {numeral} letters long|the {numeral}-letter word in the list",
        )
    for letter in "bcpst":
        add(
            f"starting_with_{letter}",
            bind(letter, lambda ws, c: _only([w for w in ws if w[0] == c])),
            f'find the word in the list that starts with "{letter}"|pick the word beginning with "{letter}"',
            f'the word of the list that starts with "{letter}"|the list\'s word whose first letter is "{letter}"',
        )
    for letter in "enrty":
        add(
            f"ending_with_{letter}",
            bind(letter, lambda ws, c: _only([w for w in ws if w[-1] == c])),
            f'find the word in the list that ends with "{letter}"|pick the word whose last letter is "{letter}"',
            f'the word of the list that ends with "{letter}"|the list\'s word with "{letter}" at its end',
        )
    add(
        "z_most",
        max,
        "pick the word of the list that a dictionary has last|find the list's word that sorts closest to z",
        "the word of the list that comes last in a dictionary|the alphabetically latest word",
    )
    add(
        "second_in_alphabet",
        lambda ws: sorted(ws)[1],
        "pick the word of the list that is second in alphabetical order|sort the list and give its second word",
        "the alphabetically second word of the list|the second word after sorting the list from a to z",
    )
    return family


def edit_list() -> Family:
    """Input: a list of words. Answer: a changed list, or something made from the list."""
    family = Family("edit_list", LIST)
    add = family.open
    changes: tuple[tuple[str, Callable[[Words], Words], str, str], ...] = (
        ("reverse", lambda ws: ws[::-1], "reverse the order of the list", "the list from back to front"),
        ("drop_first", lambda ws: ws[1:], "remove the first word of the list", "the list without its first word"),
        ("drop_last", lambda ws: ws[:-1], "remove the last word of the list", "the list without its last word"),
        (
            "drop_second",
            lambda ws: [ws[0], *ws[2:]],
            "remove the second word of the list",
            "the list without its second word",
        ),
        (
            "drop_ends",
            lambda ws: ws[1:-1],
            "remove the first and the last word of the list",
            "the list without its two ends",
        ),
        (
            "keep_ends",
            lambda ws: [ws[0], ws[-1]],
            "keep only the first and the last word of the list",
            "the two ends of the list",
        ),
        ("keep_two", lambda ws: ws[:2], "keep only the first two words of the list", "the first two words of the list"),
        (
            "keep_last_two",
            lambda ws: ws[-2:],
            "keep only the last two words of the list",
            "the last two words of the list",
        ),
        (
            "every_other",
            lambda ws: ws[::2],
            "keep words one, three and five of the list",
            "every other word of the list, from the first on",
        ),
        ("sort", sorted, "sort the list from a to z", "the words of the list in alphabetical order"),
        (
            "sort_down",
            lambda ws: sorted(ws, reverse=True),
            "sort the list from z to a",
            "the words of the list in reverse alphabetical order",
        ),
        (
            "swap_ends",
            lambda ws: [ws[-1], *ws[1:-1], ws[0]],
            "swap the first and the last word of the list",
            "the list with its first and last word exchanged",
        ),
        (
            "first_to_end",
            lambda ws: [*ws[1:], ws[0]],
            "move the first word of the list to its end",
            "the list with its first word put last",
        ),
        (
            "last_to_front",
            lambda ws: [ws[-1], *ws[:-1]],
            "move the last word of the list to its front",
            "the list with its last word put first",
        ),
        (
            "upper",
            lambda ws: [w.upper() for w in ws],
            "put the list in capital letters",
            "every word of the list in upper case",
        ),
        (
            "capitalise",
            lambda ws: [w.capitalize() for w in ws],
            "capitalise every word of the list",
            "each word of the list with a capital first letter",
        ),
        (
            "first_upper",
            lambda ws: [ws[0].upper(), *ws[1:]],
            "put only the first word of the list in capitals",
            "the list with its first word in upper case",
        ),
        (
            "long_words",
            lambda ws: [w for w in ws if len(w) > 5],
            "keep only the words of more than five letters",
            "the words of the list that are longer than five letters",
        ),
        (
            "short_words",
            lambda ws: [w for w in ws if len(w) < 6],
            "keep only the words of at most five letters",
            "the words of the list that have five letters or fewer",
        ),
        (
            "drop_longest",
            lambda ws: [w for w in ws if w not in _extreme(ws, -1)] if len(_extreme(ws, -1)) == 1 else [],
            "remove the longest word of the list",
            "the list without its longest word",
        ),
    )
    for name, change, do, give in changes:
        add(name, bind(change, lambda ws, change: ", ".join(change(ws)) or None), do, give)
    for name, mark, spoken in (
        ("semicolons", "; ", "semicolons"),
        ("slashes", "/", "slashes"),
        ("bars", " | ", "spaced vertical bars"),
        ("spaces", " ", "single spaces"),
        ("plus", " + ", "spaced plus signs"),
        ("and", " and ", 'the word "and"'),
    ):
        add(
            f"join_{name}",
            bind(mark, lambda ws, mark: mark.join(ws)),
            f"replace the commas of the list by {spoken}|join the words of the list by {spoken}",
            f"the words of the list, joined by {spoken}|the list with {spoken} instead of commas",
        )
    add(
        "final_and",
        lambda ws: f"{', '.join(ws[:-1])} and {ws[-1]}",
        'put "and" in place of the last comma of the list|write the list as in a sentence, with "and" at the end',
        'the list with "and" before its last word and no comma there',
    )
    add(
        "count",
        len,
        "count the words of the list|say how many words the list has",
        "the number of words in the list|how many words there are in the list",
    )
    add(
        "initials",
        lambda ws: "".join(w[0] for w in ws),
        "write the first letters of the words together|take the first letter of each word in the list",
        "the first letters of the words in the list, without spaces|the initials of the list as one string",
    )
    add(
        "capital_initials",
        lambda ws: ".".join(w[0].upper() for w in ws) + ".",
        "abbreviate the list by capital first letters with a dot after each|make initials with dots of the list",
        "the capital initials of the words, each followed by a dot",
    )
    add(
        "final_letters",
        lambda ws: "".join(w[-1] for w in ws),
        "write the last letters of the words together|take the last letter of each word in the list",
        "the last letters of the words in the list, without spaces|the final letters of the list as one string",
    )
    add(
        "lengths",
        lambda ws: ", ".join(str(len(w)) for w in ws),
        "give the length of each word in the list|count the letters of every word in the list",
        "the word lengths of the list as numbers with commas|the number of letters of each word, in order",
    )
    add(
        "brackets",
        lambda ws: f"[{', '.join(ws)}]",
        "put square brackets around the list|enclose the list in square brackets",
        "the list in square brackets|the same list between [ and ]",
    )
    return family


def compare_words() -> Family:
    """Input: two words. Answer: one of them, or a statement about both."""
    family = Family("compare_words", TWO)
    add = family.open
    add("longer", lambda p: _only(_extreme(p, -1)), "pick the longer of the two words", "the longer word of the pair")
    add("shorter", lambda p: _only(_extreme(p, 1)), "pick the shorter of the two words", "the shorter word of the pair")
    add("earlier", min, "say which of the two words is first in a dictionary", "the word that sorts first")
    add("later", max, "say which of the two words is last in a dictionary", "the word that sorts last")
    add("swapped", lambda p: f"{p[1]}, {p[0]}", "swap the two words", "the two words in the other order")
    add("joined", lambda p: p[0] + p[1], "write the two words as one, without a space", "both words run together")
    add("hyphened", lambda p: f"{p[0]}-{p[1]}", "join the two words by a hyphen", "both words with a hyphen between")
    add(
        "total_letters",
        lambda p: len(p[0]) + len(p[1]),
        "count the letters of both words together",
        "the total number of letters in the pair",
    )
    add(
        "length_difference",
        lambda p: abs(len(p[0]) - len(p[1])),
        "say by how many letters the two words differ in length",
        "the difference of the lengths of both words",
    )
    add(
        "first_letters",
        lambda p: f"{p[0][0]}{p[1][0]}",
        "write the first letters of both words together",
        "the first letter of each word, without a space",
    )
    questions: tuple[tuple[str, Callable[[Words], bool | None], str, str], ...] = (
        (
            "same_first_letter",
            lambda p: p[0][0] == p[1][0],
            "both words start with the same letter",
            "Do both words start with the same letter?",
        ),
        (
            "same_last_letter",
            lambda p: p[0][-1] == p[1][-1],
            "both words end with the same letter",
            "Do both words end with the same letter?",
        ),
        (
            "same_length",
            lambda p: len(p[0]) == len(p[1]),
            "both words have the same number of letters",
            "Do both words have the same number of letters?",
        ),
        (
            "first_is_longer",
            lambda p: len(p[0]) > len(p[1]),
            "the first word has more letters than the second",
            "Does the first word have more letters than the second?",
        ),
        (
            "in_order",
            lambda p: p[0] < p[1],
            "the two words stand in alphabetical order",
            "Are the two words in alphabetical order?",
        ),
        (
            "share_two_letters",
            lambda p: len(set(p[0]) & set(p[1])) >= 2,
            "the two words have at least two letters in common",
            "Do the two words have at least two letters in common?",
        ),
    )
    for name, holds, that, question in questions:
        family.asks(name, holds, that, question)
    return family


def _extreme(words: Words, sign: int) -> list[str]:
    """The longest words for sign -1, the shortest for sign 1."""
    best = min(sign * len(w) for w in words)
    return [w for w in words if sign * len(w) == best]
