"""Families `arithmetic`, `number_questions` and `two_numbers`: results and labels for one number, answers about two."""

from __future__ import annotations

import random
from collections.abc import Callable

from training.tasks.procedural.recipes import Family, Inputs, bind


def _draw_one(rng: random.Random, test: bool) -> tuple[str, int]:
    number = rng.randint(10, 999)
    return str(number), number


def _draw_two(rng: random.Random, test: bool) -> tuple[str, tuple[int, int]]:
    first, second = rng.randint(2, 60), rng.randint(2, 60)
    if rng.random() < 0.15:  # so that divisibility and equal halves occur
        first = second * rng.randint(1, 5)
    return f"{first} {second}", (first, second)


NUMBER = Inputs("number", "a number|a whole number|one number", _draw_one)
TWO = Inputs("two_numbers", "two numbers|two numbers with a space between them|a pair of numbers", _draw_two)


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


def number_questions() -> Family:
    """Input: a number. Answer: a label."""
    family = Family("number_questions", NUMBER)
    for k in (3, 4, 5):
        family.asks(
            f"divisible_by_{k}",
            bind(k, lambda n, k: n % k == 0),
            f"the number can be divided by {k} without remainder|{k} divides the number",
            f"Can the number be divided by {k} without remainder?|Is the number a multiple of {k}?",
        )
    for k in (200, 350, 500, 750):
        family.either(
            f"above_{k}",
            bind(k, lambda n, k: n > k),
            f"the number is above {k}|the number is larger than {k}",
            f"the number is {k} or less",
            {200: ("yes", "no"), 350: ("large", "small"), 500: ("high", "low"), 750: ("pass", "fail")}[k],
        )
    for low, high in ((100, 600), (300, 700)):
        family.asks(
            f"between_{low}_and_{high}",
            bind((low, high), lambda n, ends: ends[0] <= n <= ends[1]),
            f"the number lies between {low} and {high}|the number is at least {low} and at most {high}",
            f"Does the number lie between {low} and {high}?|Is the number in the range {low} to {high}?",
        )
    for name, labels in (("even", ("even", "odd")), ("even_ab", ("A", "B")), ("even_sides", ("left", "right"))):
        family.either(name, lambda n: n % 2 == 0, "the number is even", "the number is odd", labels)
    for digit in "137":
        family.asks(
            f"has_digit_{digit}",
            bind(digit, lambda n, d: d in str(n)),
            f"the number contains the digit {digit}|the digit {digit} occurs in the number",
            f"Does the number contain the digit {digit}?|Is there a {digit} among the number's digits?",
        )
    family.asks(
        "repeated_digit",
        lambda n: len(set(str(n))) < len(str(n)),
        "some digit occurs twice or more in the number|the number repeats a digit",
        "Does some digit occur twice or more in the number?|Does the number repeat a digit?",
    )
    family.asks(
        "rising_digits",
        lambda n: list(str(n)) == sorted(set(str(n))),
        "each digit of the number is larger than the one before it|the digits of the number rise",
        "Is each digit of the number larger than the one before it?|Do the digits of the number rise?",
    )
    family.either(
        "first_or_last_digit",
        lambda n: int(str(n)[0]) > int(str(n)[-1]) if str(n)[0] != str(n)[-1] else None,
        "the first digit of the number is larger than its last digit",
        "the last digit of the number is larger than its first digit",
        ("first", "last"),
    )
    family.labelled(
        "thirds",
        lambda n: "low" if n < 300 else "medium" if n < 700 else "high",
        "say low for numbers below 300, medium from 300 to 699, and high from 700 on"
        "|grade the number: under 300 is low, 300 to 699 is medium, the rest is high",
        "low below 300, high from 700 on and medium between",
        ("low", "medium", "high"),
    )
    family.labelled(
        "traffic_light",
        lambda n: ("green", "yellow", "red")[n % 3],
        "write green if the number is a multiple of 3, yellow if one more than that, red if two more"
        "|divide by 3 and name the remainder: 0 is green, 1 is yellow, 2 is red",
        "green, yellow or red for a remainder of 0, 1 or 2 after division of the number by 3",
        ("green", "yellow", "red"),
    )
    return family


