"""Faster layers of vision transformers on a CPU: oneDNN, and OpenVINO as an extra.

Both compute the same as PyTorch up to rounding; benchmarks/backbones.py measures the speed.

- oneDNN, which PyTorch includes: PyTorch multiplies float32 matrices by MKL, which uses half of the
  vector width of some processors, and its attention multiplies small tiles with a softmax between.
- OpenVINO: one kernel for attention, while PyTorch writes the scores to memory. It is 1.4 times as
  fast.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.utils.errors import MissingPackageError
from primaps.utils.parallel import LANES

ROWS = 256
"""Queries whose scores are computed together: the scores fit into the cache of the processor."""
OPENVINO_MODELS = ("vit", "deit", "vit_msn", "dinov2", "dinov2_with_registers")
"""Model types whose layers take tokens only: no mask, no positions, nothing added between them."""
_core: Any = None
_core_lock = threading.Lock()


def use_onednn(model: nn.Module) -> None:
    """Let oneDNN compute a network of ``transformers``, on processors that it supports.

    Parameters are not changed or moved. An attention other than ``sdpa`` is not replaced.
    """
    if not onednn_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    chosen = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if chosen == "sdpa" and _register_attention():
        model.set_attn_implementation("onednn")  # type: ignore[operator]


@lru_cache(maxsize=1)
def onednn_available() -> bool:
    """Return whether oneDNN computes matrix products on this processor."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkldnn.is_available()


@lru_cache(maxsize=1)
def _register_attention() -> bool:
    """Register :func:`attention` in transformers, once per process; return whether it could be."""
    try:
        from transformers import AttentionInterface
    except ImportError:  # transformers before 4.54 has no such interface
        return False
    AttentionInterface.register("onednn", _attention_interface)
    return True


class Linear(nn.Linear):
    """``nn.Linear`` of a frozen network; oneDNN computes it in float32 on a CPU."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A network that comes from another process names the attention in its configuration.
        _register_attention()

    def forward(self, input: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """Compute ``input @ weight.T + bias``."""
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        plain = plain and onednn_available()
        if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)  # in bfloat16, PyTorch also uses oneDNN
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def product(a: Float[Tensor, "... m c"], b: Float[Tensor, "n c"]) -> Float[Tensor, "... m n"]:
    """Compute ``a @ b.T`` in float32.

    Examples:
        >>> product(torch.eye(2), torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0], [2.0]]
    """
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def attention(
    query: Float[Tensor, "b n t d"],
    key: Float[Tensor, "b n s d"],
    value: Float[Tensor, "b n s d"],
    scale: float,
) -> Float[Tensor, "b t n d"]:
    """Compute ``softmax(query key^T scale) value`` of each head; scores are float32.

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
            values = value[image, head]
            float32 = values.dtype == torch.float32
            values = values.T.contiguous() if float32 else values  # for `product`, or for bfloat16
            for start in range(0, tokens, ROWS):
                rows = query[image, head, start : start + ROWS].float()
                weights = product(rows, keys).softmax(-1)
                result[image, start : start + ROWS, head] = (
                    product(weights, values) if float32 else weights.to(values.dtype) @ values
                )
    return result


def _attention_interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Call :func:`attention` from transformers; unsupported cases use the attention of PyTorch."""
    causal = options.get("is_causal", getattr(module, "is_causal", False))
    plain = attention_mask is None and not dropout and not causal and query.shape == key.shape
    plain = plain and onednn_available()
    if plain and query.device.type == "cpu" and not torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            return attention(query, key, value, scaling or query.shape[-1] ** -0.5), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, **options
    )


def openvino_installed() -> bool:
    """Return whether the package openvino is installed."""
    return importlib.util.find_spec("openvino") is not None


def use_openvino(model: nn.Module) -> bool:
    """Let OpenVINO compute the layers of a network of ``transformers``.

    Returns:
        Whether the model type is one of :data:`OPENVINO_MODELS`; other networks are not changed.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in OPENVINO_MODELS:
        return False
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers:
                setattr(module, name, nn.ModuleList([OpenVINOLayers(child)]))
                return True
    return False


def shared_core() -> Any:
    """Return the only ``openvino.Core`` of the process; create it at the first call.

    When a core loads its CPU plugin, it installs an alternate signal stack in the calling thread,
    and it unmaps this stack when it is destroyed. If two cores are not destroyed in reverse order,
    the thread keeps a stack that is not mapped, and the next signal that Python handles ends the
    process by SIGSEGV. Therefore the core lives as long as the process, and it is created in a
    thread that ends afterwards (docs/notes/process-state.md).
    """
    global _core
    with _core_lock:
        if _core is None:
            with ThreadPoolExecutor(1) as pool:
                _core = pool.submit(_create_core).result()
        return _core


