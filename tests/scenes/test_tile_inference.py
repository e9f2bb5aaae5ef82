"""Logits that are blended row by row, compared with all tiles at once."""

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.results import WorkFolder
from primaps.scenes.readers import in_memory
from primaps.scenes.tile_inference import blend
from primaps.scenes.tiling import cosine_weights, plan_tiles
from primaps.scenes.view import View
from primaps.utils.progress import silent

PATCH, CPU = 8, torch.device("cpu")


def odd_values(images):
    """Values of two channels that depend on the position in the tile, as a network's do."""
    found = torch.nn.functional.avg_pool2d(images.float(), PATCH)[:, :2] / 50
    rows, columns = found.shape[2:]
    bend = torch.linspace(-1, 1, rows)[:, None] ** 2 + torch.linspace(-1, 1, columns) ** 2
    return found + bend


def view_of(width, height, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return View(in_memory(Image.fromarray(pixels))), pixels


def in_one_piece(view, pixels, plan):
    more = (plan.rows * PATCH - view.height, plan.columns * PATCH - view.width)
    whole = np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), "symmetric")
    sums = torch.zeros(2, plan.rows, plan.columns)
    total = torch.zeros(plan.rows, plan.columns)
    weights = cosine_weights(plan.side)
    for top in plan.tops:
        for left in plan.lefts:
            rows = slice(top, top + plan.side[0])
            columns = slice(left, left + plan.side[1])
            part = whole[top * PATCH :, left * PATCH :][: plan.side[0] * PATCH]
            part = torch.from_numpy(part[:, : plan.side[1] * PATCH].copy()).permute(2, 0, 1)
            sums[:, rows, columns] += odd_values(part[None])[0] * weights
            total[rows, columns] += weights
    mean = sums / total
    return mean - mean.amax(0)


@pytest.mark.parametrize(("width", "height"), [(150, 210), (30, 20), (64, 300), (301, 64)])
def test_streaming_rows_of_tiles_gives_the_weighted_mean_of_all_tiles(tmp_path, width, height):
    view, pixels = view_of(width, height)
    plan = plan_tiles(height, width, PATCH, 64, 24)
    raw = blend(odd_values, [2], view, plan, WorkFolder(tmp_path), silent, CPU)
    found = torch.from_numpy(raw.rows(0, plan.rows)).float().permute(1, 0, 2)
    assert torch.allclose(found, in_one_piece(view, pixels, plan), atol=3e-3)


def test_an_interrupted_run_resumes_to_identical_bytes(tmp_path):
    view, _ = view_of(150, 210)
    plan = plan_tiles(210, 150, PATCH, 64, 24)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    wanted = blend(odd_values, [2], view, plan, WorkFolder(whole), silent, CPU).path.read_bytes()
    calls = 0

    def stopping(images):
        nonlocal calls
        calls += 1
        if calls % 11 == 0:
            raise KeyboardInterrupt
        return odd_values(images)

    for _ in range(30):
        try:
            raw = blend(stopping, [2], view, plan, WorkFolder(parts), silent, CPU)
            break
        except KeyboardInterrupt:
            continue
    assert calls > 22
    assert raw.path.read_bytes() == wanted


def test_tiles_without_a_valid_pixel_are_skipped(tmp_path):
    pixels = np.zeros((200, 400, 4), np.uint8)
    pixels[70:130, 70:130] = 200
    view = View(in_memory(Image.fromarray(pixels)))
    plan = plan_tiles(200, 400, PATCH, 64, 0)
    seen = []

    def values(images):
        seen.append(len(images))
        return odd_values(images)

    blend(values, [2], view, plan, WorkFolder(tmp_path), silent, CPU)
    assert sum(seen) == 4 < len(plan.tops) * len(plan.lefts)
