"""Every option is validated by its type, and is identical on the command line."""

import dataclasses
import json

import numpy as np
import pytest
import typer

from primaps.cli import app
from primaps.config import EM_STEPS, Config, check_used, option_help, option_types
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from primaps.utils.validation import range_text

WRONG = {
    "classes": [1, 256, "many", 2.5, None, True],
    "method": ["magic", 3, None],
    "recipe": ["papr", "", None],
    "backbone": [7, None],
    "size": [0, -14, 14_000_000, 1.5, "large", float("nan")],
    "epochs": [0, -1, 1.5, None],
    "init_epochs": [-1, "two"],
    "min_steps": [-1, 1.5],
    "min_init_steps": [-1, None],
    "batch_size": [0, -2, 10**9],
    "learning_rate": [0, -1.0, float("nan"), float("inf"), "fast"],
    "momentum": [1, -0.1, float("nan")],
    "momentum_every": [0, 1.5],
    "momentum_ramp": ["no", 1, None],
    "cosine_scale": [0, -3.0, "sharp"],
    "threshold": [1, -0.1, float("nan"), None],
    "anchor": ["yes", 0],
    "iterative": [None, 1],
    "mask_crf": ["no", 1, "dense"],
    "views": [-1, 1_000_000, None, "stale", 1.5],
    "loss_size": ["huge", 3],
    "depth": [0, 7, 33, 12.5, "auto"],
    "precision": ["int4", 16],
    "seed": ["x", 1.5, None],
}


def test_every_option_is_checked():
    assert WRONG.keys() == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(InputError, match=name):
            Config(**{"classes": 3, name: value})


def test_numbers_of_numpy_are_converted_to_python():
    config = Config(np.int64(3), recipe="paper", learning_rate=np.float32(0.5), views=np.uint8(2))
    assert type(config.classes) is int
    assert type(config.learning_rate) is float
    assert config.views == 2


@pytest.mark.parametrize("name", EM_STEPS)
def test_options_of_em_steps_are_refused_by_recipe_orthogonal(name):
    value = {"loss_size": "feature", "momentum_ramp": False, "momentum": 0.5}.get(name, 7)
    with pytest.raises(InputError, match=f"{name} applies to the EM steps.*recipe 'paper'"):
        check_used(Config(3, **{name: value}))
    check_used(Config(3, recipe="paper", **{name: value}))
    check_used(Config(3, method="kmeans", **{name: value}))


def test_models_with_unused_options_are_read(colors, painted_folder, tmp_path):
    model = PriMaPsEM(3, backbone=colors, size=64, patch_size=8, min_init_steps=5, device="cpu")
    model.fit(painted_folder / "images").save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    about = json.loads(path.read_text())
    about["config"] |= {"epochs": 5, "views": 2}
    path.write_text(json.dumps(about))
    again = PriMaPsEM.from_pretrained(tmp_path / "m", backbone=colors, device="cpu")
    assert again.classes == 3


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match="unknown option 'crf'; options are classes, method"):
        PriMaPsEM(3, crf=False)


def test_fit_has_every_option_with_its_default_help_and_range():
    command = typer.main.get_command(app).commands["fit"]
    given = {parameter.name: parameter for parameter in command.params}
    for field in dataclasses.fields(Config):
        if field.name == "classes":  # --classes also accepts ranges and "auto"
            continue
        option = given[field.name]
        before, _, default = option_help(field.name).partition(" [default")
        assert option.help.startswith(before)
        assert option.help.endswith(default)
        kind = option_types()[field.name]
        assert ("[range: " in option.help) == bool(range_text(kind))
        assert range_text(kind) in option.help
        if field.default not in (dataclasses.MISSING, None):
            assert option.default == field.default
        assert option.required == (field.default is dataclasses.MISSING)
    assert set(option_types()) <= set(given)


def test_the_help_of_cosine_scale_is_what_the_fit_uses(colors, painted_folder):
    options = {"size": 64, "patch_size": 8, "min_init_steps": 5, "device": "cpu"}
    model = PriMaPsEM(3, backbone=colors, **options).fit(painted_folder / "images")
    assert f"[default: {float(model.prototypes_.scale[0]):g} for recipe orthogonal" in option_help(
        "cosine_scale"
    )
