"""LoRAGenerator: a condition vector in, a LoRA adapter out, in one forward pass.

Every adapted module has two bases that all adapters share, A0 (R, in) and B0 (out, R). A trunk reads the condition and
emits two small cores per module, Q (r, R) and P (R, r), and one gate g for the whole adapter: A = Q A0, B = g B0 P.
The result is plain LoRA, and every LoRA of rank r in the span of the bases can be generated. Bases and constant cores
alone are a multi-task adapter. The gate scales the whole adapter.
A condition may also bring the words that answers are likely to have, as directions of the last hidden state
(`llgbm.conditioning.answer_words`). They are columns of B in the last layer, outside of the bases: words that no
training task had could not be written otherwise.
Shared bases with generated cores follow Zhyper; layer and module embeddings follow Text-to-LoRA (2506.06105).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from llgbm.config import WORD_SLOTS, GeneratorConfig, LoRASpec, ModelSpec, ModuleShape
from llgbm.errors import ConfigError
from llgbm.lora import LoRAWeights, Stack

_K = TypeVar("_K")


_WORD_TARGET = "down_proj"
"""The last Linear that writes to the residual stream."""
_CORE_STEP = 0.25
"""Change of a core's element per unit of head output, relative to the element's size. An Adam step moves every weight
of a head by the learning rate, hence an output by about that times the trunk's width: at full size cores would jump."""


class Cores(NamedTuple):
    """The generated part of n adapters.

    Attributes:
        q: (n, modules, r, R).
        p: (n, modules, R, r).
        words: (n, slots, hidden), columns of B in the last layer; None for a generator without answer words.
    """

    q: Tensor
    p: Tensor
    words: Tensor | None = None


