from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from llgbm.base import Base, load_base
from llgbm.decoding.decode_pass import DecodePass
from llgbm.decoding.kv_cache import RowCache
from llgbm.errors import ConfigError


def states(base: Base, texts: list[list[int]], steps: int) -> list[torch.Tensor]:
    """Last hidden states (rows, hidden) of the last `steps` tokens, one step each; the others are the prompt."""
    model: Any = base.model
    cache = RowCache(base.spec.num_layers, base.spec.num_kv_heads, base.spec.head_dim, torch.float32)
    decode = DecodePass(model)
    prompts = [text[:-steps] for text in texts]
    width = max(map(len, prompts))
    with torch.inference_mode():
        ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
        places = torch.arange(width)[None]
        no_mask = {"full_attention": None}
        read: Any = DynamicCache()
        model.model(input_ids=ids, position_ids=places, attention_mask=no_mask, past_key_values=read, use_cache=True)
        cache.join([x.keys for x in read.layers], [x.values for x in read.layers], [len(p) for p in prompts])
        out = []
        for step in range(steps):
            positions = torch.tensor(cache.lengths)
            mask = cache.start_step()
            out.append(decode(torch.tensor([t[len(t) - steps + step] for t in texts]), positions, mask, cache))
            cache.finish_step()
    return out


def test_steps_are_the_model_on_the_whole_text(tiny_base: Base) -> None:
    model: Any = tiny_base.model
    texts = [list(range(5, 5 + length)) for length in (4, 30, 9)]
    made = states(tiny_base, texts, 3)
    for row, text in enumerate(texts):
        with torch.inference_mode():
            expected = model.model(torch.tensor([text])).last_hidden_state[0, -3:]
        torch.testing.assert_close(torch.stack([step[row] for step in made]), expected, atol=1e-4, rtol=0)


def test_a_sliding_window_is_refused(tiny_base_path: Path) -> None:
    model: Any = load_base(tiny_base_path).model
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ConfigError, match="sliding window"):
        DecodePass(model)
