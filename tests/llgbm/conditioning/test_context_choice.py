import json
from dataclasses import asdict
from typing import Any

import pytest

from llgbm.conditioning.context_choice import UNCALIBRATED, Context, ContextBin, ContextChoice, ContextSetting, pick
from llgbm.errors import CheckpointError, ConfigError

ALONE, SHOWN = ContextSetting("none"), ContextSetting("examples", 0.0)
DESCRIBED = ContextSetting("description", 0.5, 0.4)
CHOICE = ContextChoice(
    (ContextBin(0.4, (DESCRIBED, ALONE)), ContextBin(0.7, (ALONE, DESCRIBED))),
    (ContextBin(0.3, (SHOWN, DESCRIBED, ALONE)),),
)


@pytest.mark.parametrize(("similarity", "first"), [(-1.0, DESCRIBED), (0.69, DESCRIBED), (0.7, ALONE), (1.0, ALONE)])
def test_the_ranking_is_that_of_the_requests_bin(similarity: float, first: ContextSetting) -> None:
    assert CHOICE.ranking(similarity, with_examples=False)[0] == first
    assert CHOICE.ranking(similarity, with_examples=True)[0] == SHOWN


def test_auto_takes_the_first_that_the_request_has_the_texts_for() -> None:
    ranking = CHOICE.ranking(0.5, with_examples=True)
    assert pick(ranking, "auto", description=True, examples=True) == SHOWN
    assert pick(ranking, "auto", description=True, examples=False) == DESCRIBED
    assert pick(ranking[1:], "auto", description=False, examples=False) == ALONE
    assert pick(ranking, "none", description=True, examples=True) == ALONE
    assert pick(ranking, "description", description=True, examples=True) == DESCRIBED
    needs: tuple[tuple[Context, str], ...] = (("description", "a description"), ("examples", "examples"))
    for wanted, text in needs:
        with pytest.raises(ConfigError, match=f"context '{wanted}' needs {text}, and the request has none"):
            pick(ranking, wanted, description=False, examples=False)


def test_without_calibration_all_texts_stand_in_the_context_and_the_adapter_is_whole() -> None:
    assert pick(UNCALIBRATED, "auto", description=True, examples=True) == ContextSetting("examples", 1.0)
    assert pick(UNCALIBRATED, "auto", description=True, examples=False) == ContextSetting("description", 1.0)


def test_a_choice_comes_back_from_json() -> None:
    assert ContextChoice.from_dict(json.loads(json.dumps(asdict(CHOICE)))) == CHOICE


def test_an_earlier_manifests_scales_are_a_choice_too() -> None:
    choice = ContextChoice.of_scales(similarity=0.6, far=0.5, near=1.0)
    for similarity, scale in ((0.2, 0.5), (0.59, 0.5), (0.6, 1.0)):
        first, second = choice.ranking(similarity, with_examples=False)
        assert (first, second) == (ContextSetting("description", scale), ContextSetting("none"))
        assert choice.ranking(similarity, with_examples=True)[0] == ContextSetting("examples")


@pytest.mark.parametrize(
    "wrong",
    [{"context": "all"}, {"scale": float("nan")}, {"scale": "1"}, {"accuracy": 1.5}, {"accuracy": float("inf")}],
)
def test_a_setting_that_requests_would_fail_on_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="calibrate again"):
        ContextSetting(**{"context": "none", "scale": 1.0, "accuracy": 0.5, **wrong})


@pytest.mark.parametrize(
    "table",
    [
        (),
        (ContextBin(0.5, (ALONE,)),),
        (ContextBin(0.5, (ALONE, ALONE)),),
        (ContextBin(0.5, (ALONE, DESCRIBED)), ContextBin(0.5, (ALONE, DESCRIBED))),
        (ContextBin(0.5, (ALONE, DESCRIBED)), ContextBin(0.4, (ALONE, DESCRIBED))),
    ],
)
def test_a_table_with_holes_is_refused(table: tuple[ContextBin, ...]) -> None:
    with pytest.raises(CheckpointError, match="rising similarity"):
        ContextChoice(table, CHOICE.with_examples)
