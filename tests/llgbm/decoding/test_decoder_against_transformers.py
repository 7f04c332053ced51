from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from llgbm.adapters.peft_io import save_peft
from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora


def assert_as_transformers(
    base: Base, path: Path, folder: Path, prompts: Sequence[Sequence[int]], adapters: Sequence[LoRAWeights], size: int
) -> None:
    config: Any = base.model.generation_config
    stops = config.eos_token_id
    greedy = GenerationConfig(max_new_tokens=size, do_sample=False, eos_token_id=stops, pad_token_id=0)
    actual = generate(base, prompts, adapters, SamplingParams(max_tokens=size))
    for i, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
        save_peft(adapter, folder / str(i), base_id=base.spec.base_id)
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(plain, str(folder / str(i))).eval()
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        expected = whole[0, len(prompt) :].tolist()
        assert actual[i] == expected[: len(expected) - (expected[-1] in stops)]


def test_greedy_answers_are_those_of_transformers_with_peft(
    tiny_base: Base, tiny_base_path: Path, tmp_path: Path
) -> None:
    adapters = [random_lora(lora_spec("tiny"), seed) for seed in range(3)]
    prompts = [[1], list(range(40, 90)), [7, 7, 7, 100, 200]]
    assert_as_transformers(tiny_base, tiny_base_path, tmp_path, prompts, adapters, 40)


@pytest.mark.real
def test_greedy_answers_are_those_of_transformers_with_peft_on_the_real_base(
    real_base: Base, real_base_path: Path, tmp_path: Path
) -> None:
    spec = lora_spec("qwen2.5-0.5b")
    adapters = [random_lora(spec, seed, size=0.01) for seed in range(2)]
    texts = [
        [{"role": "user", "content": "Name the capital of France."}],
        [{"role": "user", "content": "Write a Python function that adds two numbers."}],
    ]
    prompts = [real_base.tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in texts]
    assert_as_transformers(real_base, real_base_path, tmp_path, prompts, adapters, 12)
    (answer,) = generate(real_base, prompts[:1])
    assert "Paris" in real_base.tokenizer.decode(answer)