def two_numbers() -> Family:
    """Input: two numbers. Answer: about both."""
    family = Family("two_numbers", TWO)

    def add(name: str, rule: Callable[[int, int], object], do: str, give: str) -> None:
        family.open(name, lambda pair: rule(*pair), do, give)

    add("sum", lambda a, b: a + b, "add the two numbers", "the sum of the two numbers")
    add(
        "difference",
        lambda a, b: a - b,
        "subtract the second number from the first",
        "the first minus the second number",
    )
    add("distance", lambda a, b: abs(a - b), "say how far apart the two numbers are", "the absolute difference of both")
    add("product", lambda a, b: a * b, "multiply the two numbers", "the product of the two numbers")
    add("larger", max, "pick the larger of the two numbers", "the larger number of the pair")
    add("smaller", min, "pick the smaller of the two numbers", "the smaller number of the pair")
    add(
        "remainder",
        lambda a, b: a % b,
        "divide the first number by the second and give the remainder",
        "the first number modulo the second",
    )
    add(
        "average",
        lambda a, b: (a + b) // 2 if (a + b) % 2 == 0 else None,
        "find the number halfway between the two",
        "the average of the two numbers",
    )
    add(
        "sum_plus_ten",
        lambda a, b: a + b + 10,
        "add the two numbers and then 10 more",
        "the sum of the two numbers plus 10",
    )
    add(
        "twice_sum",
        lambda a, b: 2 * (a + b),
        "add the two numbers and double the result",
        "twice the sum of the two numbers",
    )
    add(
        "first_plus_double",
        lambda a, b: a + 2 * b,
        "add the double of the second number to the first",
        "the first number plus twice the second",
    )
    add(
        "joined",
        lambda a, b: f"{a}{b}",
        "write both numbers right after each other, without the space",
        "the digits of both numbers run together",
    )
    add("swapped", lambda a, b: f"{b} {a}", "swap the two numbers", "the two numbers in the other order")
    add(
        "sorted",
        lambda a, b: f"{min(a, b)} {max(a, b)}",
        "write the smaller number first, then the larger one",
        "both numbers in ascending order",
    )
    add(
        "ratio",
        lambda a, b: f"{a}:{b}",
        "write the two numbers as a ratio with a colon",
        "the two numbers with a colon between them",
    )
    add(
        "fraction",
        lambda a, b: f"{a}/{b}",
        "write the two numbers as a fraction with a slash",
        "the first number over the second, with a slash",
    )
    add(
        "range",
        lambda a, b: f"{min(a, b)}-{max(a, b)}",
        "write the range from the smaller to the larger number with a hyphen",
        "the range of the two numbers, such as 3-8",
    )
    add(
        "point",
        lambda a, b: f"({a}, {b})",
        "write the two numbers as the coordinates of a point",
        "the two numbers as a point, such as (3, 8)",
    )
    add(
        "sum_term",
        lambda a, b: f"{a} + {b} = {a + b}",
        "write out the addition of the two numbers with its result",
        "the full sum, such as 3 + 8 = 11",
    )
    family.labelled(
        "sign",
        lambda p: "<" if p[0] < p[1] else ">" if p[0] > p[1] else "=",
        "write the sign that belongs between the two numbers|compare the two numbers by a sign",
        "the comparison sign between the first and the second number",
        ("<", ">", "="),
    )
    family.either(
        "which_is_larger",
        lambda p: p[0] > p[1] if p[0] != p[1] else None,
        "the first number is larger",
        "the second number is larger",
        ("first", "second"),
    )
    family.asks(
        "even_sum",
        lambda p: sum(p) % 2 == 0,
        "the sum of the two numbers is even",
        "Is the sum of the two numbers even?",
    )
    family.asks(
        "far_apart",
        lambda p: abs(p[0] - p[1]) > 20,
        "the two numbers are more than 20 apart",
        "Are the two numbers more than 20 apart?",
    )
    family.asks(
        "sum_over_60",
        lambda p: sum(p) > 60,
        "the two numbers add up to more than 60",
        "Do the two numbers add up to more than 60?",
        ("over", "under"),
    )
    family.asks(
        "divides",
        lambda p: p[0] % p[1] == 0,
        "the second number divides the first without remainder",
        "Does the second number divide the first without remainder?",
    )
    return family
