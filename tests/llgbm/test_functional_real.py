"""The laws of hooked adapters on the real 0.5B base; `test_functional.py` has more of them on the tiny base."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.base import Base
from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterMismatchError
from llgbm.functional import FunctionalLoRA
from llgbm.packed.batch import Row, pack, packed_hidden_states
from tests.fixtures import random_lora, same_weights
from tests.llgbm.test_functional import assert_hooks_merge_and_peft_agree, logits, num_hooks, trainable

SPEC = lora_spec("qwen2.5-0.5b")


@pytest.mark.real
def test_hooked_is_merged_is_peft_on_the_real_base(real_base: Base, real_base_path: Path, tmp_path: Path) -> None:
    weights = random_lora(SPEC, 0, size=0.02)
    ids = real_base.tokenizer(["What is the capital of France? Answer:"], return_tensors="pt").input_ids
    assert_hooks_merge_and_peft_agree(real_base, real_base_path, weights, ids, tmp_path / "a")


@pytest.mark.real
def test_rows_and_spans_on_the_real_base(real_base: Base) -> None:
    adapters = [random_lora(SPEC, 0, size=0.02), None, random_lora(SPEC, 1, size=0.02)]
    rows = [real_base.tokenizer(t).input_ids for t in ("The capital of France", "Ein Wort", "def f(x):\n  return")]
    functional = FunctionalLoRA(real_base.model)
    model: Any = real_base.model
    batch = pack([[Row(row)] for row in rows])
    ids = torch.tensor([row[:2] for row in rows])
    with torch.no_grad():
        with functional.applied(adapters):
            together = logits(model, ids)
        with functional.applied(adapters, lengths=batch.lengths):
            packed = model.lm_head(packed_hidden_states(model, batch))
        for i, (row, adapter) in enumerate(zip(rows, adapters, strict=True)):
            with functional.applied([adapter]):
                torch.testing.assert_close(together[i : i + 1], logits(model, ids[i : i + 1]), atol=1e-4, rtol=0)
                alone = logits(model, torch.tensor([row]))[0]
            start = sum(batch.lengths[:i])
            torch.testing.assert_close(packed[start : start + len(row)], alone, atol=1e-4, rtol=0)


@pytest.mark.real
def test_every_factor_gets_a_gradient_and_the_real_base_is_bit_identical_afterwards(real_base: Base) -> None:
    ids = real_base.tokenizer(["Bonjour"], return_tensors="pt").input_ids
    weights = trainable(random_lora(SPEC, 0, size=0.02))
    hooks = num_hooks(real_base.model)
    with torch.no_grad():
        before = logits(real_base.model, ids)
    with FunctionalLoRA(real_base.model).applied(weights) as applied:
        changed = logits(real_base.model, ids)
    assert applied.modules_hooked == len(SPEC.modules) == 168
    assert not torch.equal(changed, before)
    gradients = torch.autograd.grad(changed.log_softmax(-1)[0, -1, 3], weights.tensors)
    assert len(gradients) == 336
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
    with torch.no_grad():
        assert torch.equal(logits(real_base.model, ids), before)
    assert num_hooks(real_base.model) == hooks


@pytest.mark.real
def test_an_adapter_of_another_base_is_refused_by_the_real_one(real_base: Base) -> None:
    for spec in (lora_spec("qwen2.5-1.5b"), LoRASpec.for_model(model_spec("tiny"))):
        with pytest.raises(AdapterMismatchError, match="was it made for another base"):
            FunctionalLoRA(real_base.model).prepare(random_lora(spec, 0))


@pytest.mark.real
def test_an_adapter_of_the_real_base_comes_back_from_peft_files_as_it_was(real_base: Base, tmp_path: Path) -> None:
    weights = random_lora(SPEC, 0, size=0.02)
    save_peft(weights, tmp_path / "adapter", base_id=real_base.spec.base_id)
    read, base_id = load_peft(tmp_path / "adapter")
    assert base_id == real_base.spec.base_id
    assert same_weights(read, weights)
