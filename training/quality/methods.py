"""The methods of the quality table: the adapter for a task, and the context of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import torch
from torch import Tensor

from llgbm.checkpoint import Checkpoint
from llgbm.conditioning.context_choice import ContextSetting, ContextWanted, texts_in
from llgbm.lora import LoRAWeights
from llgbm.prompting import AdapterMaker, AdapterRequest, TextEncoder
from training.tasks.format import Example, Task
from training.tasks.rows import short_examples

GIBBERISH = (
    "qwx zzgrv plomf",
    "lorem vastu kreb nnop",
    "0x7f zuh//ek ae",
    "brimbly frotz ungle ungle",
    "ttt %% yrp 93 skoo",
)
_NUM_SHOTS = 3


@dataclass(frozen=True, eq=False)
class MethodSetup:
    """One method on one task: the adapter (None: the plain base) and the additions to every row's context."""

    adapter: LoRAWeights | None
    description: str | None = None
    shots: tuple[Example, ...] = ()


@dataclass(frozen=True, eq=False)
class MethodSources:
    """Models and data that the methods use.

    Attributes:
        checkpoint: the generator under test.
        encoder: its text encoder.
        teachers: adapters trained by gradient descent on one task each, by task id.
        multitask: one adapter trained on all tasks with the description in the context, or None.
        others: task id -> description of another task, for the control with a wrong prompt.
        seed: random seed of wording, examples and gibberish.
        base: another source of the generator's base than its manifest names, for the vocabulary; empty for that one.
    """

    checkpoint: Checkpoint
    encoder: TextEncoder
    teachers: Mapping[str, LoRAWeights]
    multitask: LoRAWeights | None
    others: Mapping[str, str]
    seed: int
    base: str = ""

    def description(self, task: Task) -> str:
        """The wording under test, which was not trained on.

        For a trained task, a held-back wording. Otherwise any wording is unseen, and the first ones are taken, because
        they describe the form of the answer, as a user without examples would do.
        """
        wordings = task.unseen_descriptions if task.task_id in self._trained else task.descriptions
        return wordings[self.seed % len(wordings)]

    def seen_description(self, task: Task) -> str | None:
        """A wording that was trained on; None for a task that was not trained on."""
        wordings = self._trained.get(task.task_id)
        return wordings[self.seed % len(wordings)] if wordings else None

    @property
    def calibrated(self) -> bool:
        """Whether the generator knows the best scales of its adapters in a context."""
        return self.checkpoint.manifest.context_choice is not None

    @cached_property
    def _trained(self) -> Mapping[str, tuple[str, ...]]:
        """The wordings trained on, by task id."""
        return {task.task_id: task.descriptions for task in self.checkpoint.manifest.tasks}

    @cached_property
    def _maker(self) -> AdapterMaker:
        return AdapterMaker(self.checkpoint, self.encoder, base=self.base)

    def shots(self, task: Task) -> tuple[Example, ...]:
        """Three short training rows, the same for every method."""
        return short_examples(task, _NUM_SHOTS, self.seed)

    def generate(self, texts: Sequence[str] = (), shots: Sequence[Example] = (), *, scale: float = 1.0) -> LoRAWeights:
        """The generator's adapter for descriptions, examples, or both."""
        request = AdapterRequest(tuple(texts), _pairs(shots), scale)
        (made,) = self._maker.make([request])
        return made.weights

    def context_setting(
        self, task: Task, wanted: ContextWanted = "auto", shots: Sequence[Example] = ()
    ) -> ContextSetting:
        """The context and the scale that the service takes for the description and examples of a task."""
        request = AdapterRequest((self.description(task),), _pairs(shots))
        return self._maker.context_setting(request, wanted)

    def retrieved(self, task: Task, *, count: int, temperature: float = 0.05, own: bool = False) -> LoRAWeights | None:
        """Mean of the teachers of the `count` nearest training tasks, weighted by softmax of their cosines.

        The task itself is only included if `own`. None if there is no such teacher.
        """
        tasks = self.checkpoint.manifest.tasks
        query = self.encoder.encode([self.description(task)])[0]
        ranked = [(tasks[i].task_id, cosine) for i, cosine in self.checkpoint.prompt_index.nearest(query, len(tasks))]
        near = [(name, cos) for name, cos in ranked if name in self.teachers and (own or name != task.task_id)]
        near = near[:count]
        if not near:
            return None
        weights = (torch.tensor([cosine for _, cosine in near]) / temperature).softmax(0)
        return mean_adapter([self.teachers[name] for name, _ in near], weights)

    @cached_property
    def mean_teacher(self) -> LoRAWeights | None:
        """The mean of the training tasks' teachers; None without any."""
        chosen = [self.teachers[t.task_id] for t in self.checkpoint.manifest.tasks if t.task_id in self.teachers]
        return mean_adapter(chosen, torch.full((len(chosen),), 1 / len(chosen))) if chosen else None


