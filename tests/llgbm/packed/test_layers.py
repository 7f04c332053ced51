from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from llgbm.packed.layers import packed_layers

CONFIG = Qwen2Config(
    vocab_size=32,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made: Any = Qwen2ForCausalLM(CONFIG).eval().requires_grad_(False)
    for norm in (made.model.norm, made.model.layers[0].input_layernorm, made.model.layers[0].post_attention_layernorm):
        nn.init.normal_(norm.weight)
    result: nn.Module = made
    return result


def output_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    out: Tensor = module(leaf)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)
    return out.detach(), torch.autograd.grad(out, leaf, weights)[0]


@pytest.mark.parametrize("name", ["norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm"])
@pytest.mark.parametrize("tokens", [1, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_computes_what_transformers_computes(
    model: nn.Module, name: str, tokens: int, dtype: torch.dtype
) -> None:
    module = model.to(dtype).get_submodule(f"model.{name}")
    # tokens of very different size, as in the real residual stream
    x = torch.randn(1, tokens, 48, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, tokens)[:, None]
    expected, wanted = output_and_gradient(module, x.to(dtype))
    with packed_layers(model):
        found, gradient = output_and_gradient(module, x.to(dtype))
    for mine, other in ((found, expected), (gradient, wanted)):
        assert mine.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(mine, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)
        else:
            assert F.cosine_similarity(mine.double(), other.double(), dim=-1).min() > 0.9995
