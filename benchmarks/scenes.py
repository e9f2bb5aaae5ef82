"""Measure scenes: memory, time per megapixel, sizes of tiles, and seams between tiles.

    python benchmarks/scenes.py memory [--side 20000] [--scale 4] [--engine openvino]
    python benchmarks/scenes.py time
    python benchmarks/scenes.py tiles [AERIAL]
    python benchmarks/scenes.py overlays OUT [AERIAL]

``memory`` predicts a synthetic GeoTIFF in a process of its own and prints its peak resident size,
including PyTorch. ``time`` compares seconds per network megapixel with those of images, in turns.
``tiles`` predicts scenes with several sizes of tiles. ``overlays`` predicts an image, or a mosaic
of neighboring aerial chips, with and without blending. AERIAL is the folder of the aerial data set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 27
PART = (4000, 1150, 5288, 2116)
"""Part of the aerial mosaic: a building site whose sides are multiples of the tile size."""
CLOSE = (560, 180, 1000, 860)
"""Region of this part that is drawn enlarged."""


def sample_images() -> list[Image.Image]:
    """Return six images that scikit-image and scikit-learn include."""
    from primaps.demo import IMAGES, _packaged

    return [Image.open(_packaged(*each)).convert("RGB") for each in IMAGES]


def synthetic(path: Path, side: int, kind: str = "shapes", block: int = 500) -> None:
    """Write a square GeoTIFF: images side by side, or shapes with textures of many scales."""
    import rasterio
    from rasterio.transform import from_origin

    random = np.random.default_rng(0)
    settings = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    settings |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    settings |= {"crs": "EPSG:32633", "transform": from_origin(4e5, 5.8e6, 0.1, 0.1)}
    cells = -(-side // block)
    if kind == "images":
        pictures = [np.asarray(p.resize((block, block))) for p in sample_images()]
        chosen = random.integers(0, len(pictures), (cells, cells))
    else:
        field = _field(random, side)
    with rasterio.open(path, "w", **settings) as dataset:
        for top in range(0, side, block):
            high = min(block, side - top)
            if kind == "images":
                row = np.concatenate([pictures[k] for k in chosen[top // block]], 1)[:high, :side]
            else:
                row = _shapes(field, top, high, side)
            window = rasterio.windows.Window(0, top, side, high)
            dataset.write(row.transpose(2, 0, 1), window=window)


def _field(random: np.random.Generator, side: int) -> np.ndarray:
    """Return smooth heights, one per 64 pixels, whose level sets are the shapes."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(random.standard_normal((side // 64 + 3, side // 64 + 3)), 4)


def _shapes(field: np.ndarray, top: int, high: int, side: int) -> np.ndarray:
    """Return rows of the image: six colors by height, each with its own texture."""
    from scipy.ndimage import map_coordinates

    y, x = np.mgrid[top : top + high, 0:side]
    height = map_coordinates(field, [y / 64, x / 64], order=1, mode="nearest") / field.std()
    level = np.digitize(height, [-1, -0.4, 0.1, 0.6, 1.2])
    shades = np.array(
        [[30, 60, 140], [200, 190, 140], [60, 140, 50], [120, 120, 120], [150, 60, 40], [240] * 3]
    )
    grain = 30 * np.sin(x * (0.1 + 0.15 * level)) * np.sin(y * (0.5 - 0.07 * level))
    noise = np.random.default_rng(top).integers(-12, 13, (high, side, 1))
    return (shades[level] + grain[..., None] + noise).clip(0, 255).astype(np.uint8)


def fitted(classes: int = CLASSES, images: list[Image.Image] | None = None):
    """Fit a model of DINOv2 ViT-S/14 briefly; only the cost of prediction is measured."""
    from primaps import PriMaPsEM

    few = images or [p.crop((x, y, x + 300, y + 300)) for p in sample_images()
                     for x in (0, 150) for y in (0, 80)]  # fmt: skip
    options = {"method": "kmeans", "min_init_steps": 60, "init_epochs": 1, "device": "cpu"}
    return PriMaPsEM(classes, **options).fit(few)