def mean_adapter(adapters: Sequence[LoRAWeights], weights: Tensor) -> LoRAWeights:
    """Weighted mean of the A and of the B tensors of adapters with one spec.

    The rank does not change, as usual when adapters are averaged. With a shared A, the mean of the products is exact.
    """
    spec = adapters[0].spec
    factors = [float(w) for w in weights]

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([f * t for f, t in zip(factors, tensors, strict=True)]).sum(0)

    return LoRAWeights(
        spec,
        {n: mean([w.a[n] for w in adapters]) for n in spec.names},
        {n: mean([w.b[n] for w in adapters]) for n in spec.names},
    )


def _pairs(shots: Sequence[Example]) -> tuple[tuple[str, str], ...]:
    return tuple((shot.input, shot.output) for shot in shots)


def _adapter(
    adapter: LoRAWeights | None, description: str | None = None, shots: tuple[Example, ...] = ()
) -> MethodSetup | None:
    """The setup of an adapter; None without an adapter."""
    return None if adapter is None else MethodSetup(adapter, description, shots)


def _generated_from_seen(sources: MethodSources, task: Task) -> MethodSetup | None:
    text = sources.seen_description(task)
    return None if text is None else MethodSetup(sources.generate([text]))


def _in_context(
    sources: MethodSources,
    task: Task,
    shots: tuple[Example, ...] = (),
    wanted: ContextWanted = "auto",
    text: str | None = None,
) -> MethodSetup:
    """The adapter of the description and the examples, in the context and at the scale that the service takes.

    `text` makes the adapter in place of the description.
    """
    description, setting = sources.description(task), sources.context_setting(task, wanted, shots)
    adapter = None if setting.scale == 0 else sources.generate([text or description], shots, scale=setting.scale)
    return MethodSetup(adapter, *texts_in(setting.context, description, shots))


def _scaled(
    sources: MethodSources, task: Task, shots: tuple[Example, ...] = (), text: str | None = None
) -> MethodSetup | None:
    """As `_in_context`, with all texts in the context; None without a calibration."""
    if not sources.calibrated:
        return None
    return _in_context(sources, task, shots, "examples" if shots else "description", text)


def _scaled_multitask(sources: MethodSources, task: Task) -> MethodSetup | None:
    if not sources.calibrated or sources.multitask is None:
        return None
    scale = sources.context_setting(task, "description").scale
    return MethodSetup(sources.multitask.scaled(scale), sources.description(task))


def _gibberish(sources: MethodSources, task: Task) -> MethodSetup:
    return MethodSetup(sources.generate([GIBBERISH[(sources.seed + crc32(task.task_id.encode())) % len(GIBBERISH)]]))


