"""Families `number_list`, `list_arithmetic` and `number_list_questions`: lists of whole numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from training.tasks.procedural.recipes import Family, Inputs, bind

Numbers = Sequence[int]


def _draw(rng: random.Random, test: bool) -> tuple[str, list[int]]:
    numbers = rng.sample(range(1, 100), rng.randint(3, 6))
    if rng.random() < 0.1:
        numbers.sort()
    return ", ".join(map(str, numbers)), numbers


NUMBERS = Inputs(
    "number_list", "a list of numbers|some numbers separated by commas|a comma-separated list of numbers", _draw
)


def _written(numbers: Numbers) -> str | None:
    return ", ".join(map(str, numbers)) or None


def number_list() -> Family:
    """Input: a list of numbers. Answer: some of them, in some order."""
    family = Family("number_list", NUMBERS)

    def add(name: str, rule: Callable[[Numbers], Numbers], do: str, give: str) -> None:
        family.open(name, lambda ns: _written(rule(ns)), do, give)

    for name, rule, do, give in (
        (
            "ascending",
            sorted,
            "sort the numbers from small to large|put the list of numbers in ascending order",
            "the numbers in ascending order|the list sorted with the smallest number first",
        ),
        (
            "descending",
            lambda ns: sorted(ns, reverse=True),
            "sort the numbers from large to small|put the list of numbers in descending order",
            "the numbers in descending order|the list sorted with the largest number first",
        ),
        (
            "reversed",
            lambda ns: ns[::-1],
            "write the list of numbers from back to front|reverse the order of the numbers",
            "the numbers in reverse order|the list of numbers, last one first",
        ),
        (
            "evens",
            lambda ns: [n for n in ns if n % 2 == 0],
            "keep only the even numbers|drop every odd number from the list",
            "the even numbers of the list|all numbers of the list that are even",
        ),
        (
            "odds",
            lambda ns: [n for n in ns if n % 2],
            "keep only the odd numbers|drop every even number from the list",
            "the odd numbers of the list|all numbers of the list that are odd",
        ),
        (
            "without_largest",
            lambda ns: [n for n in ns if n != max(ns)],
            "remove the largest number from the list|drop the maximum of the list",
            "the list without its largest number|all numbers but the maximum",
        ),
        (
            "without_smallest",
            lambda ns: [n for n in ns if n != min(ns)],
            "remove the smallest number from the list|drop the minimum of the list",
            "the list without its smallest number|all numbers but the minimum",
        ),
        (
            "without_first",
            lambda ns: ns[1:],
            "remove the first number from the list|drop the number at the front of the list",
            "the list without its first number|all numbers after the first",
        ),
        (
            "without_last",
            lambda ns: ns[:-1],
            "remove the last number from the list|drop the number at the end of the list",
            "the list without its last number|all numbers before the last",
        ),
        (
            "extremes",
            lambda ns: [min(ns), max(ns)],
            "give the smallest and the largest number of the list|name minimum and maximum of the list",
            "the smallest number, then the largest|minimum and maximum of the list",
        ),
        (
            "two_largest",
            lambda ns: sorted(ns)[:-3:-1],
            "give the two largest numbers, larger one first|pick the top two numbers of the list",
            "the two largest numbers in descending order|the top two numbers, the largest first",
        ),
        (
            "ends",
            lambda ns: [ns[0], ns[-1]],
            "give the first and the last number of the list|keep only the two ends of the number list",
            "the first and the last number of the list|the numbers at both ends of the list",
        ),
    ):
        add(name, rule, do, give)
    for k in (20, 50, 80):
        add(
            f"above_{k}",
            bind(k, lambda ns, k: [n for n in ns if n > k]),
            f"keep only the numbers above {k}|drop all numbers of {k} or less",
            f"the numbers of the list that are larger than {k}|every number above {k}",
        )
        add(
            f"below_{k}",
            bind(k, lambda ns, k: [n for n in ns if n < k]),
            f"keep only the numbers below {k}|drop all numbers of {k} or more",
            f"the numbers of the list that are smaller than {k}|every number below {k}",
        )
    for k in (1, 2, 3, 5, 10, 100):
        add(
            f"each_plus_{k}",
            bind(k, lambda ns, k: [n + k for n in ns]),
            f"add {k} to each number of the list|raise every number in the list by {k}",
            f"the list with {k} added to every number|each number plus {k}",
        )
    for k in (1, 2):
        add(
            f"each_minus_{k}",
            bind(k, lambda ns, k: [n - k for n in ns]),
            f"subtract {k} from each number of the list|lower every number in the list by {k}",
            f"the list with {k} taken from every number|each number minus {k}",
        )
    for k in (2, 3, 10):
        add(
            f"each_times_{k}",
            bind(k, lambda ns, k: [n * k for n in ns]),
            f"multiply each number of the list by {k}|make every number in the list {k} times as large",
            f"the list with every number times {k}|each number multiplied by {k}",
        )
    return family


def list_arithmetic() -> Family:
    """Input: a list of numbers. Answer: one number."""
    family = Family("list_arithmetic", NUMBERS)
    add = family.open
    for i, place in enumerate(("first", "second", "third")):
        add(
            place,
            bind(i, lambda ns, i: ns[i]),
            f"give the {place} number of the list|say which number comes {place}",
            f"the {place} number of the list|the number at place {i + 1} of the list",
        )
    add("last", lambda ns: ns[-1], "give the last number of the list", "the last number of the list")
    for rank, what, rule in (
        ("largest", "maximum", max),
        ("smallest", "minimum", min),
    ):
        add(rank, rule, f"find the {rank} number of the list", f"the {rank} number of the list|the list's {what}")
    add(
        "second_largest",
        lambda ns: sorted(ns)[-2],
        "find the second largest number of the list|name the runner-up among the numbers",
        "the second largest number of the list|the number just below the maximum of the list",
    )
    add(
        "second_smallest",
        lambda ns: sorted(ns)[1],
        "find the second smallest number of the list",
        "the second smallest number of the list|the number just above the minimum of the list",
    )
    add(
        "middle",
        lambda ns: sorted(ns)[len(ns) // 2] if len(ns) % 2 else None,
        "find the median of the numbers|sort the numbers and give the one in the middle",
        "the median of the list|the middle number by size",
    )
    add("sum", sum, "add up all numbers of the list", "the sum of the numbers in the list|the total of the list")
    add(
        "range",
        lambda ns: max(ns) - min(ns),
        "subtract the smallest number of the list from the largest|compute the range of the numbers",
        "the largest minus the smallest number of the list|the difference of maximum and minimum",
    )
    add(
        "first_plus_last",
        lambda ns: ns[0] + ns[-1],
        "add the first and the last number of the list",
        "the sum of both ends of the list",
    )
    add(
        "first_two",
        lambda ns: ns[0] + ns[1],
        "add the first two numbers of the list",
        "the sum of the first two numbers in the list",
    )
    add(
        "last_two",
        lambda ns: ns[-1] + ns[-2],
        "add the last two numbers of the list",
        "the sum of the last two numbers in the list",
    )
    add("count", len, "count the numbers in the list", "how many numbers the list has|the length of the number list")
    for name, what, holds in (
        ("evens", "even numbers", lambda n: n % 2 == 0),
        ("odds", "odd numbers", lambda n: n % 2 == 1),
        ("over_50", "numbers above 50", lambda n: n > 50),
        ("below_30", "numbers below 30", lambda n: n < 30),
        ("multiples_of_3", "multiples of 3", lambda n: n % 3 == 0),
        ("multiples_of_5", "multiples of 5", lambda n: n % 5 == 0),
    ):
        add(
            f"count_{name}",
            bind(holds, lambda ns, holds: sum(map(holds, ns))),
            f"count the {what} in the list|say how many {what} the list holds",
            f"the number of {what} in the list|how many {what} there are in the list",
        )
    for k in (30, 60):
        add(
            f"first_above_{k}",
            bind(k, lambda ns, k: next((n for n in ns if n > k), None)),
            f"find the first number of the list that is above {k}|go through the list up to a number over {k}",
            f"the earliest number of the list that is larger than {k}",
        )
    return family


def number_list_questions() -> Family:
    """Input: a list of numbers. Answer: a label."""
    family = Family("number_list_questions", NUMBERS)
    questions: tuple[tuple[str, Callable[[Numbers], bool | None], str, str], ...] = (
        (
            "all_above_10",
            lambda ns: min(ns) > 10,
            "all numbers of the list are above 10|every number is larger than 10",
            "Are all numbers of the list above 10?|Is every number larger than 10?",
        ),
        (
            "any_above_90",
            lambda ns: max(ns) > 90,
            "some number of the list is above 90|at least one number is larger than 90",
            "Is some number of the list above 90?|Is at least one number larger than 90?",
        ),
        (
            "any_multiple_of_10",
            lambda ns: any(n % 10 == 0 for n in ns),
            "the list has a multiple of 10|some number of the list ends in 0",
            "Does the list have a multiple of 10?|Does some number of the list end in 0?",
        ),
        (
            "first_is_largest",
            lambda ns: ns[0] == max(ns),
            "the first number is the largest of the list|no number of the list is larger than its first",
            "Is the first number the largest of the list?|Does the list start with its largest number?",
        ),
        (
            "rises_at_first",
            lambda ns: ns[0] < ns[1],
            "the second number of the list is larger than the first|the list starts by going up",
            "Is the second number of the list larger than the first?|Does the list start by going up?",
        ),
        (
            "sorted",
            lambda ns: list(ns) == sorted(ns),
            "the numbers of the list are in ascending order|every number is larger than the one before",
            "Are the numbers of the list in ascending order?|Is every number larger than the one before?",
        ),
        (
            "sum_over_200",
            lambda ns: sum(ns) > 200,
            "the numbers of the list add up to more than 200|the total of the list is above 200",
            "Do the numbers of the list add up to more than 200?|Is the total of the list above 200?",
        ),
        (
            "more_than_four",
            lambda ns: len(ns) > 4,
            "the list has more than four numbers|there are at least five numbers in the list",
            "Does the list have more than four numbers?|Are there at least five numbers in the list?",
        ),
    )
    for name, holds, that, question in questions:
        family.asks(name, holds, that, question)
    family.either(
        "ends_compared",
        lambda ns: ns[0] < ns[-1],
        "the last number of the list is larger than the first",
        "the last number of the list is smaller than the first",
        ("rise", "fall"),
    )
    family.either(
        "even_majority",
        lambda ns: None if 2 * (evens := sum(n % 2 == 0 for n in ns)) == len(ns) else 2 * evens > len(ns),
        "the list has more even than odd numbers",
        "the list has more odd than even numbers",
        ("even", "odd"),
    )
    return family
