import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from llgbm.base import Base
from llgbm.errors import AdapterMismatchError
from llgbm.fitting.task_losses import kl_by_label, label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.packed.batch import PackedBatch, Row, pack
from tests.fixtures import random_lora
from tests.small_generator import SPEC, active_generator, conditions

GROUPS = [[Row([1, 2, 3], [4, 5]), Row([1, 2, 9, 9], [7])], [Row([3, 2, 1], [8, 8, 8, 2])]]
BATCH = pack(GROUPS)
VOCABULARY = 11


def random_logits(seed: int, *, scale: float = 2.0, labels: int = len(BATCH.labels)) -> Tensor:
    return scale * torch.randn(labels, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A teacher's k largest log-probabilities and their tokens."""
    values, indices = logits.log_softmax(-1).topk(k)
    return values, indices


def kl_loss(student: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return mean_by_row(kl_by_label(student, values, indices))


def mean_by_row(per_label: Tensor) -> Tensor:
    two, one, four = per_label.split([2, 1, 4])
    return torch.stack([two.mean(), one.mean(), four.mean()]).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sft_is_torchs_own_loss_on_rows_without_padding(tiny_base: Base, smoothing: float) -> None:
    adapters = [random_lora(SPEC, 0), None]
    functional = FunctionalLoRA(tiny_base.model)
    expected = []
    with torch.inference_mode():
        for rows, adapter in zip(GROUPS, adapters, strict=True):
            for row in rows:
                with functional.applied([adapter]):
                    logits = tiny_base.model(torch.tensor([[*row.prompt, *row.answer]])).logits[0]
                predicting = logits[len(row.prompt) - 1 : -1]
                expected.append(F.cross_entropy(predicting, torch.tensor(row.answer), label_smoothing=smoothing))
        loss = sft_loss(label_logits(tiny_base, functional, BATCH, adapters), BATCH, label_smoothing=smoothing)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-4, rtol=0)


def test_a_long_answer_counts_as_much_as_a_short_one() -> None:
    logits = random_logits(0)
    per_label = F.cross_entropy(logits, BATCH.labels, reduction="none")
    torch.testing.assert_close(sft_loss(logits, BATCH), mean_by_row(per_label))


def test_certain_and_right_costs_nothing_and_smoothing_charges_certainty() -> None:
    certain = torch.full((len(BATCH.labels), VOCABULARY), -50.0)
    certain[torch.arange(len(BATCH.labels)), BATCH.labels] = 50.0
    assert float(sft_loss(certain, BATCH)) == pytest.approx(0, abs=1e-6)
    assert float(sft_loss(certain, BATCH, label_smoothing=0.1)) > 1


@given(seed=st.integers(0, 1000), k=st.integers(1, VOCABULARY))
def test_a_distribution_has_no_divergence_from_itself(seed: int, k: int) -> None:
    logits = random_logits(seed)
    assert float(kl_loss(logits, *top(logits, k))) == pytest.approx(0, abs=1e-5)


@given(seed=st.integers(0, 1000), k=st.integers(1, VOCABULARY))
def test_a_divergence_is_positive_and_at_most_that_over_all_tokens(seed: int, k: int) -> None:
    teacher, student = random_logits(seed), random_logits(seed + 1)
    whole = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    coarse = float(kl_loss(student, *top(teacher, k)))
    assert 0 < coarse <= float(mean_by_row(whole)) + 1e-4
    every = float(kl_loss(student, *top(teacher, VOCABULARY)))
    assert every == pytest.approx(float(mean_by_row(whole)), abs=1e-4)


@pytest.mark.parametrize("k", [1, 3, VOCABULARY])
def test_descending_the_divergence_leads_to_the_teacher(k: int) -> None:
    teacher, student = random_logits(0), random_logits(1).requires_grad_()
    values, indices = top(teacher, k)
    optimiser = torch.optim.Adam([student], lr=0.1)
    first = float(kl_loss(student, values, indices).detach())
    for _ in range(150):
        optimiser.zero_grad()
        kl_loss(student, values, indices).backward()
        optimiser.step()
    assert float(kl_loss(student, values, indices).detach()) < 0.05 * first
    torch.testing.assert_close(student.log_softmax(-1).gather(1, indices).exp(), values.exp(), atol=0.1, rtol=0)


def test_logits_of_other_labels_are_refused() -> None:
    with pytest.raises(AdapterMismatchError, match="6 rows of logits for a batch with 7 labels"):
        sft_loss(random_logits(0)[1:], BATCH)


@pytest.mark.parametrize("rows", [[Row([1, 2])], [Row([1], [2]), Row([1])]])
def test_a_row_without_a_label_is_refused(rows: list[Row]) -> None:
    batch: PackedBatch = pack([rows])
    logits = random_logits(0, labels=len(batch.labels))
    with pytest.raises(AdapterMismatchError, match="1 rows have no label"):
        sft_loss(logits, batch)


@pytest.mark.parametrize("kind", ["sft", "kl"])
def test_gradients_reach_the_generator_and_not_the_base(tiny_base: Base, kind: str) -> None:
    generator = active_generator()
    logits = label_logits(tiny_base, FunctionalLoRA(tiny_base.model), BATCH, generator(conditions(2)))
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    loss = sft_loss(logits, BATCH) if kind == "sft" else kl_loss(logits, *top(teacher, 4))
    loss.backward()
    silent = [name for name, p in generator.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []
    assert all(p.grad is None for p in tiny_base.model.parameters())
