"""The layers of a vision transformer on a CPU by OpenVINO, an extra: 1.4 times as fast as PyTorch.

PyTorch runs attention as products with a softmax in between, whose scores go through memory;
OpenVINO has one kernel for it. What is computed is the same, to the rounding of the precision;
benchmarks/backbones.py says how much faster it is.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.utils.parallel import LANES

KINDS = ("vit", "deit", "vit_msn", "dinov2", "dinov2_with_registers")
"""Networks whose layers take tokens alone: no mask, no positions, nothing added between them."""


def installed() -> bool:
    """Whether the package is here."""
    return importlib.util.find_spec("openvino") is not None


_core: Any = None
_core_lock = threading.Lock()


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
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin in this thread
    return core


class Layers(nn.Module):
    """Stands in for all layers of a network: their parameters, and their features by OpenVINO.

    They are compiled when they are first called, for each precision and number of threads, with the
    parameters of then. Copies and pickles take parameters alone and compile anew. On an
    accelerator, in double precision, and where gradients are asked for, the layers run as they are.

    Args:
        layers: each maps tokens (B, N, C) to tokens.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self._forget()

    def _forget(self) -> None:
        self._lock, self._own = threading.Lock(), threading.local()
        self._compiled: dict[tuple[bool, int], Any] = {}
        self._graph: Any = None
        self._in_tuples = False

    def _apply(self, *how: Any, **more: Any) -> Layers:
        self._forget()  # parameters move
        return super()._apply(*how, **more)

    def __getstate__(self) -> dict[str, Any]:
        runtime = ("_lock", "_own", "_compiled", "_graph")
        return {name: value for name, value in self.__dict__.items() if name not in runtime}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def forward(
        self, hidden_states: Float[Tensor, "b n c"], *options: Any, **more: Any
    ) -> Tensor | tuple[Tensor]:
        """Tokens after the last layer, as a layer of this version of transformers returns them."""
        known = hidden_states.dtype in (torch.float32, torch.bfloat16)
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled() or not known:
            return self._plain(hidden_states, *options, **more)
        key = (torch.is_autocast_enabled("cpu"), torch.get_num_threads())
        requests: dict[tuple[bool, int], Any] = vars(self._own).setdefault("requests", {})
        tokens = hidden_states.float().contiguous().numpy()
        if key not in requests:  # a request is for one thread
            requests[key] = self._model(*key).create_infer_request()
        met: set[Any] = vars(self._own).setdefault("met", set())
        # The first inference of a size packs weights, which all streams share. If two did so at
        # once, one went on with wrong ones: in a twentieth of all runs.
        new = (*key, tokens.shape) not in met
        with self._lock if new else nullcontext():
            found = torch.from_numpy(requests[key].infer([tokens])[0].copy())
        met.add((*key, tokens.shape))
        return (found,) if self._in_tuples else found

    def _plain(self, hidden_states: Tensor, *options: Any, **more: Any) -> Tensor | tuple[Tensor]:
        for layer in self.layers:
            result = layer(hidden_states, *options, **more)
            hidden_states = result[0] if isinstance(result, tuple) else result
        self._in_tuples = isinstance(result, tuple)
        return (hidden_states,) if self._in_tuples else hidden_states

    def _model(self, reduced: bool, threads: int) -> Any:
        with self._lock:
            if self._graph is None:
                self._graph = self._converted()
            if (reduced, threads) not in self._compiled:
                # Threads that compute batches of their own take a stream each.
                streams = max(1, min(LANES, _cores() // threads))
                self._compiled[reduced, threads] = shared_core().compile_model(
                    self._graph,
                    "CPU",
                    {
                        "INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32",
                        "INFERENCE_NUM_THREADS": streams * threads,
                        "NUM_STREAMS": streams,
                        "ENABLE_CPU_PINNING": False,  # two processes would share the first core
                    },
                )
            return self._compiled[reduced, threads]

    def _converted(self) -> Any:
        # Not openvino.convert_model, which reports to its makers that it was called.
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        width = next(parameter.shape[-1] for parameter in self.layers.parameters())
        example = torch.zeros(1, 2, width)
        with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")  # tracing fixes shapes that these layers do not ask for
            traced = torch.jit.trace(_Tokens(self), example, check_trace=False)
            decoder = TorchScriptPythonDecoder(traced, example_input=example)
            reader = FrontEndManager().load_by_framework("pytorch")
            graph = reader.convert(reader.load(decoder))
        graph.reshape([-1, -1, width])
        return graph


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


class _Tokens(nn.Module):
    """The layers as a function of tokens alone, which is what is converted."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.all = layers

    def forward(self, tokens: Tensor) -> Tensor:
        result = self.all._plain(tokens)
        return result[0] if isinstance(result, tuple) else result


def by_openvino(model: nn.Module) -> bool:
    """Let a network of ``transformers`` compute its layers by OpenVINO, if it is one of
    :data:`KINDS`.

    Returns:
        Whether it is; otherwise nothing is changed.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in KINDS:
        return False
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers:
                setattr(module, name, nn.ModuleList([Layers(child)]))
                return True
    return False