class _ResidualBlock(nn.Module):
    """x + W2 gelu(W1 norm(x)), on (..., size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, 2 * size)
        self.down = nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return out


class LoRAGenerator(nn.Module):
    """Makes adapters of one LoRASpec for one ModelSpec.

    The constructor leaves the parameters uninitialised: `create_generator` gives them their first values, and
    `llgbm.checkpoint.load_generator` those of a file.

    Attributes:
        model: the base's shape.
        lora: the spec of every adapter.
        config: the generator's size.
        trunk_dtype: dtype of the trunk's matrix products (autocast). bfloat16 is faster on CPUs with instructions for
            it; parameters and cores stay float32.
    """

    trunk_dtype: torch.dtype = torch.float32

    def __init__(self, model: ModelSpec, lora: LoRASpec, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        lora.require_fits(model)
        self.model, self.lora, self.config = model, lora, config or GeneratorConfig()
        hidden, rank, basis = self.config.hidden_size, lora.rank, self.config.basis_rank
        count = len(lora.modules)
        self._by_input = _group(m.in_features for m in lora.modules)
        self._by_output = _group(m.out_features for m in lora.modules)
        self._by_target = _group(m.target for m in lora.modules)
        # one parameter for each distinct size n: (modules of that size, R, n), so that one bmm serves all of them
        self.a0 = nn.ParameterDict({str(n): torch.empty(len(m), basis, n) for n, m in self._by_input.items()})
        # B0 is stored transposed, (modules, R, out): then B^T comes out contiguous, the fastest layout for all products
        self.b0 = nn.ParameterDict({str(n): torch.empty(len(m), basis, n) for n, m in self._by_output.items()})
        self.q0 = nn.Parameter(torch.empty(count, rank, basis))
        self.p0 = nn.Parameter(torch.empty(count, basis, rank))

        self.read = nn.Linear(self.config.condition_size, hidden)
        self.blocks = nn.ModuleList(_ResidualBlock(hidden) for _ in range(self.config.num_blocks))
        targets = lora.target_modules
        self._layer_of = [m.layer for m in lora.modules]
        self._target_of = [targets.index(m.target) for m in lora.modules]
        self.layer_embedding = nn.Embedding(model.num_layers, hidden)
        self.target_embedding = nn.Embedding(len(targets), hidden)
        self.module_block = _ResidualBlock(hidden)
        self.norm = nn.LayerNorm(hidden)
        self.gate = nn.Linear(hidden, 1)
        # one head per target, shared by all layers: hidden -> Q and P of one module, flattened and joined
        self.heads = nn.Parameter(torch.empty(len(targets), hidden, 2 * rank * basis))
        self._word_module: str | None = None
        if self.config.answer_words:
            module = _word_module(model, lora)
            self._word_module = module.name
            self.word_rows = nn.Parameter(torch.empty(WORD_SLOTS, module.in_features))
            self.word_gain = nn.Linear(hidden, WORD_SLOTS)

    @property
    def input_size(self) -> int:
        """Length of a condition: the vector of the text encoder, and the answer words if the generator reads them."""
        words = WORD_SLOTS * self.model.hidden_size if self.config.answer_words else 0
        return self.config.condition_size + words

    def reset_parameters(self) -> None:
        """A0 as PEFT initialises A (Kaiming uniform), B0 zero, constant cores orthonormal, heads small, gate 1."""
        for a0 in self.a0.values():
            bound = 1 / math.sqrt(a0.shape[-1])
            nn.init.uniform_(a0, -bound, bound)
        for b0 in self.b0.values():
            nn.init.zeros_(b0)  # a fresh adapter changes nothing, as in PEFT
        for i in range(len(self.lora.modules)):
            nn.init.orthogonal_(self.q0.data[i])
            nn.init.orthogonal_(self.p0.data[i])
        nn.init.normal_(self.layer_embedding.weight, std=0.5)
        nn.init.normal_(self.target_embedding.weight, std=0.5)
        # the heads read a LayerNorm's output, entries of size 1: their outputs get a standard deviation of 0.4
        nn.init.normal_(self.heads, std=0.4 / math.sqrt(self.config.hidden_size))
        nn.init.zeros_(self.gate.weight)  # gate = 2 sigmoid(0) = 1 for every condition
        nn.init.zeros_(self.gate.bias)
        if self.config.answer_words:
            nn.init.zeros_(self.word_rows)
            nn.init.zeros_(self.word_gain.weight)  # as the gate
            nn.init.zeros_(self.word_gain.bias)

    def cores(self, condition: Tensor | None) -> Cores:
        """The cores of adapters, float32; P and the words hold the gate.

        Args:
            condition: (n, input_size) float32, or None for the constant cores alone, n = 1.

        Raises:
            ConfigError: `condition` has another shape.
        """
        if condition is None:
            words = self.q0.new_zeros(1, WORD_SLOTS, self.model.hidden_size) if self._word_module else None
            return Cores(self.q0[None], self.p0[None], words)
        gate, dq, dp, gain = self.changes(condition)
        words = None
        if gain is not None:
            words = condition[:, self.config.condition_size :].to(gain).unflatten(1, (WORD_SLOTS, -1))
            words = (gate[:, None] * gain)[..., None] * words
        return Cores(self.q0 + dq, gate[:, None, None, None] * (self.p0 + dp), words)

    def changes(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Changes to the constant cores for conditions (n, input_size) float32.

        Returns:
            gate: (n,) between 0 and 2, the scale of the adapter.
            dq: (n, modules, r, R), added to the constant Q.
            dp: (n, modules, R, r), added to the constant P before the gate.
            gain: (n, slots) between 0 and 2, the scale of the answer words; None for a generator without them.

        Raises:
            ConfigError: `condition` has another shape.
        """
        if condition.dim() != 2 or condition.shape[1] != self.input_size:
            raise ConfigError(
                f"the condition has shape {tuple(condition.shape)}, this generator reads (n, {self.input_size}); use "
                "the text encoder that it was trained with"
            )
        condition = condition[:, : self.config.condition_size].to(self.q0.device)
        n, (count, rank, basis) = condition.shape[0], self.q0.shape
        low = self.trunk_dtype != torch.float32
        with torch.autocast(condition.device.type, self.trunk_dtype if low else None, enabled=low):
            # a unit vector has entries of size 1 / sqrt(d): scale them to size 1 for the first layer
            x = self.read(condition * math.sqrt(self.config.condition_size))  # (n, hidden)
            for block in self.blocks:
                x = block(x)
            # normalised first, so that the gates depend on the direction of x, not on its size
            direction = nn.functional.layer_norm(x, x.shape[-1:])
            gate = 2 * self.gate(direction)[:, 0].sigmoid()
            gain = 2 * self.word_gain(direction).sigmoid() if self._word_module else None
            # (modules, hidden)
            place = self.layer_embedding.weight[self._layer_of] + self.target_embedding.weight[self._target_of]
            y = self.norm(self.module_block(x[:, None] + place[None]))  # (n, modules, hidden)
            out = y.new_empty(n, count, 2 * rank * basis, dtype=self.trunk_dtype)
            for head, members in zip(self.heads, self._by_target.values(), strict=True):
                out[:, members] = y[:, members] @ head  # (n, layers, hidden) @ (hidden, 2 r R)
        # rows of an orthonormal Q have R entries of size 1 / sqrt(R): _CORE_STEP is relative to that
        dq, dp = (out.float() * (_CORE_STEP / math.sqrt(basis))).split(rank * basis, dim=-1)
        gain = None if gain is None else gain.float()
        return gate.float(), dq.view(n, count, rank, basis), dp.view(n, count, basis, rank), gain

    def materialise(self, cores: Cores, dtype: torch.dtype = torch.float32) -> list[LoRAWeights]:
        """Adapters from cores: A = Q A0 and B = B0 P for every module, and the answer words in the last one.

        Args:
            dtype: of the products, and so of the adapters.

        Returns:
            n adapters. Their tensors are views of products over all n (`LoRAWeights.stack`), so each keeps the memory
            of all.
        """
        # P is transposed, since B^T = P^T B0^T: (n, m, R, r) -> (n, m, r, R)
        a = self._products(cores.q, self.a0, self._by_input, dtype)
        b = self._products(cores.p.mT, self.b0, self._by_output, dtype)
        if self._word_module is not None and cores.words is not None:
            name, n = self._word_module, len(cores.q)
            rows = self.word_rows.to(dtype).expand(n, -1, -1)  # (n, slots, in)
            a[name] = torch.cat([a[name][:, :-WORD_SLOTS], rows], 1)
            b[name] = torch.cat([b[name][:, :-WORD_SLOTS], cores.words.to(dtype)], 1)
        stack, names = Stack(a, b), self.lora.names
        # unbind, not indexing: its backward pass is one stack, not a zero tensor for every index
        rows_a = {name: a[name].unbind() for name in names}
        rows_b = {name: b[name].mT.unbind() for name in names}  # (out, r) each, views
        return [
            LoRAWeights(
                self.lora, {n: rows_a[n][i] for n in names}, {n: rows_b[n][i] for n in names}, stack=stack, place=i
            )
            for i in range(len(cores.q))
        ]

    def _products(
        self, cores: Tensor, bases: nn.ParameterDict, by_size: dict[int, list[int]], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Module name -> (n, r, size), the product of its cores in (n, modules, r, R) with its basis (R, size)."""
        n, rank, basis = cores.shape[0], self.lora.rank, self.config.basis_rank
        found: dict[str, Tensor] = {}
        # Modules m of one size make one batched product: the n adapters of a module share its basis, so their cores are
        # stacked to one tall matrix per module.
        for size, members in by_size.items():
            # (n, m, r, R) -> (m, n, r, R) -> (m, n r, R)
            stacked = cores[:, members].transpose(0, 1).reshape(len(members), n * rank, basis)
            # (m, n r, R) @ (m, R, size) -> (m, n, r, size)
            product = torch.bmm(stacked.to(dtype), bases[str(size)].to(dtype)).view(len(members), n, rank, size)
            found |= {self.lora.names[member]: one for member, one in zip(members, product.unbind(), strict=True)}
        return found

    def forward(self, condition: Tensor) -> list[LoRAWeights]:
        """One adapter for each row of `condition` (n, input_size), float32, with gradients to every parameter.

        Raises:
            ConfigError: `condition` has another shape.
        """
        return self.materialise(self.cores(condition))

    def shared_parameters(self) -> list[nn.Parameter]:
        """The bases and the constant cores, which are the shared adapter, and the rows of A for the answer words."""
        words = [self.word_rows] if self._word_module else []
        return [*self.a0.values(), *self.b0.values(), self.q0, self.p0, *words]

    def trunk_matrices(self) -> list[nn.Parameter]:
        """The matrices between a condition and its cores; the heads are a stack with one matrix per target."""
        layers = (self.read, self.blocks, self.module_block)
        return [p for layer in layers for p in layer.parameters() if p.dim() > 1] + [self.heads]

    def shared_adapter(self) -> LoRAWeights:
        """The adapter of the constant cores, without a condition."""
        return self.materialise(self.cores(None))[0]


def create_generator(
    model: ModelSpec, lora: LoRASpec, config: GeneratorConfig | None = None, *, seed: int = 0
) -> LoRAGenerator:
    """A freshly initialised generator; the seed decides its parameters, and the global RNG is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = LoRAGenerator(model, lora, config)
        generator.reset_parameters()
    return generator


def uninitialised_generator(model: ModelSpec, lora: LoRASpec, config: GeneratorConfig | None = None) -> LoRAGenerator:
    """A generator for `load_state_dict`; the global RNG is unchanged."""
    with torch.random.fork_rng(devices=[]):  # torch's own Linears draw random numbers
        return LoRAGenerator(model, lora, config)


def _group(keys: Iterable[_K]) -> dict[_K, list[int]]:
    """The indices of each key, in order of first appearance."""
    places: dict[_K, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places


def _word_module(model: ModelSpec, lora: LoRASpec) -> ModuleShape:
    """The module that the answer words go to."""
    last = [m for m in lora.modules if m.layer == model.num_layers - 1 and m.target == _WORD_TARGET]
    if not last or lora.rank <= WORD_SLOTS:
        raise ConfigError(
            f"a generator with answer words needs adapters that change {_WORD_TARGET} of the last layer, of a rank "
            f"above {WORD_SLOTS}"
        )
    return last[0]
