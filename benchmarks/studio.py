"""Response times of the studio in a real browser, and memory of its server, on 1,000 images.

    python benchmarks/studio.py [--images 1000] [--analyzed 24] [--keep FOLDER]

The script crops images from those of the demo, fits a model to a few of them, serves the studio and
drives Chromium without a graphics card and without a limit on the frame rate. It prints, with their
limits: the first useful screen, a frame while the number of classes, a color, the opacity or the
confidence changes, the next image, the threshold of the masks, and the memory of the server.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from primaps.demo import IMAGES, _packaged
from primaps.model import PriMaPsEM

CLASSES = 27
SIZE = (1024, 768)
ARGUMENTS = (
    "--no-sandbox", "--disable-background-networking", "--disable-frame-rate-limit",
    "--disable-gpu-vsync",
)  # fmt: skip

FRAMES = """
async ([change, frames]) => {
  const store = (await import("/static/js/store.js")).store;
  const range = document.querySelector("#cut");
  const act = {
    cut: (i) => {
      range.value = 2 + (i % (range.max - 2));
      range.dispatchEvent(new Event("input"));
    },
    opacity: (i) => store.set({ opacity: (i % 20) / 20 }),
    confidence: (i) => store.set({ minConfidence: 0.2 + (i % 20) / 40 }),
    color: (i) => {
      const color = "#" + (i * 99991 % 0xffffff).toString(16).padStart(6, "0");
      const found = store.state.classes;
      const classes = found.classes.map((one, k) => k === i % 5 ? { ...one, color } : one);
      store.set({ classes: { ...found, classes } });
    },
  }[change];
  const times = [];
  let last = performance.now();
  for (let i = 0; i < frames; i++) {
    act(i);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  store.set({ cut: null });
  return times.slice(10);
}
"""
SHOWN = """
async ([value, selector, before]) => {
  const node = document.querySelector(selector);
  const start = performance.now();
  if (value === null) {
    const key = new KeyboardEvent("keydown", { key: "j", bubbles: true, cancelable: true });
    document.body.dispatchEvent(key);
  } else {
    const range = document.querySelector("#threshold");
    range.value = value;
    range.dispatchEvent(new Event("input"));
  }
  while (node.dataset.shown === before) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}
"""


def make(folder: Path, images: int) -> None:
    """Write random crops of the images of the demo."""
    sources = [Image.open(_packaged(*place)).convert("RGB") for place in IMAGES]
    generator = np.random.default_rng(0)
    for i in range(images):
        source = sources[i % len(sources)]
        share = generator.uniform(0.6, 1)
        width, height = (int(side * share) for side in source.size)
        left, top = (int(generator.integers(0, 1 + whole - part))
                     for whole, part in zip(source.size, (width, height), strict=True))  # fmt: skip
        crop = source.crop((left, top, left + width, top + height)).resize(SIZE)
        crop.save(folder / f"{i:05}.jpg", quality=85)


def resident(pid: int) -> dict[str, float]:
    """Return the current and the peak memory of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = {}
    for key in ("VmRSS", "VmHWM"):
        match = re.search(rf"{key}:\s+(\d+)", text)
        found[key] = int(match.group(1)) / 1000 if match else 0.0
    return found


def processor(name: str) -> float:
    """Return the CPU seconds of the child processes with this name.

    Other load on the machine does not change them.
    """
    lines = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        fields = tail.split()
        lines[int(path.parent.name)] = (int(fields[1]), head.partition("(")[2], fields)
    ticks = 0
    for number, (_, called, fields) in lines.items():
        above = number
        while above in lines and above != os.getpid():
            above = lines[above][0]
        if above == os.getpid() and name in called:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def report(name: str, times: list[float], limit: str, used: float = 0.0) -> None:
    """Print a line of measurements; ``used`` is the total CPU time of the browser in seconds."""
    ordered = sorted(times)
    last = ordered[int(0.95 * (len(ordered) - 1))]
    each = f", {1000 * used / len(times):.1f} ms CPU each" if used else ""
    median = statistics.median(times)
    print(f"{name:38} {median:7.1f} ms median {last:7.1f} ms 95%{each}   ({limit})", flush=True)


def measure(page: Page, address: str, pid: int, analyzed: int, images: int) -> None:
    """Print all measurements, in the order of the views."""
    opener = page.context.browser.new_page()  # until the model is loaded
    opener.goto(address)
    opener.locator(".card").first.wait_for(timeout=300_000)
    opener.close()
    start = time.perf_counter()
    page.goto(address)
    page.locator(".card").first.wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('.filmstrip img')].some(one => one.complete)"
    )
    first = time.perf_counter() - start
    print(f"{'first useful screen':38} {first:7.2f} s  (below 2)", flush=True)

    count = "fetch('/api/images').then(a => a.json())"
    done = 0
    while done < analyzed:
        time.sleep(2)
        done = page.evaluate(f"{count}.then(i => i.uncertainty.filter(u => u !== null).length)")
    start = time.perf_counter()
    page.reload()
    page.locator(".card").first.wait_for()
    print(f"{'first useful screen, reloaded':38} {time.perf_counter() - start:7.2f} s  (below 2)")
    page.wait_for_selector(".preview .stage[data-shown]")
    page.wait_for_timeout(2000)
    for change in ("cut", "color", "opacity", "confidence"):
        before = processor("chrom")
        times = page.evaluate(FRAMES, [change, 130])
        used = processor("chrom") - before
        report(f"a frame while the {change} changes", times, "below 16, 33", used)

    page.evaluate("location.hash = 'images'")
    page.get_by_label("Order").select_option("name")
    page.locator(".cell").first.click()
    page.wait_for_selector(".viewer .stage[data-shown]")
    times = []
    for _ in range(min(20, analyzed - 2)):
        page.wait_for_timeout(600)
        before = page.locator(".viewer .stage").get_attribute("data-shown")
        times.append(page.evaluate(SHOWN, [None, ".viewer .stage", before]))
    report("next image", times, "below 150")

    page.evaluate("location.hash = 'masks'")
    page.wait_for_selector(".masks .stage[data-shown]")
    page.wait_for_timeout(3000)
    times = []
    for i in range(20):
        before = page.locator(".masks .stage").get_attribute("data-shown")
        value = round(0.2 + 0.03 * i, 2)
        times.append(page.evaluate(SHOWN, [value, ".masks .stage", before]))
    report("threshold without the CRF", times, "below 200")
    done = page.evaluate(f"{count}.then(i => i.uncertainty.filter(u => u !== null).length)")
    memory = resident(pid)
    print(
        f"{'memory of the server':38} {memory['VmRSS']:7.0f} MB now, {memory['VmHWM']:.0f} at peak "
        f"({done} of {images} images analyzed; below 1000)"
    )


def main() -> None:
    """Create the images, fit, serve and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--analyzed", type=int, default=24, help="number of analyzed images to wait for"
    )
    parser.add_argument("--keep", type=Path, help="folder for images and model; not deleted")
    given = parser.parse_args()
    root = given.keep or Path(tempfile.mkdtemp(prefix="studio-"))
    folder, model = root / "images", root / "model"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        make(folder, given.images)
    if not model.is_dir():
        few = sorted(folder.iterdir())[:24]
        PriMaPsEM(CLASSES, recipe="orthogonal").fit(few).save_pretrained(model)
    command = [sys.executable, "-m", "primaps", "studio", str(folder), "--no-browser"]
    process = subprocess.Popen(
        [*command, "--out", str(root / "out"), "--model", str(model)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = next(m.group() for line in process.stdout if (m := re.search(r"http\S+", line)))
        with sync_playwright() as driver:
            chromium = shutil.which("chromium")
            browser = driver.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(600_000)
            measure(page, address, process.pid, given.analyzed, given.images)
            browser.close()
    finally:
        process.kill()
        process.wait()
        if given.keep is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
