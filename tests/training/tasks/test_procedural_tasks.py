import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from llgbm.errors import ConfigError
from training.tasks.procedural.categories import TOPICS
from training.tasks.procedural.words import CATEGORIES
from training.tasks.procedural_tasks import FAMILIES, LICENCE, TEST_ROWS, TRAIN_ROWS, synthetic_tasks

TASKS = {task.task_id.removeprefix("synth_"): task for task in synthetic_tasks(seed=0)}

HELD_OUT_KINDS = re.compile(
    r"\b(leap|calendar|weekday|month|tuesday|cipher|caesar|encrypt|alphabet shift|shift|rhym|syllab|headline|clickbait"
    r"|isomorph|kilomet|celsius|convert .* (to|into) (met|inch|gram)|because of|cause|effect|refers to|dialogue"
    r"|negotiat|small talk|sense of the word|same meaning)",
    re.IGNORECASE,
)


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text)


def yes(holds: bool) -> str:
    return "yes" if holds else "no"


def vowels(text: str) -> str:
    return re.sub("[^aeiou]", "", text)


def people(text: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+): (\w+)", text))


def kind(word: str) -> str:
    return next(name for name, members in TOPICS.items() if word in members)


def votes(text: str, vote: str) -> list[str]:
    return re.findall(rf"(\w+) {vote}\b", text)


# What a task asks, worked out from the text of the input alone and in another way than the generator does it.
ANSWERS: dict[str, Callable[[str], str]] = {
    "letters_third_letter": lambda t: t[2],
    "letters_second_to_last_letter": lambda t: t[::-1][1],
    "letters_first_two_letters": lambda t: t[0] + t[1],
    "letters_drop_last_2": lambda t: re.sub("..$", "", t),
    "letters_only_vowels": vowels,
    "letters_count_consonants": lambda t: str(len(re.sub("[aeiou]", "", t))),
    "letters_count_different_letters": lambda t: str(len(Counter(t))),
    "letters_reversed": lambda t: "".join(reversed(t)),
    "letters_capitalised": str.title,
    "letters_spelled_with_hyphens": lambda t: re.sub("(?<=.)(?=.)", "-", t),
    "letters_swap_ends": lambda t: re.sub("^(.)(.*)(.)$", r"\3\2\1", t),
    "letters_first_to_end": lambda t: re.sub("^(.)(.*)$", r"\2\1", t),
    "letters_latest_letter": lambda t: sorted(t)[-1],
    "letters_last_vowel": lambda t: vowels(t)[-1],
    "letters_every_other_letter": lambda t: "".join(c for i, c in enumerate(t) if i % 2 == 0),
    "letter_questions_has_s": lambda t: yes("s" in t),
    "letter_questions_longer_than_5": lambda t: "long" if re.fullmatch(".{6,}", t) else "short",
    "letter_questions_article": lambda t: "an" if re.match("[aeiou]", t) else "a",
    "letter_questions_even_length": lambda t: ("even", "odd")[len(t) % 2],
    "letter_questions_repeats_a_letter": lambda t: yes(bool(re.search(r"(.).*\1", t))),
    "pick_word_second": lambda t: words(t)[1],
    "pick_word_longest": lambda t: sorted(words(t), key=len)[-1],
    "pick_word_shortest_length": lambda t: str(min(map(len, words(t)))),
    "pick_word_with_4_letters": lambda t: re.findall(r"\b[a-z]{4}\b", t)[0],
    "pick_word_starting_with_c": lambda t: re.findall(r"\bc\w+", t)[0],
    "edit_list_reverse": lambda t: ", ".join(reversed(t.split(", "))),
    "edit_list_drop_second": lambda t: re.sub("^(\\w+), \\w+", r"\1", t),
    "edit_list_sort_down": lambda t: ", ".join(sorted(words(t))[::-1]),
    "edit_list_long_words": lambda t: ", ".join(re.findall(r"\b\w{6,}\b", t)),
    "edit_list_join_plus": lambda t: t.replace(", ", " + "),
    "edit_list_final_and": lambda t: " and".join(t.rsplit(",", 1)),
    "edit_list_initials": lambda t: "".join(re.findall(r"\b\w", t)),
    "edit_list_lengths": lambda t: re.sub(r"\w+", lambda m: str(len(m[0])), t),
    "compare_words_length_difference": lambda t: str(abs(t.index(",") - (len(t) - t.index(",") - 2))),
    "compare_words_in_order": lambda t: yes(t.split(", ") == sorted(t.split(", "))),
    "arithmetic_round_down_10": lambda t: t[:-1] + "0",
    "arithmetic_next_multiple_5": lambda t: str(next(n for n in range(int(t) + 1, 2000) if n % 5 == 0)),
    "arithmetic_digit_sum": lambda t: str(sum(int(c) for c in t)),
    "arithmetic_neighbours": lambda t: f"{int(t) - 1} {int(t) + 1}",
    "arithmetic_without_first_digit": lambda t: t[1:],
    "arithmetic_zero_padded": lambda t: t.zfill(5),
    "number_questions_divisible_by_4": lambda t: yes(int(t[-2:]) % 4 == 0),
    "number_questions_even_sides": lambda t: "left" if t[-1] in "02468" else "right",
    "number_questions_rising_digits": lambda t: yes(all(a < b for a, b in pairwise(t))),
    "number_questions_traffic_light": lambda t: ["green", "yellow", "red"][sum(map(int, t)) % 3],
    "two_numbers_distance": lambda t: str(max(numbers(t)) - min(numbers(t))),
    "two_numbers_sum_term": lambda t: f"{t.replace(' ', ' + ')} = {sum(numbers(t))}",
    "two_numbers_sign": lambda t: ("=", ">", "<")[(numbers(t)[0] > numbers(t)[1]) - (numbers(t)[0] < numbers(t)[1])],
    "number_list_descending": lambda t: ", ".join(map(str, sorted(numbers(t))[::-1])),
    "number_list_evens": lambda t: ", ".join(re.findall(r"\b\d?[02468]\b", t)),
    "number_list_each_plus_10": lambda t: re.sub(r"\d+", lambda m: str(int(m[0]) + 10), t),
    "number_list_without_smallest": lambda t: ", ".join(str(n) for n in numbers(t) if n > min(numbers(t))),
    "list_arithmetic_sum": lambda t: str(sum(numbers(t))),
    "list_arithmetic_second_largest": lambda t: str(sorted(set(numbers(t)) - {max(numbers(t))})[-1]),
    "list_arithmetic_count_multiples_of_5": lambda t: str(len(re.findall(r"\d?[05]\b", t))),
    "number_list_questions_sum_over_200": lambda t: yes(sum(numbers(t)) > 200),
    "name_category_tool_X_drink_Y": lambda t: "X" if words(t)[0] in CATEGORIES["tool"] else "Y",
    "name_category_which_job_sport_feeling": lambda t: next(
        k for k in ("job", "sport", "feeling") if words(t)[-1] in CATEGORIES[k]
    ),
    "is_category_fruit": lambda t: yes(words(t)[-1] in CATEGORIES["fruit"]),
    "count_category_tree": lambda t: str(len(set(words(t)) & set(CATEGORIES["tree"]))),
    "pick_category_only_sport": lambda t: ", ".join(w for w in words(t) if w in CATEGORIES["sport"]),
    "pick_category_without_job": lambda t: ", ".join(w for w in words(t) if w not in CATEGORIES["job"]),
    "odd_one_removed": lambda t: ", ".join(w for w in words(t) if Counter(map(kind, words(t)))[kind(w)] > 1),
    "odd_one_odd_kind": lambda t: next(kind(w) for w in words(t) if Counter(map(kind, words(t)))[kind(w)] == 1),
    "animals_milk": lambda t: yes(
        t.split()[t.split().index("film") - 3 if "film" in t else -1] in CATEGORIES["mammal"]
    ),
    "sentence_parts_last_word": lambda t: t.strip(".").split(" ")[-1],
    "sentence_parts_doer": lambda t: re.findall(r"\b[Tt]he \w+ \w+", t)[0].lower(),
    "edit_sentence_upper": str.upper,
    "edit_sentence_halved": lambda t: " ".join(t.split()[:4]),
    "edit_sentence_no_period": lambda t: t[:-1],
    "names_initials": lambda t: re.sub("[^A-Z]", "", t),
    "names_index": lambda t: ", ".join(t.split()[::-1]),
    "names_email": lambda t: t.lower().replace(" ", ".") + "@example.com",
    "people_city": lambda t: people(t)["city"],
    "people_row": lambda t: ",".join(people(t).values()),
    "people_over_40": lambda t: yes(int(people(t)["age"]) >= 41),
    "case_style_kebab": lambda t: t.replace(" ", "-"),
    "case_style_camel": lambda t: re.sub(" (.)", lambda m: m[1].upper(), t),
    "case_style_hashtag": lambda t: "#" + t.title().replace(" ", ""),
    "markup_bold": lambda t: f"**{t}**",
    "markup_latex": lambda t: f"\\emph{{{t}}}",
    "identifiers_camel_to_snake": lambda t: re.sub("[A-Z]", lambda m: "_" + m[0].lower(), t),
    "identifiers_snake_words": lambda t: t.replace("_", " "),
    "files_extension": lambda t: t.rpartition(".")[2],
    "files_stem": lambda t: Path(t).stem,
    "files_to_zip": lambda t: str(Path(t).with_suffix(".zip")),
    "addresses_mail_host": lambda t: t.partition("@")[2],
    "addresses_web_root": lambda t: "/".join(t.split("/")[:3]),
    "addresses_web_is_secure": lambda t: yes(t[4] == "s"),
    "reviews_subject": lambda t: re.findall(
        r"(?:found|[Tt]hought|Again|^|,) ?[Tt]he (\w+|dining room|parking lot|lunch deal) (?:was|seemed|\w+[.]$)", t
    )[0],
    "orders_kitchen": lambda t: re.sub(r"^(\d) \w+ (\w+?)(?:(?<=ch)e)?s for.*", r"\1x \2", t),
    "orders_who": lambda t: re.findall(r"for (\w+),", t)[0],
    "orders_total": lambda t: str(int(t[0]) * (1 + ["small", "medium", "large"].index(t.split()[1]))),
    "symbols_count_stars": lambda t: str(t.count("*")),
    "symbols_closed_up": lambda t: t.replace(" ", ""),
    "symbols_neighbours_alike": lambda t: yes(bool(re.search(r"(\S) \1", t))),
    "votes_who_yes": lambda t: ", ".join(votes(t, "yes")),
    "votes_result": lambda t: f"{len(votes(t, 'yes'))}:{len(votes(t, 'no'))}",
    "votes_same": lambda t: "divided" if votes(t, "yes") and votes(t, "no") else "unanimous",
    "moves_net_up": lambda t: str(t.count("up") - t.count("down")),
    "moves_way_back": lambda t: re.sub(
        r"\w+", lambda m: {"up": "down", "down": "up", "left": "right"}.get(m[0], "left"), " ".join(t.split()[::-1])
    ),
    "sequences_next": lambda t: str(2 * numbers(t)[3] - numbers(t)[2]),
    "sequences_tenth": lambda t: str(numbers(t)[0] + 3 * (numbers(t)[3] - numbers(t)[0])),
}


