"""Deltas of different measurements are not compared, and the error names the differences."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llgbm.errors import AdapterMismatchError, CacheMismatchError
from llgbm.measuring.measurement import Delta, Measurement

MEASUREMENT = Measurement(
    probes="a" * 64,
    template="b" * 64,
    truncation="middle",
    max_length=96,
    tokens="c" * 64,
    revision="r1",
    dtype="float32",
    layers=(1, 3),
    num_probes=4,
    hidden_size=8,
)

CHANGES: list[dict[str, Any]] = [
    {"probes": "d" * 64},
    {"template": "d" * 64},
    {"truncation": "left"},
    {"max_length": 97},
    {"tokens": "d" * 64},
    {"revision": "r2"},
    {"dtype": "int8_training"},
    {"layers": (2, 3)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_student_and_teacher_of_different_measurements_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CacheMismatchError, match=f"{next(iter(change))} is .*, expected ") as refusal:
        MEASUREMENT.require_same(replace(MEASUREMENT, **change), what="the base activation")
    assert str(refusal.value).count("expected") == 1


def test_values_must_have_the_measured_shape() -> None:
    with pytest.raises(AdapterMismatchError, match="measurement says"):
        Delta(torch.zeros(4, 1, 8), MEASUREMENT)


@pytest.mark.parametrize("damage", [{"layers": None}, {"extra": 1}, {"layers": ["x"]}])
def test_a_measurement_of_another_version_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(CacheMismatchError):
        Measurement.from_dict({**MEASUREMENT.to_dict(), **damage})
    missing = MEASUREMENT.to_dict()
    del missing["dtype"]
    with pytest.raises(CacheMismatchError):
        Measurement.from_dict(missing)
