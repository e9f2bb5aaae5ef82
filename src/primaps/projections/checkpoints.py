"""Released checkpoints of STEGO and HP: head, clusters and backbone, read without their code.

    STEGO, Lightning .ckpt                   HP, .pth
    state_dict: net.model.*                  net_model_state_dict: model.*
                net.cluster1.0.*                                   cluster1.0.*
                net.cluster2.{0,2}.*                               cluster2.{0,2}.*
                cluster_probe.clusters       cluster_model_state_dict: clusters

HP also has moving averages of its head (``ema_model1``, ``ema_model2``). Its program predicts with
the head itself, and so does this package.
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

# Name in the files: name in this package. Weights are (out, in, 1, 1) in the files.
_HEAD = {
    "cluster1.0": "codes.linear",
    "cluster2.0": "codes.branch.0",
    "cluster2.2": "codes.branch.2",
}


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint of STEGO or HP.

    Attributes:
        kind: ``stego`` or ``hp``.
        projection: head and clusters.
        backbone: tensors of the ViT under their original (timm-style) names; see
            :func:`primaps.backbones.weights.to_hub_names`.
    """

    kind: Kind
    projection: Projection
    backbone: dict[str, Tensor]


@validated
def load_projection(kind: str | None, path: str | Path) -> Projection:
    """Load the projection of a checkpoint of STEGO or HP, or of a folder that primaps wrote.

    The ViT of a checkpoint is converted into our cache; codes are computed from its features.

    Args:
        kind: ``stego``, ``hp``, or None to detect it.
        path: a Lightning ``.ckpt`` of STEGO, a ``.pth`` of HP, or a folder.

    Raises:
        ProjectionError: the file is not such a checkpoint, or is incomplete.
        UnsafeFileError: the file is damaged, or names functions that are not supported.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return Projection.load(path)
    checkpoint = read_checkpoint(kind, path)
    folder = cache_dir() / "converted" / checkpoint.projection.about["sha256"][:16]
    return _with_backbone(checkpoint, folder, path, exists=(folder / "config.json").is_file())


def as_projection(projection: Projection | str | Path | Callable[[Tensor], Tensor]) -> Projection:
    """Make a projection from a projection, a file, a folder or a callable.

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
    """Read head, clusters and backbone of a checkpoint; nothing in the file is executed.

    Args:
        kind: ``stego``, ``hp``, or None to detect it.
        path: the file.

    Raises:
        ProjectionError: the file is not such a checkpoint, or is incomplete.
        UnsafeFileError: the file is damaged, or names functions that are not supported.
    """
    validate(kind, Kind | None, "kind")
    path = Path(path).expanduser()
    if not path.is_file():
        raise ProjectionError(f"{path} does not exist; give a checkpoint of STEGO or HP")
    content = read_torch_file(path)
    found = _kind(content)
    if found is None:
        raise ProjectionError(
            f"{path} is neither a checkpoint of STEGO (state_dict with net.cluster1) nor of HP "
            "(net_model_state_dict)"
        )
    if kind is not None and kind != found:
        raise ProjectionError(f"{path} is a checkpoint of {found}, not of {kind}")
    if found == "stego":
        state = _tensors(content, "state_dict", path)
        network = _below(state, "net.")
        clusters = state.get("cluster_probe.clusters")
    else:
        network = _tensors(content, "net_model_state_dict", path)
        network = {k: v for k, v in network.items() if not k.startswith("ema_model")}
        clusters = _tensors(content, "cluster_model_state_dict", path).get("clusters")
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
    return Checkpoint(found, projection, backbone)


@validated
def convert_projection(path: str | Path, out: str | Path, kind: str | None = None) -> Path:
    """Convert a checkpoint of STEGO or HP to safetensors and JSON.

    Args:
        path: the checkpoint.
        out: output folder for ``projection.safetensors``, ``projection.json`` and ``backbone``, a
            folder for :func:`primaps.load_backbone`.
        kind: ``stego``, ``hp``, or None to detect it.

    Returns:
        The output folder.

    Raises:
        ProjectionError: the file is not such a checkpoint, or is incomplete.
        UnsafeFileError: the file is damaged, or names functions that are not supported.
        OutputError: the files exist and were not written by primaps.
    """
    out = Path(out)
    with temporary_folder() as folder:
        _with_backbone(read_checkpoint(kind, path), folder, path).save(out)
    return out


def _with_backbone(
    checkpoint: Checkpoint, folder: Path, path: str | Path, exists: bool = False
) -> Projection:
    """Return the projection of a checkpoint; its ViT is written to a folder, unless it exists."""
    projection = checkpoint.projection
    try:
        tensors, _ = to_hub_names(checkpoint.backbone)  # check everything before writing
        projection.about["backbone"] = tensors_digest(tensors.values())
        if not exists:
            write_folder(folder, checkpoint.backbone)
    except WeightsError as error:
        raise ProjectionError(f"{path}: {error}") from error
    projection.backbone = folder
    return projection


def _kind(content: Any) -> Kind | None:
    """Detect the kind of a checkpoint."""
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
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise ProjectionError(f"{path}: {other[0]} in {part} is not a tensor")
    # Training on several GPUs adds a prefix to every name.
    return {str(k).removeprefix("module."): cast(Tensor, v).detach() for k, v in state.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _flat(weight: Tensor) -> Tensor:
    """Return the matrix of a 1x1 convolution; other tensors are not changed."""
    return weight[:, :, 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight
