import re
from collections import Counter

from training.synthetic.instructions import instructions

MADE = instructions()


def test_there_are_hundreds_each_in_several_wordings_and_the_same_at_every_call() -> None:
    assert len(MADE) > 500
    assert instructions() == MADE
    assert len({one.name for one in MADE}) == len(MADE)
    for one in MADE:
        assert len(set(one.descriptions)) >= 10, one.name


def test_no_wording_is_unfilled_or_stops_twice() -> None:
    for one in MADE:
        for text in one.descriptions:
            assert not re.search(r"\{(\w+)\}|[|]|\.\.(?!\.)|\?\.|  ", text), text


def test_answers_have_many_names() -> None:
    """What a generator must read off a description: the names of the labels, in every wording."""
    names = Counter(one.name.split("_", 2)[2] for one in MADE if one.name.startswith("question"))
    assert len(names) > 25
    assert max(names.values()) < 60
    for one in MADE:
        if one.name.startswith("question"):
            for label in one.name.split("_")[2:]:
                assert all(label in text for text in one.descriptions), one.name


def test_nothing_asks_for_what_the_held_out_tasks_ask_for() -> None:
    kept = (
        "clickbait|negotiat|small talk|rhym|syllable|leap year|weekday|caesar|cipher|isomorph|convert|unit of|"
        "valid date|cause of|effect of|fills the blank|next letter of the alphabet"
    )
    for one in MADE:
        for text in one.descriptions:
            assert not re.search(kept, text, re.IGNORECASE), text
