"""What benchmarks share: the models, adapters and prompts, each loaded when first asked for."""

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
from llgbm.text_encoder import PretrainedTextEncoder

CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "qwen2.5-0.5b"

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
    """Models and adapters of one benchmark run; a context, at whose end its scratch folder is removed.

    Args:
        quick: a few repetitions only, to see that a benchmark works; its numbers are worth little.
        checkpoint: folder of the generator.
        base, text_encoder: hub ids or folders, in place of those that the generator names.
        peers: name of a peer -> a Python interpreter that has it, in place of an environment made for it.
        threads: that torch and the peers compute with.
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
        """How often to repeat what a full run repeats `n` times."""
        return 1 if self.quick else n

    def tokens(self, n: int) -> int:
        """How many tokens to decode where a full run decodes `n`."""
        return max(4, n // 6) if self.quick else n

    @property
    def scratch(self) -> Path:
        """A folder that is gone after the run."""
        return Path(self._scratch.name)

    @cached_property
    def float32(self) -> Base:
        """The base as it came."""
        return load_base(self.base_name)

    @cached_property
    def int8(self) -> Base:
        """The base with int8 Linears."""
        return load_base(self.base_name, storage="int8")

    @cached_property
    def adapters(self) -> list[LoRAWeights]:
        """16 different generated adapters, made so weak that the base still gives the long answer it is asked for."""
        maker = AdapterMaker(self.checkpoint, PretrainedTextEncoder(self.encoder_name))
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
        """Token ids of a conversation that asks for a long answer."""
        return list(prompt_ids(self.float32.tokenizer, task_messages(STORY)))

    def peft_model(self, count: int) -> Any:
        """A PEFT model in float32 with `count` of the adapters, named "0", "1", ..., and weights of its own."""
        plain: Any = copy.deepcopy(self.float32.model)
        model: Any = PeftModel.from_pretrained(plain, str(self.adapter_folders[0]), adapter_name="0")
        for number in range(1, count):
            model.load_adapter(str(self.adapter_folders[number]), adapter_name=str(number))
        return model.eval()

    def decoder(self, base: Base, adapters: Sequence[LoRAWeights | None], *, tokens: int) -> Decoder:
        """A decoder that runs the prompt with each adapter and can step `tokens` times before a row ends."""
        decoder = Decoder(base)
        params = SamplingParams(max_tokens=tokens + 1, stop_token_ids=())
        decoder.add([DecodeRequest(self.prompt, adapter, params) for adapter in adapters])
        return decoder


def steps(decoder: Decoder, count: int) -> None:
    """Decode so many tokens of each row."""
    for _ in range(count):
        decoder.step()


def transformers_generate(model: Any, prompt: Sequence[int], tokens: int) -> None:
    """Greedy `generate` of transformers, or of a PEFT model over it: one row, exactly `tokens` new tokens."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,  # the hub's generation settings have one, and no other arm does
        )