def test_there_are_hundreds_of_tasks_in_many_families() -> None:
    assert len(TASKS) >= 250
    assert len(FAMILIES) >= 12
    assert {task.category for task in TASKS.values()} == {f"synthetic_{family}" for family in FAMILIES}
    assert {task.licence for task in TASKS.values()} == {LICENCE}


def test_every_family_has_an_answer_that_is_worked_out_again() -> None:
    assert {name for name in FAMILIES if any(key.startswith(f"{name}_") for key in ANSWERS)} == set(FAMILIES)


@pytest.mark.parametrize("name", ANSWERS)
def test_outputs_are_right(name: str) -> None:
    task = TASKS[name]
    for row in (*task.train, *task.test):
        assert (row.input, row.output) == (row.input, ANSWERS[name](row.input))


@pytest.mark.parametrize(
    ("pattern", "apply"),
    [
        (r"arithmetic_add_(\d+)", lambda n, k: n + k),
        (r"arithmetic_subtract_(\d+)", lambda n, k: n - k),
        (r"arithmetic_times_(\d+)", lambda n, k: n * k),
        (r"arithmetic_divided_by_(\d+)", lambda n, k: n // k),
        (r"arithmetic_remainder_(\d+)", lambda n, k: n % k),
    ],
)
def test_every_parameter_is_the_one_that_is_named(pattern: str, apply: Callable[[int, int], int]) -> None:
    found = [(match, task) for name, task in TASKS.items() if (match := re.fullmatch(pattern, name))]
    assert len(found) >= 3
    for match, task in found:
        assert all(row.output == str(apply(int(row.input), int(match[1]))) for row in task.train)
        assert sum(match[1] in description for description in task.descriptions) >= 6


def test_inputs_and_outputs_are_short() -> None:
    for task in TASKS.values():
        for row in (*task.train, *task.test):
            assert len(row.input.split()) <= 12
            assert len(row.output.split()) <= 12
            assert row.output == row.output.strip()


def test_rows_are_many_and_differ() -> None:
    for name, task in TASKS.items():
        assert len({row.input for row in task.train}) == len(task.train)
        assert len({row.input for row in task.test}) == len(task.test)
        assert 240 <= len(task.train) <= TRAIN_ROWS, name
        assert 40 <= len(task.test) <= TEST_ROWS, name


def test_no_answer_is_right_nearly_always() -> None:
    for name, task in TASKS.items():
        for rows in (task.train, task.test):
            [(_, most)] = Counter(row.output for row in rows).most_common(1)
            assert most <= 0.78 * len(rows), name


def test_every_label_occurs() -> None:
    for task in TASKS.values():
        if task.label_set is not None:
            assert {row.output for row in task.train} == set(task.label_set)


def test_descriptions_are_many_and_belong_to_one_task() -> None:
    owners: dict[str, str] = {}
    for name, task in TASKS.items():
        assert len(task.descriptions) >= 6
        assert len(task.seen_descriptions) >= 4
        for text in task.descriptions:
            assert owners.setdefault(text.casefold(), name) == name
            assert not re.search(r"[{}|]", text)
            assert "  " not in text


def test_descriptions_with_labels_name_every_label() -> None:
    for task in TASKS.values():
        for text in task.descriptions if task.label_set else ():
            assert all(label in text for label in task.label_set or ())


def test_no_task_is_of_a_kind_that_is_held_out() -> None:
    for task in TASKS.values():
        for text in task.descriptions:
            assert not HELD_OUT_KINDS.search(text), text


def test_contrast_sets_share_inputs_in_the_same_split() -> None:
    for family in ("letters", "arithmetic", "markup", "number_list", "edit_sentence", "orders"):
        tasks = [task for name, task in TASKS.items() if task.category == f"synthetic_{family}"]
        train = set.union(*({row.input for row in task.train} for task in tasks))
        test = set.union(*({row.input for row in task.test} for task in tasks))
        assert not train & test
        assert len(train) < 0.2 * sum(len(task.train) for task in tasks)


def test_two_tasks_never_ask_the_same() -> None:
    behaviour = Counter(tuple((row.input, row.output) for row in task.train) for task in TASKS.values())
    assert max(behaviour.values()) == 1


def test_the_words_of_a_test_row_may_be_unknown_from_training() -> None:
    task = TASKS["is_category_metal"]
    known = {word for row in task.train for word in words(row.input)}
    assert not known & {word for row in task.test for word in words(row.input)}


DIGEST = (
    "import hashlib; from training.tasks.procedural_tasks import synthetic_tasks;"
    "tasks = [task.to_dict() for task in synthetic_tasks(seed=3, limit=40)];"
    "print(hashlib.sha256(repr(tasks).encode()).hexdigest())"
)


def test_processes_with_other_hash_seeds_make_the_same() -> None:
    root = Path(__file__).resolve().parents[3]
    runs = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout


def test_the_seed_changes_rows_and_nothing_else() -> None:
    first, second = synthetic_tasks(0, ["letters"])[0], synthetic_tasks(1, ["letters"])[0]
    assert first.train != second.train
    assert (first.task_id, first.descriptions, first.label_set) == (
        second.task_id,
        second.descriptions,
        second.label_set,
    )


def test_a_limit_takes_from_all_families_in_turn() -> None:
    tasks = synthetic_tasks(0, limit=len(FAMILIES))
    assert {task.category for task in tasks} == {f"synthetic_{family}" for family in FAMILIES}
    assert [task.task_id for task in tasks] == sorted(task.task_id for task in tasks)
    assert len(synthetic_tasks(0, ["votes", "letters"], limit=5)) == 5
    assert synthetic_tasks(0, limit=3)[0] in synthetic_tasks(0, limit=40)


def test_an_unknown_family_and_a_bad_limit_are_refused() -> None:
    with pytest.raises(ConfigError, match="'leters'; did you mean letters"):
        synthetic_tasks(0, ["leters"])
    with pytest.raises(ConfigError, match="limit must be at least 1, not 0"):
        synthetic_tasks(0, limit=0)
