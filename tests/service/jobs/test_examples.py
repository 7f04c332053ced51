"""Files of examples: pairs survive a round trip, and errors name a field of the request."""

from __future__ import annotations

import pytest

from llgbm.refining.settings import RefineRow
from service.jobs.errors import InvalidFileError
from service.jobs.examples import read_examples, write_examples


def test_pairs_are_read_as_they_were_written() -> None:
    pairs = [("I want my money\u2028back", "billing"), ('"quotes"\n', "漢")]
    found = read_examples(write_examples(pairs))
    assert [example.row for example in found] == [RefineRow.of(given, wanted) for given, wanted in pairs]


def test_a_bad_line_blames_the_field_by_the_number_of_the_line() -> None:
    with pytest.raises(InvalidFileError) as error:
        read_examples(write_examples([("a", "b")]) + b"\nsecret,of,a,table", param="training_file")
    assert error.value.message.startswith("line 3: it is not JSON")
    assert "secret" not in error.value.message
    assert (error.value.status_code, error.value.param) == (400, "training_file")
