"""Procedural tasks with known descriptions, generated from a seed: no download, the same on every machine.

Each family has tasks of one sort, with many parameters. Tasks of a family mostly share their inputs, with the same
split into training and test rows, so that only the description determines the answer: for "hammer" it may be `h`,
`HAMMER`, `6` or `tool`. Inputs have at most 12 words. The kinds of tasks that measure generalisation (the calendar,
ciphers, rhymes, units and the like) are not among the families, so a generator may be trained on all families.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import chain, islice, zip_longest
from typing import Any, TypeAlias

from llgbm.errors import ConfigError
from training.tasks.format import Example, Task
from training.tasks.procedural.arithmetic import arithmetic
from training.tasks.procedural.categories import (
    animals,
    count_category,
    is_category,
    name_category,
    odd_one,
    pick_category,
)
from training.tasks.procedural.files import addresses, files
from training.tasks.procedural.formats import case_style, identifiers, markup
from training.tasks.procedural.letters import letter_questions, letters
from training.tasks.procedural.lists import compare_words, edit_list, pick_word
from training.tasks.procedural.names import names, people
from training.tasks.procedural.number_lists import list_arithmetic, number_list, number_list_questions
from training.tasks.procedural.number_questions import number_questions, two_numbers
from training.tasks.procedural.recipes import Family, Inputs, Recipe
from training.tasks.procedural.reviews import orders, reviews
from training.tasks.procedural.sentences import edit_sentence, sentence_parts
from training.tasks.procedural.symbols import moves, sequences, symbols, votes

Pool: TypeAlias = list[tuple[str, Any]]

TRAIN_ROWS = 300
TEST_ROWS = 60
LICENCE = "Apache-2.0 (generated)"
SYNTHETIC_CATEGORY = "synthetic_"
"""Prefix of the category of every procedural task; the family follows."""

_BUILDERS: tuple[Callable[[], Family], ...] = (
    letters, letter_questions, pick_word, edit_list, compare_words, arithmetic, number_questions, two_numbers,
    number_list, list_arithmetic, number_list_questions, name_category, is_category, count_category, pick_category,
    odd_one, animals, sentence_parts, edit_sentence, names, people, case_style, markup, identifiers, files, addresses,
    reviews, orders, symbols, votes, moves, sequences,
)  # fmt: skip
FAMILIES = tuple(builder.__name__ for builder in _BUILDERS)
"""Names of all families."""

_POOL_ROWS = 4
"""Inputs drawn per row of a task, so that tasks with labels can balance them."""
_PATIENCE = 500
"""Drawing stops after this many duplicates in a row, since hardly any new inputs are left."""
_MAX_LABEL_SHARE = 1.4
"""No label gets more rows than this factor times its even share."""


def synthetic_tasks(seed: int = 0, families: Sequence[str] | None = None, limit: int | None = None) -> list[Task]:
    """Make procedural tasks.

    Args:
        seed: random seed of the inputs; tasks and descriptions are the same for every seed.
        families: some of `FAMILIES`; None for all.
        limit: maximum number of tasks, taken in turn from the families; None for all.

    Returns:
        Tasks sorted by id, with up to 300 training rows and 60 test rows; fewer if a task has fewer inputs.

    Raises:
        ConfigError: an unknown family, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    chosen = dict.fromkeys(FAMILIES if families is None else families)
    for name in chosen:
        if name not in FAMILIES:
            close = get_close_matches(name, FAMILIES, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(FAMILIES)}"
            raise ConfigError(f"no family of synthetic tasks is called {name!r}; {hint}")
    in_turn = chain.from_iterable(zip_longest(*(recipes(name) for name in chosen)))
    picked = [recipe for recipe in in_turn if recipe is not None][:limit]
    kinds = {recipe.inputs.name: recipe.inputs for recipe in picked}
    pools = {name: _split_pool(inputs, seed) for name, inputs in kinds.items()}
    return sorted((_task(recipe, seed, *pools[recipe.inputs.name]) for recipe in picked), key=lambda t: t.task_id)


@cache
def recipes(family: str) -> tuple[Recipe, ...]:
    """The recipes of one family, in a fixed random order; a limit takes the first ones."""
    found = _BUILDERS[FAMILIES.index(family)]().recipes
    random.Random(f"order/{family}").shuffle(found)
    return tuple(found)


def _task(recipe: Recipe, seed: int, train: Pool, test: Pool) -> Task:
    return Task(
        task_id=recipe.task_id,
        category=f"{SYNTHETIC_CATEGORY}{recipe.family}",
        source=f"generated by training.tasks.procedural_tasks, seed {seed}",
        licence=LICENCE,
        descriptions=recipe.descriptions,
        metric="exact_match",
        label_set=recipe.labels,
        train=_rows(recipe, train, TRAIN_ROWS),
        test=_rows(recipe, test, TEST_ROWS),
    )


def _split_pool(inputs: Inputs, seed: int) -> tuple[Pool, Pool]:
    """Inputs of one kind for training rows and for test rows, without duplicates."""
    rng = random.Random(f"{seed}/{inputs.name}")
    train_size, test_size = _POOL_ROWS * TRAIN_ROWS, _POOL_ROWS * TEST_ROWS
    if inputs.keeps_words:
        train = _draw(inputs, rng, train_size, test=False)
        seen = {text for text, _ in train}
        return train, [item for item in _draw(inputs, rng, test_size, test=True) if item[0] not in seen]
    pool = _draw(inputs, rng, train_size + test_size, test=False)
    place = len(pool) * train_size // (train_size + test_size)
    return pool[:place], pool[place:]


def _draw(inputs: Inputs, rng: random.Random, size: int, *, test: bool) -> Pool:
    """Different inputs in the order of drawing; fewer than `size` if hardly any new ones are left."""
    pool: dict[str, Any] = {}
    repeats = 0
    while len(pool) < size and repeats < _PATIENCE:
        text, value = inputs.draw(rng, test)
        repeats = repeats + 1 if text in pool else 0
        pool.setdefault(text, value)
    return list(pool.items())


def _rows(recipe: Recipe, pool: Pool, count: int) -> tuple[Example, ...]:
    """The first `count` rows of the pool that suit the task; labels are balanced as far as the pool allows."""
    answered = (Example(text, str(answer)) for text, value in pool if (answer := recipe.rule(value)) is not None)
    if recipe.labels is None:
        return tuple(islice(answered, count))
    rows = list(answered)
    # Each label gets at most `cap` rows: the smallest cap from the even share on with which there are enough rows.
    even = -(-count // len(recipe.labels))
    sizes = Counter(row.output for row in rows)
    caps = range(even, int(_MAX_LABEL_SHARE * even) + 1)
    cap = next((c for c in caps if sum(min(size, c) for size in sizes.values()) >= count), caps[-1])
    left = dict.fromkeys(recipe.labels, cap)
    chosen: list[Example] = []
    for row in rows:
        if left[row.output] and len(chosen) < count:
            left[row.output] -= 1
            chosen.append(row)
    return tuple(chosen)
