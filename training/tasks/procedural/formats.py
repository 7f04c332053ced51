"""Families `case_style`, `markup` and `identifiers`: the same words written in another convention."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import ADJECTIVES, CATEGORIES, COUNTABLE

Words = Sequence[str]

_NOUNS = tuple(word for name in COUNTABLE for word in CATEGORIES[name])


def _draw_words(rng: random.Random) -> list[str]:
    nouns = rng.sample(_NOUNS, rng.choice((1, 1, 2)))
    return [*rng.sample(ADJECTIVES, rng.choice((1, 1, 2))), *nouns]


def _phrase(rng: random.Random, test: bool) -> tuple[str, Words]:
    words = _draw_words(rng)
    return " ".join(words), words


def _snake(rng: random.Random, test: bool) -> tuple[str, Words]:
    words = _draw_words(rng)
    return "_".join(words), words


def _camel(rng: random.Random, test: bool) -> tuple[str, Words]:
    words = _draw_words(rng)
    return _as_camel(words), words


def _as_camel(words: Words) -> str:
    return words[0] + "".join(map(str.capitalize, words[1:]))


def _as_pascal(words: Words) -> str:
    return "".join(map(str.capitalize, words))


PHRASE = Inputs("phrase", "a short phrase|a few words|a phrase of two to four words", _phrase)
SNAKE = Inputs("snake", "an identifier in snake case|a name like big_dog", _snake)
CAMEL = Inputs("camel", "an identifier in camel case|a name like bigDog", _camel)

_STYLES: tuple[tuple[str, Callable[[Words], str], str, str], ...] = (
    ("snake", "_".join, "snake case", "small letters with underscores"),
    ("kebab", "-".join, "kebab case", "small letters with hyphens"),
    ("camel", _as_camel, "camel case", "no spaces, a capital for each word but the first"),
    ("pascal", _as_pascal, "Pascal case", "no spaces, a capital for each word"),
    ("constant", lambda ws: "_".join(ws).upper(), "the style of a constant", "capitals with underscores"),
    ("dotted", ".".join, "dotted style", "small letters with dots"),
    ("path", "/".join, "the style of a path", "small letters with slashes"),
    ("title", lambda ws: " ".join(map(str.capitalize, ws)), "title case", "each word with a capital, with spaces"),
    ("upper", lambda ws: " ".join(ws).upper(), "upper case", "capital letters with spaces"),
    ("joined", "".join, "one word", "small letters and no spaces"),
    ("train", lambda ws: "-".join(map(str.capitalize, ws)), "train case", "capitalised words with hyphens"),
    ("hashtag", lambda ws: "#" + _as_pascal(ws), "the style of a hashtag", "#, then capitalised words run together"),
)


def case_style() -> Family:
    """Input: a phrase. Answer: the phrase in a naming style."""
    family = Family("case_style", PHRASE)
    for name, style, called, looks in _STYLES:
        family.open(
            name,
            style,
            f"write the phrase in {called}|convert the phrase to {called}: {looks}",
            f"the phrase in {called}|the phrase in {called} ({looks})",
        )
    for name, rule, do, give in (
        (
            "sentence",
            lambda ws: " ".join(ws).capitalize() + ".",
            "make the phrase look like a sentence: a capital at its start and a period at its end",
            "the phrase with a first capital and a final period",
        ),
        (
            "initials",
            lambda ws: "".join(w[0] for w in ws).upper(),
            "abbreviate the phrase by the first letters of its words, in capitals|make an acronym of the phrase",
            "the acronym of the phrase in capitals",
        ),
        (
            "last_upper",
            lambda ws: " ".join([*ws[:-1], ws[-1].upper()]),
            "write only the last word of the phrase in capitals",
            "the phrase with its last word in capitals",
        ),
        (
            "first_upper",
            lambda ws: " ".join([ws[0].upper(), *ws[1:]]),
            "write only the first word of the phrase in capitals",
            "the phrase with its first word in capitals",
        ),
        (
            "count",
            len,
            "count the words of the phrase|say how many words the phrase has",
            "the number of words in the phrase",
        ),
        (
            "characters",
            lambda ws: len("".join(ws)),
            "count the letters of the phrase, without the spaces|say how many letters the phrase has",
            "the number of letters in the phrase",
        ),
        (
            "backwards",
            lambda ws: " ".join(ws[::-1]),
            "write the words of the phrase in reverse order|put the last word of the phrase first and so on",
            "the words of the phrase from last to first",
        ),
    ):
        family.open(name, rule, do, give)
    return family


def markup() -> Family:
    """Input: a phrase. Answer: the phrase between marks."""
    family = Family("markup", PHRASE)
    for name, before, after, do, give in (
        ("bold", "**", "**", "make the phrase bold in Markdown", "the phrase in bold Markdown"),
        ("italic", "*", "*", "make the phrase italic in Markdown", "the phrase between single asterisks"),
        ("code", "`", "`", "mark the phrase as inline code in Markdown", "the phrase between backticks"),
        ("struck", "~~", "~~", "strike the phrase through in Markdown", "the phrase between double tildes"),
        (
            "heading",
            "# ",
            "",
            "make the phrase a heading of level one in Markdown",
            "the phrase as a main heading with #",
        ),
        (
            "subheading",
            "## ",
            "",
            "make the phrase a heading of level two in Markdown",
            "the phrase as a heading with ##",
        ),
        ("item", "- ", "", "make the phrase an item of a Markdown list", "the phrase as a list item with a hyphen"),
        ("box", "- [ ] ", "", "make the phrase an open item of a Markdown task list", "the phrase with an empty box"),
        ("block_quote", "> ", "", "make the phrase a block quote in Markdown", "the phrase after > and a space"),
        (
            "link",
            "[",
            "](#)",
            "make the phrase the text of a Markdown link to #",
            "a Markdown link to # with this text",
        ),
        ("html_bold", "<b>", "</b>", "make the phrase bold in HTML", "the phrase in an HTML element b"),
        ("html_italic", "<i>", "</i>", "make the phrase italic in HTML", "the phrase in an HTML element i"),
        ("html_paragraph", "<p>", "</p>", "make the phrase a paragraph in HTML", "the phrase in an HTML element p"),
        ("html_item", "<li>", "</li>", "make the phrase a list item in HTML", "the phrase in an HTML element li"),
        ("html_comment", "<!-- ", " -->", "hide the phrase in an HTML comment", "the phrase as an HTML comment"),
        (
            "python_comment",
            "# note: ",
            "",
            "write the phrase as a comment with # and note:",
            "a Python comment with note:",
        ),
        ("c_comment", "// ", "", "write the phrase as a line comment in C", "the phrase after // and a space"),
        ("latex", "\\emph{", "}", "emphasise the phrase in LaTeX", "the phrase in the LaTeX command emph"),
        ("single_quotes", "'", "'", "put the phrase in single quotes", "the phrase between single quotes"),
        ("double_quotes", '"', '"', "put the phrase in double quotes", "the phrase between double quotes"),
        ("round", "(", ")", "put the phrase in parentheses", "the phrase between round brackets"),
        ("square", "[", "]", "put the phrase in square brackets", "the phrase between [ and ]"),
        ("curly", "{", "}", "put the phrase in curly braces", "the phrase between curly brackets"),
        ("angle", "<", ">", "put the phrase in angle brackets", "the phrase between < and >"),
        (
            "stars",
            "*** ",
            " ***",
            "put three stars and a space on both sides of the phrase",
            "the phrase with *** around it",
        ),
        ("dashes", "--", "--", "put two hyphens on both sides of the phrase", "the phrase with -- right around it"),
    ):
        family.open(name, bind((before, after), lambda ws, marks: " ".join(ws).join(marks)), do, give)
    return family


def identifiers() -> Family:
    """Input: a name from a program. Answer: its words, or the name in another style."""
    family = Family("identifiers")
    for kind, inputs in (("snake", SNAKE), ("camel", CAMEL)):
        for name, style, called, looks in _STYLES:
            if name in ("snake", "camel", "pascal", "constant", "kebab") and name != kind:
                family.open(
                    f"{kind}_to_{name}",
                    style,
                    f"convert the identifier from {kind} case to {called}|rename the {kind}-case identifier: {looks}",
                    f"the {kind}-case identifier in {called}|what the {kind}-case identifier becomes: {looks}",
                    inputs=inputs,
                )
        for name, rule, do, give in (
            ("words", " ".join, "split the {it} into words", "the words of the {it} with spaces"),
            ("first", lambda ws: ws[0], "give the first word of the {it}", "the first word in the {it}"),
            ("last", lambda ws: ws[-1], "give the last word of the {it}, all small", "the last word in the {it}"),
            ("count", len, "count the words of the {it}", "the number of words in the {it}"),
        ):
            it = f"{kind}-case identifier"
            family.open(f"{kind}_{name}", rule, do.format(it=it), give.format(it=it), inputs=inputs)
    return family