def memory(side: int, scale: float, kind: str, engine: str) -> None:
    """Predict a synthetic scene in a process of its own and print its peak resident size."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fitted().save_pretrained(root / "model")
        synthetic(root / "scene.tif", side, kind)
        done = subprocess.run(
            [sys.executable, __file__, "child", str(root), "--scale", str(scale),
             "--engine", engine], capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side} x {side} px at scale {scale:g}, K = {CLASSES}: peak {found['peak']:.0f} MB "
        f"({found['idle']:.0f} MB before the scene), {found['seconds']:.0f} s, "
        f"{found['seconds'] / (side / scale) ** 2 * 1e6:.1f} s per megapixel of the network; "
        + ", ".join(f"{k} {v:.0f} s" for k, v in found["stages"].items())
    )


def child(root: Path, scale: float, engine: str) -> None:
    """Predict one scene and print memory and time as JSON."""
    from primaps import PriMaPsEM, predict_scene

    def peak() -> float:
        # VmHWM is that of this program; getrusage starts with the size of the parent process.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    model = PriMaPsEM.from_pretrained(root / "model", device="cpu", engine=engine)
    stages: dict[str, float] = {}
    last = [time.perf_counter()]

    def progress(stage, done, total, figures):
        now = time.perf_counter()
        stages[stage] = stages.get(stage, 0.0) + now - last[0]
        last[0] = now

    idle, began = peak(), time.perf_counter()
    predict_scene(model, root / "scene.tif", root / "out.tif", scale=scale, progress=progress,
                  polygons=root / "out.gpkg")  # fmt: skip
    seconds = time.perf_counter() - began
    print(json.dumps({"idle": idle, "peak": peak(), "seconds": seconds, "stages": stages}))


def timing(classes: int, precision: str, repeats: int = 3) -> None:
    """Print seconds per network megapixel: images of 640x480 in one command and one by one, and a
    scene, in turns."""
    from primaps import PriMaPsEM, predict_files
    from primaps.scenes.predict import predict_image

    small = [p.resize((640, 480)) for p in sample_images()]
    seen = 322 * 434 / 1e6  # network megapixels of each image
    # On this side, tiles overlap about as much as in large scenes.
    side = 2562
    scene = Image.new("RGB", (side, side))
    for i, place in enumerate((x, y) for x in range(0, side, 500) for y in range(0, side, 500)):
        scene.paste(sample_images()[i % 6].resize((500, 500)), place)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fitted(classes).save_pretrained(root / "model")
        model = PriMaPsEM.from_pretrained(root / "model", device="cpu")
        options = {"precision": precision}
        for i in range(48):
            small[i % 6].save(root / f"{i}.jpg")
        files = sorted(root.glob("*.jpg"))
        ways = {
            "images": (48, lambda out: predict_files(model, files, out, **options)),
            "one by one": (6, lambda out: [model.predict(image, **options) for image in small]),
            "scene": (side**2 / 1e6 / seen, lambda out: predict_image(model, scene, **options)),
        }
        cost: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for round_ in range(repeats + 1):
            for name, (count, run) in ways.items():
                began = time.perf_counter(), time.process_time()
                run(root / f"maps{round_}")
                took = time.perf_counter() - began[0], time.process_time() - began[1]
                if round_:  # the first round compiles and loads
                    cost[name].append((took[0] / count / seen, took[1] / count / seen))
    for name, values in cost.items():
        ratios = np.median(np.array(cost["scene"]) / np.array(values), 0)
        print(f"{name}: {np.median(values, 0).round(2)} s/Mpx, wall and processor; the scene takes "
              f"{ratios.round(2)} times as long")  # fmt: skip


def tile_sizes(aerial: Path | None) -> None:
    """Print the share of pixels that change with the CRF tile and with the tile size.

    The scenes are images side by side and the aerial mosaic; the default recipe is fitted to each.
    """
    import rasterio

    from primaps import PriMaPsEM, scene_tiles
    from primaps.scenes.predict import predict_image

    images = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.tif"
        synthetic(path, 1288, "images")
        with rasterio.open(path) as data:
            scene = Image.fromarray(data.read().transpose(1, 2, 0))
        tiles = scene_tiles(path, 100, 322, folder=Path(folder) / "tiles")
        images["images"] = scene, [Image.open(file.source) for file in tiles]
    if aerial is not None:
        chips = [Image.open(file) for file in sorted((aerial / "images").iterdir())]
        images["aerial"] = mosaic(aerial).convert("RGB").crop(PART), chips
    for name, (image, parts) in images.items():
        model = PriMaPsEM(6, device="cpu").fit(parts)
        whole = predict_image(model, image, crf_tile=1400)
        for options in ({"crf_tile": 322}, {"crf_tile": 448}, {"crf_tile": 602}, {"crf_tile": 840},
                     {"size": 448, "crf_tile": 1400}):  # fmt: skip
            differ = (predict_image(model, image, **options) != whole).mean()
            print(
                f"{name}: {options} against one CRF tile over the scene: {differ:.2%}", flush=True
            )
        print(f"{name}: classes have {np.sort(np.bincount(whole.ravel()) / whole.size).round(3)}")


def mosaic(folder: Path) -> Image.Image:
    """Return the largest mosaic of neighboring chips, transparent where no chip fits."""
    files = sorted((folder / "images").iterdir())
    chips = [np.asarray(Image.open(file).convert("RGB")).astype(np.float32) for file in files]
    side = chips[0].shape[0]

    def distance(one, other):
        a, b = (np.stack([chip[place].ravel() for chip in chips]) for place in (one, other))
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        found = np.sqrt(squares.clip(0) / a.shape[1])
        np.fill_diagonal(found, np.inf)
        return found

    links = []
    edges = (((slice(None), -1), (slice(None), 0), (0, 1)), ((-1,), (0,), (1, 0)))
    for one, other, step in edges:
        far = distance(one, other)
        for i, j in enumerate(far.argmin(1)):
            if far[:, j].argmin() == i and far[i, j] < 25:
                links += [(i, int(j), step), (int(j), i, (-step[0], -step[1]))]
    best: dict[int, tuple[int, int]] = {}
    for start in range(len(chips)):
        if start in best:
            continue
        places, queue = {start: (0, 0)}, [start]
        taken = {(0, 0)}
        while queue:
            here = queue.pop(0)
            for i, j, (dy, dx) in links:
                place = (places[i][0] + dy, places[i][1] + dx) if i == here else None
                if place is not None and j not in places and place not in taken:
                    places[j] = place
                    taken.add(place)
                    queue.append(j)
        best = places if len(places) > len(best) else best
    low = np.array(list(best.values())).min(0)
    high = np.array(list(best.values())).max(0) - low + 1
    canvas = np.zeros((high[0] * side, high[1] * side, 4), np.uint8)
    for chip, place in best.items():
        y, x = (np.array(place) - low) * side
        canvas[y : y + side, x : x + side, :3] = chips[chip]
        canvas[y : y + side, x : x + side, 3] = 255
    return Image.fromarray(canvas)


def overlays(out: Path, aerial: Path | None = None) -> None:
    """Draw a scene and its classes: tiles side by side, blended, and refined by the CRF.

    Without a folder of chips the scene is an image at twice its size.
    """
    from primaps.pictures.overlays import grid, overlay
    from primaps.scenes.predict import predict_image
    from primaps.utils.colors import palette

    out.mkdir(parents=True, exist_ok=True)
    if aerial is None:
        scene, scale, close = sample_images()[4].crop((0, 0, 640, 322)), 0.5, (0, 0, 640, 322)
        parts = [p.crop((x, y, x + 161, y + 161)) for p in sample_images()
                 for x in (50, 250) for y in (20, 160)]  # fmt: skip
    else:
        scene, scale, close = mosaic(aerial).crop(PART), 1, CLOSE
        parts = [Image.open(f) for f in sorted((aerial / "images").iterdir())[::8]]
    rgb, model = scene.convert("RGB"), fitted(6, parts)
    shown = {"scene": rgb}
    for name, overlap, crf in (
        ("side by side", 0, False),
        ("blended", 40, False),
        ("crf", 40, True),
    ):
        labels = predict_image(model, scene, crf=crf, tile_overlap=overlap, scale=scale)
        if scale == 1:
            print(f"{name}: {seams(labels, overlap)}", flush=True)
        shades = np.concatenate([palette(6), np.zeros((250, 3), np.uint8)])
        shown[name] = overlay(rgb, labels, shades, ignore=255)
        shown[name].save(out / f"{name}.png")
    one, two, three, four = (picture.crop(close) for picture in shown.values())
    grid([[one, two], [three, four]], height=300).quantize(128).save(out / "scenes.png")


def seams(labels: np.ndarray, overlap: int) -> str:
    """Return how often neighboring pixels differ in class across borders of tiles, and anywhere."""
    from primaps.scenes.tiling import plan_tiles

    plan = plan_tiles(*labels.shape, 14, 322, overlap)
    across = [at * 14 for at in plan.lefts[1:]] + [at * 14 + 322 for at in plan.lefts[:-1]]
    down = [at * 14 for at in plan.tops[1:]] + [at * 14 + 322 for at in plan.tops[:-1]]
    changes = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    borders = (
        changes[0][:, [x - 1 for x in across]].mean(),
        changes[1][[y - 1 for y in down]].mean(),
    )
    rates = [f"{np.mean(borders):.2%} across borders of tiles"]
    rates += [f"{np.mean([each.mean() for each in changes]):.2%} anywhere"]
    return ", ".join(rates)


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "time", "tiles", "overlays", "child"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--kind", choices=["shapes", "images"], default="images")
    parser.add_argument("--engine", default="torch", help="for memory: engine of the backbone")
    parser.add_argument("--classes", type=int, default=CLASSES, help="for time: number of classes")
    parser.add_argument("--precision", default="auto", help="for time: precision of the backbone")
    given = parser.parse_args()
    if given.what == "memory":
        memory(given.side, given.scale, given.kind, given.engine)
    elif given.what == "child":
        child(given.paths[0], given.scale, given.engine)
    elif given.what == "time":
        timing(given.classes, given.precision)
    elif given.what == "tiles":
        tile_sizes(given.paths[0] if given.paths else None)
    else:
        overlays(*given.paths)


if __name__ == "__main__":
    main()
