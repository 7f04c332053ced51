"""The shipped generator recognises the page's example tasks as tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llgbm.checkpoint import load_generator
from llgbm.prompting import AdapterMaker, AdapterRequest
from service.routes.playground import STATIC
from service.settings import DEFAULT_CHECKPOINT


@pytest.mark.real
def test_the_shipped_generator_takes_each_for_a_task(real_encoder_path: Path) -> None:
    script = (STATIC / "js" / "task" / "example_tasks.js").read_text("utf-8")
    prompts = [json.loads(text) for text in re.findall(r'prompt:\s+("[^\n]*?"),', script)]
    assert len(prompts) == script.count("label: ") - script.count("{label: ")
    maker = AdapterMaker(shipped := load_generator(DEFAULT_CHECKPOINT), shipped.text_encoder(real_encoder_path))
    made = maker.make([AdapterRequest((prompt,)) for prompt in prompts])
    assert {m.request.descriptions[0]: m.task_probability for m in made if m.task_probability < 0.5} == {}
