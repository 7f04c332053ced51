"""OpenAI's client streams from a real vLLM through the service, with adapters made from prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from llgbm.chat import prompt_ids
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from service.models.loading import load_models
from tests.service.support.harness import live, make_settings, services_of
from tests.service.support.real_vllm import RealVLLM

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(900)]

QUESTIONS = {
    "Translate the English word to French.": ("cheese", "house"),
    "Write the plural of the noun.": ("bridge", "child"),
}


def test_two_prompts_answer_through_vllm_as_they_do_here(
    real_vllm: RealVLLM, real_base_path: Path, real_encoder_path: Path, tmp_path: Path
) -> None:
    models = {"base": str(real_base_path), "text_encoder": str(real_encoder_path)}
    settings = make_settings(tmp_path, engine="vllm", vllm_url=real_vllm.url, vllm_max_loras=2, **models)
    with live(settings, load_models) as served, OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        services = services_of(served.app)

        def ask(model: str, word: str) -> tuple[str, str | None]:
            messages: Any = [{"role": "user", "content": word}]
            body: Any = {"messages": messages, "max_tokens": 8, "temperature": 0, "extra_body": {"context": "none"}}
            chunks: list[Any] = list(client.chat.completions.create(model=model, stream=True, **body))
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            return text, chunks[-1].adapter_id

        def here(word: str, adapter: str | None) -> str:
            weights = None if adapter is None else services.store.files.read(adapter)
            prompt = prompt_ids(real_vllm.base.tokenizer, [{"role": "user", "content": word}])
            (made,) = generate(real_vllm.base, [prompt], [weights], SamplingParams(max_tokens=8))
            return services.chat.decode(made)

        for task, words in QUESTIONS.items():
            for word in words:
                text, adapter = ask(f"prompt:{task}", word)
                plain, none = ask(services.models.base.spec.base_id, word)
                assert text == here(word, adapter)
                assert plain == here(word, none)
                assert adapter is not None
        # as after a restart of vLLM: it does not know the adapter
        httpx.post(f"{real_vllm.url}/v1/unload_lora_adapter", json={"lora_name": adapter}).raise_for_status()
        assert ask(f"prompt:{task}", word) == (text, adapter)
