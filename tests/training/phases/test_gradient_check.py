from pathlib import Path

import pytest

from llgbm.base import Base, load_base
from llgbm.config import lora_spec
from llgbm.errors import ConfigError
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import zeros
from training.phases import gradient_check
from training.phases.gradient_check import check_gradients, check_in_own_process, random_batch

SPEC = lora_spec("tiny")


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_a_and_b_is_reached(tiny_base_path: Path, storage: Storage, recompute: bool) -> None:
    base = load_base(tiny_base_path, storage=storage)
    found = check_gradients(base, SPEC, random_batch(base, 3, 8), recompute=recompute)
    assert found.reached == found.tensors == 2 * len(SPEC.modules)
    assert found.tokens == 24


def test_what_is_not_reached_is_not_counted(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where B is zero, A gets a gradient of zero."""
    start = zeros(SPEC).map(lambda t: t.requires_grad_())
    monkeypatch.setattr(gradient_check, "random_adapter", lambda spec: start)
    found = gradient_check.check_gradients(tiny_base, SPEC, random_batch(tiny_base, 2, 8), recompute=False)
    assert (found.reached, found.tensors) == (0, 2 * len(SPEC.modules))
    for name in SPEC.names:
        start.a[name].data.fill_(0.1)
    found = gradient_check.check_gradients(tiny_base, SPEC, random_batch(tiny_base, 2, 8), recompute=False)
    assert (found.reached, found.tensors) == (len(SPEC.modules), 2 * len(SPEC.modules))


def test_a_process_of_its_own_tells_its_memory(tiny_base_path: Path) -> None:
    found = check_in_own_process(str(tiny_base_path), "float32", 4, 2, 8, recompute=True)
    assert found.reached == found.tensors == 2 * len(SPEC.modules)
    assert found.peak_bytes is None or 0 <= found.peak_bytes < 2**30
    assert found.seconds > 0


def test_rows_too_short_to_predict_anything_are_refused(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="at least four tokens, not 1 of 3"):
        random_batch(tiny_base, 1, 3)
