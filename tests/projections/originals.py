"""Checkpoint files as the programs of STEGO and HP write them, and hostile ones."""

import math
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import torch


@contextmanager
def pretended(**modules):
    """Modules that exist while a file is written and are gone when it is read."""
    made = {}
    for name, members in modules.items():
        name = name.replace("__", ".")
        made[name] = types.ModuleType(name)
        for member in members:
            kind = type(member, (dict,), {}) if member == "AttributeDict" else type(member, (), {})
            kind.__module__, kind.__qualname__ = name, member
            setattr(made[name], member, kind)
    for name in list(made):
        parts = name.split(".")
        for end in range(1, len(parts)):
            parent = ".".join(parts[:end])
            made.setdefault(parent, types.ModuleType(parent))
    sys.modules.update(made)
    try:
        yield types.SimpleNamespace(**{k: made[k.replace("__", ".")] for k in modules})
    finally:
        for name in made:
            del sys.modules[name]


def vit_shapes(width, depth=12, patch=8, side=28):
    """Every tensor of a DINO ViT under its original name."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, side * side + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    for i in range(depth):
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{norm}.weight"] = shapes[f"blocks.{i}.{norm}.bias"] = (width,)
    return shapes


def vit_tensors(width, **kwargs):
    """All of them views of one storage, so that a file with real shapes stays small."""
    shapes = vit_shapes(width, **kwargs)
    pool = torch.randn(max(map(math.prod, shapes.values())))
    return OrderedDict((k, pool[: math.prod(v)].view(v)) for k, v in shapes.items())


def head_tensors(width, dim, prefixes=("cluster1", "cluster2")):
    linear, branch = prefixes
    return OrderedDict(
        {
            f"{linear}.0.weight": torch.randn(dim, width, 1, 1) * 0.1,
            f"{linear}.0.bias": torch.randn(dim),
            f"{branch}.0.weight": torch.randn(width, width, 1, 1) * 0.1,
            f"{branch}.0.bias": torch.randn(width),
            f"{branch}.2.weight": torch.randn(dim, width, 1, 1) * 0.1,
            f"{branch}.2.bias": torch.randn(dim),
        }
    )


def below(prefix, tensors):
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def write_stego(path, width=768, dim=70, classes=27, vit=None):
    """A Lightning checkpoint of STEGO, with all that Lightning keeps; returns its state dict."""
    state = OrderedDict()
    state |= below("net.model.", vit or vit_tensors(width))
    state |= below("net.", head_tensors(width, dim))
    for probe in ("train_cluster_probe", "cluster_probe"):
        state[f"{probe}.clusters"] = torch.randn(classes, dim)
    state["linear_probe.weight"] = torch.randn(classes, dim, 1, 1)
    state["linear_probe.bias"] = torch.randn(classes)
    state["decoder.weight"], state["decoder.bias"] = (
        torch.randn(width, dim, 1, 1),
        torch.randn(width),
    )
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.randn(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    with pretended(
        omegaconf__dictconfig=["DictConfig"],
        omegaconf__base=["ContainerMetadata"],
        omegaconf__nodes=["AnyNode"],
        pytorch_lightning__callbacks__model_checkpoint=["ModelCheckpoint"],
        pytorch_lightning__utilities__parsing=["AttributeDict"],
    ) as lightning:
        config = lightning.omegaconf__dictconfig.DictConfig()
        metadata = lightning.omegaconf__base.ContainerMetadata()
        metadata.object_type, metadata.key_type = dict, {str, bytes}
        node = lightning.omegaconf__nodes.AnyNode()
        node._val, node._parent = "dino", config
        config._metadata, config._content = metadata, {"arch": node}
        hyper = lightning.pytorch_lightning__utilities__parsing.AttributeDict(n_classes=classes)
        hyper["cfg"] = config
        callback = lightning.pytorch_lightning__callbacks__model_checkpoint.ModelCheckpoint
        content = {
            "epoch": 3,
            "global_step": 5000,
            "pytorch-lightning_version": "1.4.9",
            "state_dict": state,
            "callbacks": {callback: {"best_model_score": torch.tensor(0.3), "monitor": "mIoU"}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "cfg",
            "hyper_parameters": hyper,
        }
        torch.save(content, path)
    return state


def write_hp(path, width=384, dim=512, classes=27, vit=None):
    """A checkpoint of HP; returns the state dict of its network."""
    network = below("model.", vit or vit_tensors(width))
    network |= head_tensors(width, dim)
    network |= head_tensors(width, dim, ("ema_model1", "ema_model2"))
    content = {
        "net_model_state_dict": network,
        "linear_model_state_dict": OrderedDict(
            weight=torch.randn(classes, dim, 1, 1), bias=torch.randn(classes)
        ),
        "cluster_model_state_dict": OrderedDict(clusters=torch.randn(classes, dim)),
        "epoch": 2,
        "best_metric": 12.5,
    }
    torch.save(content, path)
    return network | below("cluster.", content["cluster_model_state_dict"])


def write_raw(path, data_pkl):
    """A zip archive like that of torch.save around a pickle of ours."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/version", "3\n")


class Calls:
    """Pickles to a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def pickled(content, protocol=2):
    return pickle.dumps(content, protocol)
