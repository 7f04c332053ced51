"""The product of float activations with an int8 matrix through the kernel of FBGEMM, which does not need VNNI."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from llgbm.errors import ConfigError


class FbgemmProduct:
    """x -> x W^T + b with W in int8, with one scale for each of its rows, and x quantised with one scale for each row.

    The kernel takes one activation scale for all rows. So rows are divided by their largest magnitude first, which
    makes one scale right for each, and their products are multiplied by it again. No gradient.

    Args:
        weight: W (out, in), float32.
        bias: b (out,), float32.

    Raises:
        ConfigError: torch has no int8 kernel for this processor.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if not self.supported():
            raise ConfigError("this build of torch has no int8 kernel for this processor; choose the storage float32")
        # without VNNI the kernel adds pairs of products in 16 bits, which only 7-bit activations cannot overflow
        self._steps = 127 if torch.cpu._is_vnni_supported() else 63
        scales = weight.abs().amax(dim=1).clamp_min(1e-8) / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces a successor of this kernel that is not faster on a CPU
            quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(quantised, None)
        self._bias = bias

    @staticmethod
    def supported() -> bool:
        """Whether this build of torch has the kernel for this processor."""
        return "fbgemm" in torch.backends.quantized.supported_engines

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of `x`."""
        rows = x.float()
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-20)
        out: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / largest, 1 / self._steps, self._steps + 1, self._packed
        )
        out = out.mul_(largest) if self._bias is None else torch.addcmul(self._bias, out, largest)
        return out.to(x.dtype)
