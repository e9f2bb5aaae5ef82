"""Models to the Hugging Face hub, with a card that says what they are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from primaps.exchange.classes import Classes, read_classes
from primaps.model import PriMaPsEM
from primaps.model_folder import read_record
from primaps.utils.errors import InputError, reason
from primaps.utils.files import temporary_folder
from primaps.utils.inputs import read_json

NEEDED = ("config.json", "model.safetensors")
WANTED = (
    "history.json",
    "tree.safetensors",
    "classes.json",
    "projection.json",
    "projection.safetensors",
    "backbone/config.json",  # that a projection carries
    "backbone/model.safetensors",
)
PICTURE = "preview.png"


def push_to_hub(
    model: str | Path | PriMaPsEM,
    repo_id: str,
    *,
    private: bool = False,
    picture: bool = True,
    scores: str | Path | dict[str, Any] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a model and its card in one commit: ``primaps push``.

    Only the files of the model are sent, whatever else lies in its folder, and the folder stays as
    it is.

    Args:
        model: fitted, or the folder that ``fit --out`` or ``save_pretrained`` wrote.
        repo_id: ``owner/name``; made if it does not exist.
        private: whether a new repository is for its owner alone.
        picture: send the folder's ``preview.png``, which shows six of the training images.
        scores: what :func:`primaps.evaluate` gave, or the file of ``evaluate --json``.
        token: None takes the one of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: address of the hub; None takes ``HF_ENDPOINT``, or the public one.

    Returns:
        address of the model.

    Raises:
        InputError: the folder holds no model, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if isinstance(model, PriMaPsEM):
        with temporary_folder() as own:
            model.save_pretrained(own)
            return push_to_hub(
                own, repo_id, private=private, scores=scores, token=token, endpoint=endpoint
            )
    folder = Path(model)
    figures = _read_scores(scores) if isinstance(scores, str | Path) else scores
    for name in NEEDED:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: give the folder that fit --out wrote")
    names = [*NEEDED, *WANTED, *([PICTURE] if picture else [])]
    present = [name for name in names if (folder / name).is_file()]
    card = model_card(folder, repo_id, figures, PICTURE in present)
    files: dict[str, str | bytes] = {name: str(folder / name) for name in present}
    files["README.md"] = card.encode("utf-8")
    try:
        api = HfApi(endpoint=endpoint, token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo_id, operations, commit_message="Upload a model of primaps")
    except Exception as error:  # of the client's own, of its HTTP library, of the socket
        raise InputError(
            f"{repo_id} could not be pushed ({type(error).__name__}: {reason(error)}); check "
            "the id, `hf auth login`, and that the hub can be reached"
        ) from error
    return str(address)


def model_card(
    folder: Path, repo_id: str, scores: dict[str, Any] | None = None, picture: bool = False
) -> str:
    """The card of a saved model: what it was fitted on, its classes, scores, and how to load it.

    Raises:
        InputError: ``config.json`` is not that of a model, or scores are none.
    """
    try:
        record = read_record(folder)
    except (InputError, OSError) as error:
        raise InputError(f"{folder} holds no model of primaps ({error})") from None
    config, backbone, images = asdict(record.config), record.backbone.name, record.training.images
    classes = read_classes(folder)
    own = backbone.startswith("callable:")
    how = "recipe" if config["method"] == "em" else "method"
    rows = ["---", "library_name: primaps", "pipeline_tag: image-segmentation"]
    rows += ["tags:", "- primaps", "- unsupervised-semantic-segmentation", "---", ""]
    rows += [f"# {repo_id}", ""]
    rows += [f"![training images, mask proposals, classes found]({PICTURE})", ""] if picture else []
    rows += [
        f"Unsupervised semantic segmentation: {len(classes)} classes, found by "
        f"primaps in {images:,} images without a label "
        f"({how} `{config[how]}`), on features of `{backbone}` at "
        f"{config.get('size')} px, which are not part of this repository.",
        "",
        "## Use",
        "",
        "```python",
        "import primaps",
        "",
        f'model = primaps.PriMaPsEM.from_pretrained("{repo_id}"'
        + (", backbone=yours)" if own else ")"),
        'classes = model.predict(primaps.load_image("image.jpg"))  # (H, W)',
        "```",
        "",
        *_classes(classes),
        *(_scores(scores) if scores is not None else ["Scores: none were given.", ""]),
        "## Options",
        "",
        *(f"- {k}: `{v}`" for k, v in sorted(config.items()) if k not in record.config.unused),
        *(f"- version of {name}: `{value}`" for name, value in record.versions.items()),
        "",
    ]
    return "\n".join(rows)


def _classes(classes: Classes) -> list[str]:
    rows = [
        f"| {k} | {name.replace('|', chr(92) + '|')} | `{color}` |"
        for k, (name, color) in enumerate(zip(classes.names, classes.hexadecimal, strict=True))
    ]
    return ["## Classes", "", "| value | name | color |", "|---|---|---|", *rows, ""]


def _read_scores(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist: write it by evaluate --json")
    try:
        return read_json(Path(path), dict[str, Any])
    except InputError as error:
        raise InputError(str(error)) from None


def _scores(scores: dict[str, Any]) -> list[str]:
    try:
        options = ", ".join(f"{name} {value}" for name, value in scores["options"].items())
        return [
            "## Scores",
            "",
            f"On {scores['images']:,} labeled images ({options}): accuracy "
            f"{100 * scores['accuracy']:.1f} %, mean IoU {100 * scores['mean_iou']:.1f} %.",
            "",
            "| class | IoU, % |",
            "|---|---|",
            *(
                f"| {name} | {'-' if value is None else f'{100 * value:.1f}'} |"
                for name, value in scores["iou"].items()
            ),
            "",
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("the scores are not what evaluate gives: write them anew") from None
