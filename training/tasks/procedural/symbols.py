"""Families `symbols`, `votes`, `moves` and `sequences`: short sequences of signs, votes, steps and numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import FIRST_NAMES

_SIGNS = {"*": "stars", "#": "hashes", "+": "plus signs", "=": "equals signs"}
_ARROWS = {"up": "^", "down": "v", "left": "<", "right": ">"}
_STEPS = {"up": "down", "down": "up", "left": "right", "right": "left"}


def _draw_signs(rng: random.Random, test: bool) -> tuple[str, list[str]]:
    signs = rng.choices(sorted(_SIGNS), k=rng.randint(4, 8))
    return " ".join(signs), signs


def _draw_votes(rng: random.Random, test: bool) -> tuple[str, list[tuple[str, bool]]]:
    voters = rng.sample(FIRST_NAMES, rng.randint(3, 5))
    bias = rng.choice((0.0, 0.3, 0.5, 0.7, 1.0))
    votes = [(name, rng.random() < bias) for name in voters]
    return ", ".join(f"{name} {_yes(vote)}" for name, vote in votes), votes


def _draw_steps(rng: random.Random, test: bool) -> tuple[str, list[str]]:
    steps = rng.choices(sorted(_STEPS), k=rng.randint(3, 6))
    if rng.random() < 0.25:
        there = steps[: len(steps) // 2]
        steps = there + [_STEPS[step] for step in there]
        rng.shuffle(steps)
    return " ".join(steps), steps


def _draw_sequence(rng: random.Random, test: bool) -> tuple[str, list[int]]:
    start, step = rng.randint(1, 60), rng.choice([s for s in range(-12, 13) if s])
    if step < 0:
        start += 60
    return " ".join(str(start + i * step) for i in range(4)), [start, step]


SIGNS = Inputs("signs", "a row of signs|some signs with spaces between them", _draw_signs)
VOTES = Inputs("votes", "names with a yes or no each|the votes of some people", _draw_votes)
STEPS = Inputs("steps", "a walk in single steps|a row of steps such as up or left", _draw_steps)
SEQUENCE = Inputs("sequence", "four numbers with equal gaps|the start of a number sequence", _draw_sequence)


def symbols() -> Family:
    """Input: a row of signs. Answer: a count, or a changed row."""
    family = Family("symbols", SIGNS)
    add = family.open
    for sign, many in _SIGNS.items():
        word = many.split()[0]
        add(
            f"count_{word}",
            bind(sign, lambda row, sign: row.count(sign)),
            f"count the {many} in the row|say how often {sign} occurs in the row",
            f"the number of {many} in the row|how many times {sign} is in the row",
        )
        add(
            f"without_{word}",
            bind(sign, lambda row, sign: " ".join(s for s in row if s != sign) or None),
            f"remove the {many} from the row|write the row again, leaving out every {sign}",
            f"the row without its {many}|all signs of the row but {sign}",
        )
        family.asks(
            f"has_{word}",
            bind(sign, lambda row, sign: sign in row),
            f"there are {many} in the row|the row contains {sign}",
            f"Are there {many} in the row?|Does the row contain {sign}?",
        )
    add("length", len, "count all signs of the row", "how many signs the row has")
    add("kinds", lambda row: len(set(row)), "count the different signs of the row", "the number of different signs")
    add("first", lambda row: row[0], "give the first sign of the row", "the sign at the start of the row")
    add("last", lambda row: row[-1], "give the last sign of the row", "the sign at the end of the row")
    add("closed_up", "".join, "remove the spaces from the row of signs", "the row of signs without spaces")
    add("backwards", lambda row: " ".join(row[::-1]), "write the row of signs backwards", "the row of signs reversed")
    add(
        "inner",
        lambda row: " ".join(row[1:-1]),
        "remove the first and the last sign of the row",
        "the row without its outer signs",
    )
    add(
        "most_common",
        lambda row: _winner(row),
        "find the sign that occurs most often in the row|name the commonest sign of the row",
        "the most frequent sign of the row",
    )
    family.asks(
        "ends_alike",
        lambda row: row[0] == row[-1],
        "the row starts and ends with the same sign",
        "Does the row start and end with the same sign?",
    )
    family.asks(
        "neighbours_alike",
        lambda row: any(a == b for a, b in pairwise(row)),
        "two equal signs stand side by side in the row",
        "Do two equal signs stand side by side in the row?",
    )
    return family


def votes() -> Family:
    """Input: votes of some people. Answer: the outcome, a count, or some of the people."""
    family = Family("votes", VOTES)
    for name, holds, that, question, labels in (
        ("all", all, "everybody voted yes", "Did everybody vote yes?", ("yes", "no")),
        ("any", any, "at least one person voted yes", "Did at least one vote yes?", ("true", "false")),
        ("none", lambda ys: not any(ys), "nobody voted yes", "Did nobody vote yes?", ("yes", "no")),
        (
            "same",
            lambda ys: len(set(ys)) == 1,
            "all voted the same",
            "Did all vote the same?",
            ("unanimous", "divided"),
        ),
        (
            "odd",
            lambda ys: sum(ys) % 2 == 1,
            "the number of yes votes is odd",
            "Is the count of yes odd?",
            ("yes", "no"),
        ),
        ("first", lambda ys: ys[0], "the first person voted yes", "Did the first person vote yes?", ("for", "against")),
        ("two", lambda ys: sum(ys) >= 2, "two or more voted yes", "Did two or more vote yes?", ("pass", "fail")),
        (
            "ends",
            lambda ys: ys[0] == ys[-1],
            "the first and the last person agree",
            "Do both ends agree?",
            ("yes", "no"),
        ),
    ):
        family.asks(name, bind(holds, lambda vs, holds: bool(holds([y for _, y in vs]))), that, question, labels)
    family.either(
        "majority",
        lambda vs: None if 2 * sum(y for _, y in vs) == len(vs) else 2 * sum(y for _, y in vs) > len(vs),
        "most people voted yes",
        "most people voted no",
        ("accepted", "rejected"),
    )
    for vote in (True, False):
        word = _yes(vote)
        chosen = bind(vote, lambda vs, vote: [name for name, y in vs if y == vote])
        for name, rule, do, give in (
            ("who", ", ".join, f"list the people who voted {word}", f"the names with a {word}, with commas"),
            ("first", lambda names: names[0], f"find the first person with a {word}", f"the first name with a {word}"),
            ("last", lambda names: names[-1], f"find the last person with a {word}", f"the last name with a {word}"),
        ):
            answer = bind((chosen, rule), _apply)
            family.open(f"{name}_{word}", answer, do, give)
        family.open(
            f"count_{word}",
            bind(chosen, lambda vs, chosen: len(chosen(vs))),
            f"count the {word} votes",
            f"how many people voted {word}",
        )
    for name, rule, do, give in (
        (
            "names",
            lambda vs: ", ".join(name for name, _ in vs),
            "list the people without their votes",
            "the names of all people",
        ),
        (
            "values",
            lambda vs: " ".join(_yes(y) for _, y in vs),
            "list the votes without the names",
            "the votes alone, with spaces between",
        ),
        (
            "bits",
            lambda vs: "".join(str(int(y)) for _, y in vs),
            "write 1 for yes and 0 for no, in order",
            "the votes as bits",
        ),
        (
            "result",
            lambda vs: "{}:{}".format(*_score(vs)),
            "give the result as yes votes : no votes",
            "a score like 3:1",
        ),
        (
            "flip",
            lambda vs: ", ".join(f"{n} {_yes(not y)}" for n, y in vs),
            "turn every vote round",
            "the list with all votes turned round",
        ),
        ("people", len, "count the people who voted", "the number of voters"),
    ):
        family.open(name, rule, do, give)
    return family


def moves() -> Family:
    """Input: a walk. Answer: a property of it, or a changed walk."""
    family = Family("moves", STEPS)
    for name, rule, do, give in (
        ("count", len, "count the steps of the walk", "the number of steps"),
        ("last", lambda s: s[-1], "give the last step of the walk", "the final step of the walk"),
        ("net_up", lambda s: _net(s)[1], "say how much higher the walk ends", "steps up minus steps down"),
        ("net_right", lambda s: _net(s)[0], "say how far right the walk ends", "steps right minus steps left"),
        (
            "sideways",
            lambda s: sum(x in ("left", "right") for x in s),
            "count the steps to a side",
            "the number of steps to the left or right",
        ),
        (
            "arrows",
            lambda s: "".join(_ARROWS[x] for x in s),
            "draw the steps with ^ v < >",
            "the walk as arrows, no spaces",
        ),
        (
            "initials",
            lambda s: "".join(x[0].upper() for x in s),
            "shorten each step to a capital",
            "the walk as letters such as ULD",
        ),
        ("mirror", lambda s: " ".join(_STEPS[x] for x in s), "turn every step round", "the walk with opposite steps"),
        ("way_back", _way_back, "give the steps that lead back, in order", "the way back to the start"),
        ("no_last", lambda s: " ".join(s[:-1]), "undo the last step of the walk", "the walk without its last step"),
        (
            "end",
            lambda s: "({}, {})".format(*_net(s)),
            "say where a walk from (0, 0) ends",
            "the point where the walk ends",
        ),
    ):
        family.open(name, rule, do, give)
    family.asks(
        "returns", lambda s: _net(s) == (0, 0), "the walk ends where it began", "Does the walk end where it began?"
    )
    family.asks("goes_down", lambda s: "down" in s, "the walk has a step down", "Does the walk have a step down?")
    family.asks(
        "repeats",
        lambda s: any(a == b for a, b in pairwise(s)),
        "a step is taken twice in a row",
        "Is a step taken twice in a row?",
    )
    return family


def sequences() -> Family:
    """Input: four numbers with equal gaps. Answer: the next number, or another number about them."""
    family = Family("sequences", SEQUENCE)
    for name, places, do, give in (
        ("next", [4], "continue the sequence by one number", "the number that comes next"),
        ("next_two", [4, 5], "continue the sequence by two numbers", "the two numbers that come next"),
        ("after_next", [5], "skip the next number and give the one after it", "the sixth number of the sequence"),
        (
            "before",
            [-1],
            "continue the sequence to the front by one number",
            "the number that stands before the sequence",
        ),
        ("tenth", [9], "find the tenth number of the sequence", "number ten of the sequence"),
        ("backwards", [3, 2, 1, 0], "write the sequence backwards", "the four numbers from last to first"),
    ):
        at = bind(places, lambda v, places: " ".join(str(v[0] + i * v[1]) for i in places))
        family.open(name, at, do, give)
    family.open(
        "gap",
        lambda v: abs(v[1]),
        "say how large the gap of the sequence is",
        "the distance between neighbours in the sequence",
    )
    family.open(
        "step", lambda v: f"{v[1]:+d}", "give the step of the sequence with its sign", "the step, such as +3 or -2"
    )
    family.either("direction", lambda v: v[1] > 0, "the sequence rises", "the sequence falls", ("rising", "falling"))
    family.asks("big_step", lambda v: abs(v[1]) > 5, "the gap of the sequence is above 5", "Is the gap above 5?")
    return family


def _net(steps: Sequence[str]) -> tuple[int, int]:
    """The net steps of a walk to the right and up."""
    return steps.count("right") - steps.count("left"), steps.count("up") - steps.count("down")


def _way_back(steps: Sequence[str]) -> str:
    return " ".join(_STEPS[step] for step in reversed(steps))


def _apply(votes: Sequence[tuple[str, bool]], how: tuple[Callable[..., list[str]], Callable[..., str]]) -> str | None:
    """Apply the rule to the names that the first function picks; None if there are none."""
    pick, rule = how
    names = pick(votes)
    return rule(names) if names else None


def _yes(vote: bool) -> str:
    return "yes" if vote else "no"


def _score(votes: Sequence[tuple[str, bool]]) -> tuple[int, int]:
    """The numbers of yes votes and no votes."""
    agreed = sum(vote for _, vote in votes)
    return agreed, len(votes) - agreed


def _winner(row: Sequence[str]) -> str | None:
    counts = sorted(((row.count(sign), sign) for sign in set(row)), reverse=True)
    return counts[0][1] if len(counts) == 1 or counts[0][0] > counts[1][0] else None
