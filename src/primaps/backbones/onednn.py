"""Linear layers and attention on a CPU by oneDNN, which PyTorch has with it.

PyTorch multiplies matrices of float32 by MKL, which takes half of the width of the vectors that
some processors have, and its attention multiplies small tiles with softmax in between. What is
computed is the same, to the rounding; benchmarks/backbones.py says how much faster it is.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS = 256
"""Queries whose scores are computed together: these stay in the cache, and memory is bounded."""


def product(a: Float[Tensor, "... m c"], b: Float[Tensor, "n c"]) -> Float[Tensor, "... m n"]:
    """``a @ b.T`` in float32.

    Examples:
        >>> product(torch.eye(2), torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0], [2.0]]
    """
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


class Linear(nn.Linear):
    """``nn.Linear`` of a frozen network, by oneDNN for float32 on a CPU."""

    def forward(self, input: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """``input @ weight.T + bias``."""
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)  # in bfloat16 it is oneDNN as well
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def attention(
    query: Float[Tensor, "b n t d"],
    key: Float[Tensor, "b n s d"],
    value: Float[Tensor, "b n s d"],
    scale: float,
) -> Float[Tensor, "b t n d"]:
    """``softmax(query key^T scale) value`` of each head; scores and weights in float32.

    Examples:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> expected = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
        >>> torch.allclose(attention(q, k, v, 0.5), expected.transpose(1, 2), atol=1e-5)
        True
    """
    batch, heads, tokens, width = query.shape
    result = query.new_empty(batch, tokens, heads, width)
    for image in range(batch):
        for head in range(heads):
            keys = (key[image, head].float() * scale).contiguous()
            # As a matrix that `product` takes, or as one that bfloat16 is multiplied by.
            values = value[image, head]
            whole = values.dtype == torch.float32
            values = values.T.contiguous() if whole else values
            for rows in range(0, tokens, ROWS):
                asked = query[image, head, rows : rows + ROWS].float()
                weights = product(asked, keys).softmax(-1)
                result[image, rows : rows + ROWS, head] = (
                    product(weights, values) if whole else weights.to(values.dtype) @ values
                )
    return result


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`attention` as transformers calls it; what it is not made for goes to PyTorch's."""
    causal = options.get("is_causal", getattr(module, "is_causal", False))
    plain = attention_mask is None and not dropout and not causal and query.shape == key.shape
    if plain and query.device.type == "cpu" and not torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            return attention(query, key, value, scaling or query.shape[-1] ** -0.5), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, **options
    )


def quicken(model: nn.Module) -> None:
    """Let a network of ``transformers`` compute by oneDNN where there is one for the processor.

    Parameters stay what and where they are. An attention of another kind than ``sdpa`` stays.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (x86 and torch.backends.mkldnn.is_available()):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    try:
        from transformers import AttentionInterface

        if model.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
            AttentionInterface.register("onednn", _interface)
            model.set_attn_implementation("onednn")  # type: ignore[operator]
    except (ImportError, AttributeError):  # transformers before 4.54 has no such choice
        return