def _create_core() -> Any:
    if not openvino_installed():  # the network comes from a process that has it
        raise MissingPackageError(
            "the backbone was loaded with engine openvino, which is not installed here: pip "
            "install 'primaps[openvino]', or load it with engine torch"
        )
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin in this thread
    return core


class OpenVINOLayers(nn.Module):
    """All layers of a network as one module, which OpenVINO computes.

    The layers are compiled at the first call for each precision and number of threads. Copies and
    pickles hold the parameters only and compile again. On an accelerator, in double precision, and
    with gradients, PyTorch computes the layers.

    Args:
        layers: each maps tokens (B, N, C) to tokens.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self._reset()

    def _reset(self) -> None:
        """Discard the compiled layers."""
        self._lock, self._thread_state = threading.Lock(), threading.local()
        self._compiled: dict[tuple[bool, int], Any] = {}
        self._graph: Any = None
        self._in_tuples = False

    def _apply(self, *args: Any, **kwargs: Any) -> OpenVINOLayers:
        self._reset()  # the parameters change
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        runtime = ("_lock", "_thread_state", "_compiled", "_graph")
        return {name: value for name, value in self.__dict__.items() if name not in runtime}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset()

    def forward(
        self, hidden_states: Float[Tensor, "b n c"], *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor]:
        """Compute the tokens after the last layer, in the form that this transformers expects."""
        supported = hidden_states.dtype in (torch.float32, torch.bfloat16)
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled() or not supported:
            return self.by_torch(hidden_states, *args, **kwargs)
        key = (torch.is_autocast_enabled("cpu"), torch.get_num_threads())
        state = vars(self._thread_state)
        requests: dict[tuple[bool, int], Any] = state.setdefault("requests", {})
        tokens = hidden_states.float().contiguous().numpy()
        if key not in requests:  # a request belongs to one thread
            requests[key] = self._compile(*key).create_infer_request()
        known: set[Any] = state.setdefault("known", set())
        # The first inference of a size packs weights, which all streams share. Two threads that did
        # this at once computed wrong features in 5 % of all runs.
        new = (*key, tokens.shape) not in known
        with self._lock if new else nullcontext():
            found = torch.from_numpy(requests[key].infer([tokens])[0].copy())
        known.add((*key, tokens.shape))
        return (found,) if self._in_tuples else found

    def by_torch(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        """Compute the tokens after the last layer by PyTorch."""
        for layer in self.layers:
            result = layer(hidden_states, *args, **kwargs)
            hidden_states = result[0] if isinstance(result, tuple) else result
        self._in_tuples = isinstance(result, tuple)
        return (hidden_states,) if self._in_tuples else hidden_states

    def _compile(self, bfloat16: bool, threads: int) -> Any:
        with self._lock:
            if self._graph is None:
                self._graph = self._converted()
            if (bfloat16, threads) not in self._compiled:
                # Each thread that computes a batch has a stream of its own.
                streams = max(1, min(LANES, _available_cores() // threads))
                self._compiled[bfloat16, threads] = shared_core().compile_model(
                    self._graph,
                    "CPU",
                    {
                        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
                        "INFERENCE_NUM_THREADS": streams * threads,
                        "NUM_STREAMS": streams,
                        "ENABLE_CPU_PINNING": False,  # two processes would share the first core
                    },
                )
            return self._compiled[bfloat16, threads]

    def _converted(self) -> Any:
        # openvino.convert_model would send telemetry.
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        width = next(parameter.shape[-1] for parameter in self.layers.parameters())
        example = torch.zeros(1, 2, width)
        with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")  # tracing fixes shapes that these layers do not use
            traced = torch.jit.trace(_TokenLayers(self), example, check_trace=False)
            decoder = TorchScriptPythonDecoder(traced, example_input=example)
            reader = FrontEndManager().load_by_framework("pytorch")
            graph = reader.convert(reader.load(decoder))
        graph.reshape([-1, -1, width])
        return graph


class _TokenLayers(nn.Module):
    """The layers as a function of tokens only, for the conversion."""

    def __init__(self, layers: OpenVINOLayers) -> None:
        super().__init__()
        self.all = layers

    def forward(self, tokens: Tensor) -> Tensor:
        result = self.all.by_torch(tokens)
        return result[0] if isinstance(result, tuple) else result


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
