"""Family `arithmetic`: computations on one whole number, and other forms of it."""

from __future__ import annotations

import random

from training.tasks.procedural.recipes import Family, Inputs, bind


def _draw(rng: random.Random, test: bool) -> tuple[str, int]:
    number = rng.randint(10, 999)
    return str(number), number


NUMBER = Inputs("number", "a number|a whole number|one number", _draw)


def arithmetic() -> Family:
    """Input: a number. Answer: a number, or another form of the input."""
    family = Family("arithmetic", NUMBER)
    add = family.open
    for k in (1, 2, 3, 4, 5, 7, 10, 11, 20, 50, 100):
        add(
            f"add_{k}",
            bind(k, lambda n, k: n + k),
            f"add {k} to the number|increase the number by {k}",
            f"the number plus {k}|the sum of the number and {k}",
        )
    for k in (1, 2, 3, 4, 5, 8, 10):
        add(
            f"subtract_{k}",
            bind(k, lambda n, k: n - k),
            f"subtract {k} from the number|take {k} away from the number",
            f"the number minus {k}|what is left of the number after {k} is taken away",
        )
    for k in (2, 3, 4, 5, 10, 11):
        add(
            f"times_{k}",
            bind(k, lambda n, k: n * k),
            f"multiply the number by {k}|take the number {k} times",
            f"the number times {k}|the product of the number and {k}",
        )
    for k, spoken in ((2, "half of the number"), (3, "a third of the number"), (5, "a fifth of the number")):
        add(
            f"divided_by_{k}",
            bind(k, lambda n, k: n // k),
            f"divide the number by {k} and round down|say how often {k} fits into the number",
            f"{spoken}, rounded down|the number divided by {k}, without the remainder",
        )
    for k in (3, 4, 5, 7, 9):
        add(
            f"remainder_{k}",
            bind(k, lambda n, k: n % k),
            f"give the remainder of the number divided by {k}|compute the number modulo {k}",
            f"what remains when the number is divided by {k}|the number mod {k}",
        )
    for k in (10, 100):
        add(
            f"round_down_{k}",
            bind(k, lambda n, k: n // k * k if n >= k else None),
            f"round the number down to a multiple of {k}|go down from the number to the nearest multiple of {k}",
            f"the largest multiple of {k} that is not above the number",
        )
    for k in (5, 10):
        add(
            f"next_multiple_{k}",
            bind(k, lambda n, k: (n // k + 1) * k),
            f"find the next multiple of {k} above the number|count up from the number to a multiple of {k}",
            f"the smallest multiple of {k} that is larger than the number",
        )
    add(
        "to_thousand",
        lambda n: 1000 - n,
        "say how much is missing from the number to 1000|subtract the number from 1000",
        "1000 minus the number|the difference between 1000 and the number",
    )
    add(
        "double_plus_one",
        lambda n: 2 * n + 1,
        "double the number and add 1|multiply the number by two, then add one",
        "twice the number plus one|one more than the double of the number",
    )
    add(
        "neighbours",
        lambda n: f"{n - 1} {n + 1}",
        "give the numbers right before and right after the number|name both neighbours of the number",
        "the two neighbours of the number, separated by a space",
    )
    add("negative", lambda n: -n, "change the sign of the number|negate the number", "the number with a minus sign")
    add(
        "digit_sum",
        lambda n: sum(map(int, str(n))),
        "add up the digits of the number|compute the digit sum of the number",
        "the sum of the number's digits|the digit sum",
    )
    for i, place in ((0, "first"), (-1, "last")):
        add(
            f"{place}_digit",
            bind(i, lambda n, i: str(n)[i]),
            f"give the {place} digit of the number|say which digit of the number comes {place}",
            f"the {place} digit of the number|the number's {place} digit",
        )
        add(
            f"without_{place}_digit",
            bind(i, lambda n, i: str(n)[1:] if i == 0 else str(n)[:-1]),
            f"remove the {place} digit of the number|write the number without its {place} digit",
            f"the number without its {place} digit|the other digits of the number once the {place} is gone",
        )
    add("largest_digit", lambda n: max(str(n)), "find the largest digit of the number", "the number's largest digit")
    add("smallest_digit", lambda n: min(str(n)), "find the smallest digit of the number", "the number's smallest digit")
    add(
        "reversed_digits",
        lambda n: str(n)[::-1],
        "write the digits of the number in reverse order|read the digits of the number backwards",
        "the digits of the number from back to front|the number written backwards",
    )
    add(
        "sorted_digits",
        lambda n: "".join(sorted(str(n))),
        "sort the digits of the number from small to large|put the number's digits in ascending order",
        "the digits of the number in ascending order|the number's digits, smallest first",
    )
    add(
        "spaced_digits",
        lambda n: " ".join(str(n)),
        "write the digits of the number with spaces between them|separate the number's digits by spaces",
        "the digits of the number, separated by spaces|the number's digits one by one, with spaces",
    )
    add(
        "zero_padded",
        lambda n: f"{n:05d}",
        "fill the number up with zeros in front to five digits|write the number with five digits",
        "the number with leading zeros, five digits in all",
    )
    add(
        "hash",
        lambda n: f"#{n}",
        "put a # in front of the number|write the number as a ticket number",
        "# and the number",
    )
    add("decimal", lambda n: f"{n}.00", "write the number with two zeros after a decimal point", "the number with .00")
    add(
        "percent",
        lambda n: f"{n}%",
        "write the number as a percentage|put a percent sign after the number",
        "the number in percent",
    )
    add("parentheses", lambda n: f"({n})", "put the number in parentheses", "the number between round brackets")
    return family
