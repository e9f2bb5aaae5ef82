"""The released checkpoints of STEGO and HP: head, clusters and backbone, read without their code.

    STEGO, Lightning .ckpt                   HP, .pth
    state_dict: net.model.*                  net_model_state_dict: model.*
                net.cluster1.0.*                                   cluster1.0.*
                net.cluster2.{0,2}.*                               cluster2.{0,2}.*
                cluster_probe.clusters       cluster_model_state_dict: clusters
                linear_probe.*               linear_model_state_dict: weight, bias

HP keeps moving averages of its head as well (``ema_model1``, ``ema_model2``). Its program predicts
with the head itself, and so do we.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from primaps.backbones.backbone import tensors_digest
from primaps.backbones.weights import WeightsError, to_hub_names, write_folder
from primaps.projections.projection import Projection, ProjectionError, from_tensors
from primaps.utils.files import cache_dir, sha256, temporary_folder
from primaps.utils.torch_files import read_torch_file
from primaps.utils.validation import validate, validated

Kind = Literal["stego", "hp"]

# Name in the files -> ours; a 1x1 convolution's weight is (out, in, 1, 1) there.
_HEAD = {
    "cluster1.0": "codes.linear",
    "cluster2.0": "codes.branch.0",
    "cluster2.2": "codes.branch.2",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of STEGO or HP holds.

    Attributes:
        kind: ``stego`` or ``hp``.
        projection: head and clusters.
        backbone: the ViT under its original (timm-style) names, as
            :func:`primaps.backbones.weights.to_hub_names` takes it.
        linear_probe: ``weight`` (K, D) and ``bias`` (K,), fitted to labels by the authors; empty if
            the file has none.
    """

    kind: Kind
    projection: Projection
    backbone: dict[str, Tensor]
    linear_probe: dict[str, Tensor]


@validated
def load_projection(kind: str | None, path: str | Path) -> Projection:
    """The projection of a checkpoint of STEGO or HP, or of a folder that this package wrote.

    It carries the ViT of the file, converted into our cache: codes come from that one.

    Args:
        kind: ``stego``, ``hp``, or None to see from the file which it is.
        path: a Lightning ``.ckpt`` of STEGO, a ``.pth`` of HP, or a folder.

    Raises:
        ProjectionError: the file is no such checkpoint, or lacks something.
        UnsafeFileError: the file would run something else when read by the usual means.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return Projection.load(path)
    checkpoint = read_checkpoint(kind, path)
    folder = cache_dir() / "converted" / checkpoint.projection.about["sha256"][:16]
    return _carrying(checkpoint, folder, path, known=(folder / "config.json").is_file())


def as_projection(projection: Projection | str | Path | Callable[[Tensor], Tensor]) -> Projection:
    """Whatever a user may give as a projection: one, a file or folder, or a callable.

    Examples:
        >>> as_projection(lambda features: features[:, :16]).name
        '<lambda>'
    """
    if isinstance(projection, Projection):
        return projection
    if isinstance(projection, str | Path):
        return load_projection(None, projection)
    return Projection(projection)


def read_checkpoint(kind: str | None, path: str | Path) -> Checkpoint:
    """Everything of use in a checkpoint; nothing that the file contains is executed.

    Raises:
        ProjectionError, UnsafeFileError: as in :func:`load_projection`.
    """
    validate(kind, Kind | None, "kind")
    path = Path(path).expanduser()
    if not path.is_file():
        raise ProjectionError(f"{path} does not exist: give a checkpoint of STEGO or HP")
    content = read_torch_file(path)
    found = _kind(content)
    if found is None:
        raise ProjectionError(
            f"{path} is no checkpoint of STEGO (state_dict with net.cluster1) and none of HP "
            "(net_model_state_dict)"
        )
    if kind is not None and kind != found:
        raise ProjectionError(f"{path} is a checkpoint of {found}, not of {kind}")
    if found == "stego":
        state = _tensors(content, "state_dict", path)
        network = _below(state, "net.")
        clusters, linear = state.get("cluster_probe.clusters"), _below(state, "linear_probe.")
    else:
        network = _tensors(content, "net_model_state_dict", path)
        network = {k: v for k, v in network.items() if not k.startswith("ema_model")}
        clusters = _tensors(content, "cluster_model_state_dict", path).get("clusters")
        kept = "linear_model_state_dict" in content
        linear = _tensors(content, "linear_model_state_dict", path) if kept else {}
    if clusters is None:
        raise ProjectionError(f"{path} lacks the clusters of the cluster probe")

    backbone = _below(network, "model.")
    head = {k: v for k, v in network.items() if not k.startswith("model.")}
    names = {f"{a}.{w}": f"{b}.{w}" for a, b in _HEAD.items() for w in ("weight", "bias")}
    for words, keys in (("lacks", names.keys() - head), ("has surplus", head.keys() - names)):
        if keys:
            raise ProjectionError(f"{path} {words} {', '.join(sorted(keys))} in the head")
    tensors = {new: _flat(head[old]) for old, new in names.items()} | {"clusters": clusters}
    about = {"method": found, "file": path.name, "sha256": sha256(path)}
    projection = from_tensors(tensors, str(path), found, about)
    return Checkpoint(found, projection, backbone, {k: _flat(v) for k, v in linear.items()})


@validated
def convert_projection(path: str | Path, out: str | Path, kind: str | None = None) -> Path:
    """Convert a checkpoint of STEGO or HP to safetensors and JSON.

    Writes ``projection.safetensors`` and ``projection.json`` into ``out``, and the backbone that
    the file carries into ``out/backbone``, a folder that :func:`primaps.load_backbone` takes.

    Returns:
        ``out``.

    Raises:
        ProjectionError, UnsafeFileError: as in :func:`load_projection`.
    """
    out = Path(out)
    with temporary_folder() as folder:
        _carrying(read_checkpoint(kind, path), folder, path).save(out)
    return out


def _carrying(
    checkpoint: Checkpoint, folder: Path, path: str | Path, known: bool = False
) -> Projection:
    """The projection of a checkpoint with its ViT, which is written into a folder, or is there."""
    projection = checkpoint.projection
    try:
        tensors, _ = to_hub_names(checkpoint.backbone)  # everything is checked before it is written
        projection.about["backbone"] = tensors_digest(tensors.values())
        if not known:
            write_folder(folder, checkpoint.backbone)
    except WeightsError as error:
        raise ProjectionError(f"{path}: {error}") from error
    projection.backbone = folder
    return projection


def _kind(content: Any) -> Kind | None:
    if not isinstance(content, dict):
        return None
    if "net_model_state_dict" in content:
        return "hp"
    state = content.get("state_dict")
    if isinstance(state, dict) and any(str(key).startswith("net.cluster1.") for key in state):
        return "stego"
    return None


def _tensors(content: Mapping[str, Any], part: str, path: Path) -> dict[str, Tensor]:
    state = content.get(part)
    if not isinstance(state, dict):
        raise ProjectionError(f"{path} lacks {part}")
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ProjectionError(f"{path}: {odd[0]} in {part} is no tensor")
    # Training on several GPUs puts a prefix before every name.
    return {str(k).removeprefix("module."): cast(Tensor, v).detach() for k, v in state.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _flat(weight: Tensor) -> Tensor:
    """The matrix of a 1x1 convolution; anything else stays."""
    return weight[:, :, 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight
