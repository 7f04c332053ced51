"""Time from a prompt to an adapter: encoder, generator and writing, compared with generators of other sizes."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor, nn

from benchmarks.measuring.measure import Result, interleaved, milliseconds, over, result
from benchmarks.measuring.workbench import TASKS, Workbench
from llgbm.adapters.peft_io import save_peft
from llgbm.config import LoRASpec
from llgbm.prompting import AdapterMaker, AdapterRequest, joined_condition
from llgbm.text_encoder import MemoryEmbeddingCache

_BATCH = 32
_T2L_WIDTH, _DND_PARAMETERS, _DND_WIDTH = 256, 1_100_000_000, 8192


def run(bench: Workbench) -> list[Result]:
    encoder = bench.checkpoint.text_encoder(bench.encoder_name, cache=MemoryEmbeddingCache(100_000))
    maker = AdapterMaker(bench.checkpoint, encoder, base=bench.base_name)
    spec, base_id = bench.checkpoint.manifest.lora, bench.checkpoint.manifest.base_id
    numbers = count()
    known = AdapterRequest((TASKS[0],))
    (made,) = maker.make([known])
    condition = encoder.encode([TASKS[0]])
    words = bench.checkpoint.answer_words(encoder, bench.base_name)
    given = joined_condition(condition, None if words is None else words.encode([TASKS[0]]), 1)[None]
    sized: dict[str, nn.Module] = {"T2L-L": _T2LSized(spec, condition.shape[1]).eval(), "DnD": _DnDSized().eval()}

    def fresh(n: int) -> list[AdapterRequest]:
        return [AdapterRequest((f"Translate the English word number {next(numbers)} to French.",)) for _ in range(n)]

    def to_disk() -> None:
        save_peft(made.weights, bench.scratch / "made" / str(next(numbers)), base_id=base_id)

    def of_size(name: str) -> None:
        with torch.inference_mode():
            sized[name](condition)

    seconds = interleaved(
        {
            "uncached": lambda: maker.make(fresh(1)),
            "cached": lambda: maker.make([known]),
            "encoder": lambda: encoder.encode([f"Count to {next(numbers)}."]),
            "generator": lambda: bench.checkpoint.generator(given),
            "write to disk": to_disk,
            "T2L-L sized": lambda: of_size("T2L-L"),
            "DnD sized": lambda: of_size("DnD"),
        },
        n=bench.times(42),
        warm_up=2,
    )
    batch = interleaved({"32 prompts": lambda: maker.make(fresh(_BATCH))}, n=bench.times(18))
    ms = milliseconds(seconds) | {"32 prompts, each": [1e3 * s / _BATCH for s in batch["32 prompts"]]}
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in sized.items()}
    sized.clear()  # frees gigabytes that the last measurement needs
    note = (
        f"The other generators are stand-ins by size, with random weights: T2L's layout (task, layer and module "
        f"embeddings, residual MLP, one head a module) with {sizes['T2L-L'] / 1e6:.0f} M parameters, and "
        f"{sizes['DnD'] / 1e6:.0f} M parameters of plain matrices, each used once: less than DnD's convolutions do."
    )

    def arms(*names: str) -> dict[str, list[float]]:
        return {name: ms[name] for name in names}

    return [
        result("prompt to adapter in memory, uncached text", arms("uncached", "encoder", "generator"),
               lambda m: m["uncached"], unit="ms", arm_unit="ms", higher=False, target=60),
        result("prompt to adapter in memory, cached text", arms("cached", "generator"),
               lambda m: m["cached"], unit="ms", arm_unit="ms", higher=False, target=25),
        result("prompt to adapter on disk, uncached text", arms("uncached", "write to disk"),
               lambda m: m["uncached"] + m["write to disk"], unit="ms", arm_unit="ms", higher=False),
        result("prompt to adapter, 32 prompts in one pass, each", arms("32 prompts, each", "uncached"),
               lambda m: m["32 prompts, each"], unit="ms", arm_unit="ms", higher=False),
        result("our generator over one of T2L-L's size", arms("generator", "T2L-L sized"),
               over("generator", "T2L-L sized"), arm_unit="ms", higher=False, target=0.1, note=note),
        result("our generator over one of DnD's size", arms("generator", "DnD sized"),
               over("generator", "DnD sized"), arm_unit="ms", higher=False, target=0.1, note=note),
        _resident(bench, maker, known),
    ]  # fmt: skip


def _resident(bench: Workbench, maker: AdapterMaker, known: AdapterRequest) -> Result:
    """Time to make an adapter as more adapters stay in memory; float16, so that 1,000 fit."""
    kept = [made.weights.detach().to(torch.float16) for made in maker.make([known])]
    measured: dict[str, list[float]] = {}
    counts = (1, 10, 100) if bench.quick else (1, 100, 1000)
    for resident in counts:
        while len(kept) < resident:
            kept.append(kept[0].map(torch.clone))
        seconds = interleaved({"cached": lambda: maker.make([known])}, n=bench.times(18))
        measured[f"{resident} resident"] = milliseconds(seconds)["cached"]
    return result(
        f"prompt to adapter with {counts[-1]:,} resident adapters over 1",
        measured,
        lambda m: m[f"{counts[-1]} resident"] / m["1 resident"],
        arm_unit="ms",
        higher=False,
        note=f"{counts[-1] * kept[0].num_bytes / 1e9:.1f} GB of adapters.",
    )


class _T2LSized(nn.Module):
    """A generator with the layout of Text-to-LoRA (arXiv 2506.06105, largest form), for this base and all 7 targets."""

    def __init__(self, spec: LoRASpec, condition_size: int) -> None:
        super().__init__()
        kinds: dict[str, list[int]] = {}
        self._kinds = kinds
        shapes = {}
        for index, module in enumerate(spec.modules):
            kind = module.name.rpartition(".")[2]
            kinds.setdefault(kind, []).append(index)
            shapes[kind] = spec.rank * (module.in_features + module.out_features)
        layers = max(len(indices) for indices in kinds.values())
        width = _T2L_WIDTH
        self.task = nn.Linear(condition_size, width)
        self.layer, self.kind = nn.Embedding(layers, width), nn.Embedding(len(kinds), width)
        self.mix = nn.Linear(3 * width, 4 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, 4 * width), nn.SiLU()) for _ in range(6)
        )
        self.narrow = nn.Linear(4 * width, width)
        self.heads = nn.ModuleDict({kind: nn.Linear(width, size) for kind, size in shapes.items()})

    def forward(self, condition: Tensor) -> list[Tensor]:
        """A tensor (layers, rank * (in + out)) for each kind of module."""
        task = self.task(condition)
        out = []
        for number, (kind, indices) in enumerate(self._kinds.items()):
            layer = self.layer(torch.arange(len(indices)))
            kinds = self.kind(torch.full((len(indices),), number))
            x = self.mix(torch.cat([task.expand(len(indices), -1), layer, kinds], dim=-1))
            for block in self.blocks:
                x = x + block(x)
            out.append(self.heads[kind](self.narrow(x)))
        return out


class _DnDSized(nn.Module):
    """The number of parameters of DnD's generator (arXiv 2506.16406), each read once: a lower bound of its time."""

    def __init__(self) -> None:
        super().__init__()
        matrix = torch.full((_DND_WIDTH, _DND_WIDTH), 1e-4)  # filled, so that every page is backed by memory
        self.wide = nn.ParameterList(matrix.clone() for _ in range(_DND_PARAMETERS // _DND_WIDTH**2))

    def forward(self, condition: Tensor) -> Tensor:
        """(1, width)."""
        x = condition.repeat(1, -(-_DND_WIDTH // condition.shape[1]))[:, :_DND_WIDTH]
        for matrix in self.wide:
            x = torch.tanh(x @ matrix.t())
        return x