METHODS: dict[str, Callable[[MethodSources, Task], MethodSetup | None]] = {
    "base": lambda sources, task: MethodSetup(None),
    "base + description": lambda sources, task: MethodSetup(None, sources.description(task)),
    "base + 3 examples": lambda sources, task: MethodSetup(None, None, sources.shots(task)),
    "base + description + 3 examples": lambda sources, task: MethodSetup(
        None, sources.description(task), sources.shots(task)
    ),
    "multi-task LoRA": lambda sources, task: _adapter(sources.multitask),
    "multi-task LoRA + description": lambda sources, task: _adapter(sources.multitask, sources.description(task)),
    "multi-task LoRA + description + 3 examples": lambda sources, task: _adapter(
        sources.multitask, sources.description(task), sources.shots(task)
    ),
    "shared adapter": lambda sources, task: MethodSetup(sources.checkpoint.generator.shared_adapter()),
    "shared adapter + description": lambda sources, task: MethodSetup(
        sources.checkpoint.generator.shared_adapter(), sources.description(task)
    ),
    "shared adapter + description + 3 examples": lambda sources, task: MethodSetup(
        sources.checkpoint.generator.shared_adapter(), sources.description(task), sources.shots(task)
    ),
    "mean of the teachers": lambda sources, task: _adapter(sources.mean_teacher),
    "nearest task's teacher": lambda sources, task: _adapter(sources.retrieved(task, count=1)),
    "nearest task's teacher, its own among them": lambda sources, task: _adapter(
        sources.retrieved(task, count=1, own=True)
    ),
    "softmax over 5 nearest teachers": lambda sources, task: _adapter(sources.retrieved(task, count=5)),
    "generated": lambda sources, task: MethodSetup(sources.generate([sources.description(task)])),
    "generated, description trained on": _generated_from_seen,
    "generated, wrong description": lambda sources, task: MethodSetup(sources.generate([sources.others[task.task_id]])),
    "generated, gibberish": _gibberish,
    "generated from 3 examples": lambda sources, task: MethodSetup(sources.generate(shots=sources.shots(task))),
    "generated from description and 3 examples": lambda sources, task: MethodSetup(
        sources.generate([sources.description(task)], sources.shots(task))
    ),
    "generated + description": lambda sources, task: MethodSetup(
        sources.generate([sources.description(task)]), sources.description(task)
    ),
    "generated, wrong description + description": lambda sources, task: MethodSetup(
        sources.generate([sources.others[task.task_id]]), sources.description(task)
    ),
    "generated + description + 3 examples": lambda sources, task: MethodSetup(
        sources.generate([sources.description(task)], sources.shots(task)),
        sources.description(task),
        sources.shots(task),
    ),
    "generated, scaled + description": lambda sources, task: _scaled(sources, task),
    "generated, wrong description, scaled + description": lambda sources, task: _scaled(
        sources, task, text=sources.others[task.task_id]
    ),
    "generated, scaled + description + 3 examples": lambda sources, task: _scaled(sources, task, sources.shots(task)),
    "auto": lambda sources, task: _in_context(sources, task),
    "auto with 3 examples": lambda sources, task: _in_context(sources, task, sources.shots(task)),
    "multi-task LoRA, scaled + description": _scaled_multitask,
    "teacher": lambda sources, task: _adapter(sources.teachers.get(task.task_id)),
}
"""Every method, in the order of the table. A method that lacks a source gives None and is reported as not run."""

FIXED_CONTEXTS: Mapping[str, tuple[str, ...]] = {
    "auto": ("generated", "base + description", "generated, scaled + description", "generated + description"),
    "auto with 3 examples": (
        "generated from description and 3 examples",
        "base + description + 3 examples",
        "generated, scaled + description + 3 examples",
        "generated + description + 3 examples",
    ),
}
"""The fixed choices of context that `auto` is compared with: adapter alone, base, calibrated scale and scale 1."""

INDEPENDENT = (
    "base",
    "base + description",
    "base + 3 examples",
    "base + description + 3 examples",
    "multi-task LoRA",
    "multi-task LoRA + description",
    "multi-task LoRA + description + 3 examples",
    "mean of the teachers",
    "nearest task's teacher",
    "nearest task's teacher, its own among them",
    "softmax over 5 nearest teachers",
    "teacher",
)
"""Methods that do not depend on the generator, except for the list of its training tasks."""
