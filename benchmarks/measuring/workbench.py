"""Models, adapters and prompts shared by the benchmarks; each is loaded on first use."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel

from llgbm.adapters.peft_io import save_peft
from llgbm.base import Base, load_base
from llgbm.chat import prompt_ids, task_messages
from llgbm.checkpoint import load_generator
from llgbm.decoding.decoder import Decoder, DecodeRequest
from llgbm.decoding.sampling import SamplingParams
from llgbm.lora import LoRAWeights
from llgbm.prompting import AdapterMaker, AdapterRequest

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "qwen2.5-0.5b"

TASKS = (
    "Translate the English word to French.",
    "Write the word in upper case.",
    "Say whether the review is positive or negative.",
    "Give the opposite of the word.",
    "Rewrite the sentence in the past tense.",
    "Name the capital of the country.",
    "Count the words of the sentence.",
    "Give the plural of the noun.",
    "Spell the word backwards.",
    "Say whether the statement is true or false.",
    "Summarise the text in one sentence.",
    "Give the chemical symbol of the element.",
    "Correct the spelling of the sentence.",
    "Say in which language the text is written.",
    "Turn the sentence into a question.",
    "Name the animal's young.",
)

_SCALE = 0.05

STORY = "Tell me a long story about an old house by the sea and the people who lived in it."


class Workbench:
    """Models and adapters of one benchmark run; a context manager that removes its scratch folder at the end.

    Args:
        quick: few repetitions, to check that a benchmark works; the numbers are not meaningful.
        checkpoint: folder of the generator.
        base, text_encoder: hub ids or folders; by default those of the generator.
        peers: name of a peer -> a Python interpreter with it; by default an environment is created.
        threads: number of threads of torch and the peers.
    """

    def __init__(
        self,
        *,
        quick: bool,
        checkpoint: Path = CHECKPOINT,
        base: str | None = None,
        text_encoder: str | None = None,
        peers: dict[str, Path] | None = None,
        threads: int = 2,
    ) -> None:
        self.quick, self.checkpoint_folder, self.peers, self.threads = quick, checkpoint, peers or {}, threads
        self.checkpoint = load_generator(checkpoint)
        self.base_name = base or self.checkpoint.manifest.base_id
        self.encoder_name = text_encoder or self.checkpoint.manifest.encoder_id
        self._scratch = tempfile.TemporaryDirectory(prefix="llgbm-bench-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.cleanup()

    def times(self, n: int) -> int:
        """The number of repetitions, `n` in a full run."""
        return 1 if self.quick else n

    def tokens(self, n: int) -> int:
        """The number of tokens to decode, `n` in a full run."""
        return max(4, n // 6) if self.quick else n

    @property
    def scratch(self) -> Path:
        """A folder that is removed after the run."""
        return Path(self._scratch.name)

    @cached_property
    def float32(self) -> Base:
        """The base in float32."""
        return load_base(self.base_name)

    @cached_property
    def int8(self) -> Base:
        """The base with int8 Linears."""
        return load_base(self.base_name, storage="int8")

    @cached_property
    def adapters(self) -> list[LoRAWeights]:
        """16 different generated adapters, scaled down so that the base still gives the requested long answer."""
        maker = AdapterMaker(self.checkpoint, self.checkpoint.text_encoder(self.encoder_name), base=self.base_name)
        return [
            made.weights.detach().scaled(_SCALE) for made in maker.make([AdapterRequest((task,)) for task in TASKS])
        ]

    @cached_property
    def adapter_folders(self) -> list[Path]:
        """The adapters as PEFT folders."""
        folders = []
        for number, adapter in enumerate(self.adapters):
            folders.append(self.scratch / "adapters" / f"task-{number}")
            save_peft(adapter, folders[-1], base_id=self.checkpoint.manifest.base_id)
        return folders

    @cached_property
    def prompt(self) -> list[int]:
        """Token ids of a conversation that requests a long answer."""
        return list(prompt_ids(self.float32.tokenizer, task_messages(STORY)))

    def peft_model(self, count: int) -> Any:
        """A PEFT model in float32 with `count` of the adapters, named "0", "1", ..., on a copy of the base."""
        plain: Any = copy.deepcopy(self.float32.model)
        model: Any = PeftModel.from_pretrained(plain, str(self.adapter_folders[0]), adapter_name="0")
        for number in range(1, count):
            model.load_adapter(str(self.adapter_folders[number]), adapter_name=str(number))
        return model.eval()

    def decoder(self, base: Base, adapters: Sequence[LoRAWeights | None], *, tokens: int) -> Decoder:
        """A decoder that has read the prompt with each adapter and can make `tokens` steps before a row ends."""
        decoder = Decoder(base)
        params = SamplingParams(max_tokens=tokens + 1, stop_token_ids=())
        decoder.add([DecodeRequest(self.prompt, adapter, params) for adapter in adapters])
        return decoder


def steps(decoder: Decoder, count: int) -> None:
    """Decode `count` tokens of each row."""
    for _ in range(count):
        decoder.step()


def transformers_generate(model: Any, prompt: Sequence[int], tokens: int) -> None:
    """Greedy `generate` of a transformers or PEFT model: one row, exactly `tokens` new tokens."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,  # overrides the hub's generation settings; no other arm has a penalty
        )
