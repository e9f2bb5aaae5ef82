"""Journeys of a user in a real browser, and the files that they leave.

Chromium comes from the system (``apt-get install chromium``), Playwright for Python drives it.
Each journey also asserts that no request left the page's address and that the console has no error.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from primaps.demo import IMAGES, _packaged
from primaps.exchange.transfer import import_labels
from primaps.persistence import read_class_summary, read_legend
from primaps.studio.workspace import open_workspace
from tests.studio.conftest import MODEL, TOKEN, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
AS_IF_A_CARD_DREW = "WebGL2RenderingContext.prototype.getExtension = () => null"
"""Makes the page use WebGL, which it avoids without a graphics card."""
CLASSES = 6
PATIENCE = 100_000
"""Timeout in milliseconds, for a machine under load."""


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory, request):
    """The images of the demo and four frames of CamVid, if available."""
    folder = tmp_path_factory.mktemp("journeys") / "images"
    (folder / "street").mkdir(parents=True)
    for place in IMAGES:
        path = _packaged(*place)
        shutil.copy(path, folder / path.name)
    try:
        frames = sorted((request.getfixturevalue("data_root") / "camvid" / "images").rglob("*.*"))
    except pytest.skip.Exception:
        frames = []
    for path in frames[:4]:
        shutil.copy(path, folder / "street" / path.name)
    return folder


@pytest.fixture(scope="module")
def served(image_folder, vit):
    """The address of a studio in a process of its own, and its folder."""
    out = image_folder.parent / "out"
    command = [sys.executable, "-m", "primaps", "studio", str(image_folder), "--out", str(out)]
    options = ["--classes", str(CLASSES), "--backbone", vit, "--size", "128", "--no-browser"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            line = process.stdout.readline()
            assert line, f"the studio did not start: {said}"
            said += line
        yield found.group(), out
    finally:
        process.kill()
        process.wait()


@contextmanager
def tab(browser, address):
    """A tab of the studio, whose requests stay in the studio and whose console has no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(AS_IF_A_CARD_DREW)
    found = context.new_page()
    found.set_default_timeout(PATIENCE)
    requests, errors = [], []
    found.on("request", lambda request: requests.append(request.url))
    found.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.goto(address)
    yield found
    context.close()
    assert {urlsplit(url).netloc for url in requests} == {urlsplit(address).netloc}
    assert errors == []


@pytest.fixture
def page(browser, served):
    with tab(browser, served[0]) as found:
        yield found


def go(page, view):
    page.get_by_role("navigation").get_by_text(view, exact=True).click()
    page.get_by_role("heading", level=1, name=view).wait_for()


def saved(page):
    page.locator(".saved", has_text=re.compile("^Saved$")).wait_for()


def ask(page, path):
    """Return an answer of the server to the page."""
    return page.evaluate("path => fetch('/api/' + path).then(answer => answer.json())", path)


def analyzed(page):
    """Wait until every image was analyzed: the shares, and the order of the cards, are final."""
    until = time.monotonic() + PATIENCE / 1000
    while None in ask(page, "images")["uncertainty"]:
        assert time.monotonic() < until, "the images were not analyzed"
        page.wait_for_timeout(100)


def fitted(page):
    """Find the classes if necessary, and wait until every image was analyzed."""
    page.get_by_role("heading", level=1).wait_for()
    if ask(page, "state")["stage"] != "fitted":
        go(page, "Start")
        page.get_by_role("button", name="Find the classes").click()
    page.get_by_text(re.compile(r"\d+ class(es)?( in|$)")).first.wait_for()
    analyzed(page)
    page.reload()
    page.get_by_role("heading", level=1).wait_for()


def legend(out):
    """Return the classes in the files."""
    class_summary = read_class_summary(out / "model")
    return read_legend(out / "model", class_summary.tree)


def gallery(page, names):
    """Wait until the page shows these classes."""
    saved(page)
    page.wait_for_function(
        "names => [...document.querySelectorAll('.card .name')].map(one => one.value)"
        ".sort().join('\\n') === names",
        arg="\n".join(sorted(names)),
    )


def card(page, name):
    found = page.locator(".card").filter(has=page.locator(f'.name[title="{name}"]'))
    found.scroll_into_view_if_needed()
    return found


def set_range(page, label, value):
    """Move a slider to a value and release it."""
    page.get_by_label(label, exact=True).evaluate(
        "(range, value) => { range.value = value; range.dispatchEvent(new Event('input'));"
        " range.dispatchEvent(new Event('change')) }",
        value,
    )


def pixels(page, selector=".stage canvas"):
    """Return the visible pixels of a canvas."""
    import io

    shot = Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
    return np.asarray(shot).astype(int)


def test_the_main_journey(browser, folder, vit, own_cache):
    """From a folder through fit, names, merge, undo, correction and audit to an export."""
    options = {**MODEL, "backbone": vit}
    given = folder / "images", folder / "out", options
    with open_workspace(*given) as workspace, serving(workspace) as served:
        address = f"http://127.0.0.1:{served.port}/?token={TOKEN}"
        with tab(browser, address) as page:
            fit_and_edit(page, served)
            correct_audit_and_export(page, served)


def fit_and_edit(page, served):
    page.get_by_role("button", name="Find the classes").click()
    page.get_by_text("3 classes in 10 images").wait_for()
    served.seen()
    go(page, "Masks")
    page.get_by_text("refined by the CRF").wait_for()
    analyzed(page)
    page.reload()
    go(page, "Classes")
    names = legend(served.root).names
    gallery(page, names)
    field = page.locator(".card .name").first
    old = field.input_value()
    field.fill("sky")
    field.press("Enter")
    page.get_by_text(f"Renamed {old} to sky.").wait_for()
    saved(page)
    assert set(legend(served.root).names) == {*names, "sky"} - {old}
    card(page, "sky").focus()
    for key in ("Alt+m", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    merged = page.get_by_text(re.compile("^Merged sky into class [012][.]$"))
    text = merged.inner_text()
    saved(page)
    assert len(legend(served.root).classes) == 2
    page.keyboard.press("Control+z")
    page.get_by_text(f"Undone: m{text[1:]}", exact=True).wait_for()
    saved(page)
    assert len(legend(served.root).classes) == 3


def correct_audit_and_export(page, served):
    go(page, "Images")
    page.locator(".cell").first.click()
    page.locator(".viewer .stage[data-shown]").wait_for()
    line = page.locator(".present .line").last
    name = line.locator(".ellipsis").inner_text()
    line.click()
    page.locator(".stage canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.get_by_text(f"Corrected to {name}.").wait_for()
    saved(page)
    assert len(list((served.root / "corrections").rglob("*.png"))) == 1
    go(page, "Audit")
    page.get_by_role("button", name="Answer 40").click()
    for done in range(1, 4):
        page.get_by_text(f"{done - 1} of 40 answered").wait_for()
        page.keyboard.press("y")
    page.get_by_text("3 of 40 answered").wait_for()
    go(page, "Export")
    page.locator(".format").first.wait_for()
    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_role("heading", name="Exported to COCO", exact=True).wait_for()
    assert (served.root / "exports" / "coco-1" / "annotations.json").is_file()


@pytest.mark.slow
def test_from_a_folder_to_masks_and_classes(page, served, image_folder):
    _, out = served
    before = {path: path.read_bytes() for path in image_folder.rglob("*.*")}
    page.get_by_text(f"{len(before)} images").first.wait_for()
    page.get_by_role("button", name="Find the classes").click()
    page.get_by_text(f"{CLASSES} classes in {len(before)} images").wait_for()
    fitted(page)
    go(page, "Masks")
    page.get_by_text("refined by the CRF").wait_for()
    shown = pixels(page)
    drawn = "document.querySelector('.masks .stage canvas').getContext('webgl2') !== null"
    assert page.evaluate(drawn), "the journeys need WebGL"
    set_range(page, "Opacity of the masks", 0)
    until = time.monotonic() + PATIENCE / 1000
    while (np.abs(shown - pixels(page)).sum(2) > 30).mean() < 0.1:
        assert time.monotonic() < until, "masks are not drawn"
    assert (out / "model" / "model.safetensors").is_file()
    assert len(legend(out).classes) == CLASSES
    assert {path: path.read_bytes() for path in image_folder.rglob("*.*")} == before


@pytest.mark.slow
def test_the_threshold_changes_the_masks(page):
    fitted(page)
    go(page, "Masks")
    counts = {}
    for threshold in (0.2, 0.6):
        set_range(page, "Threshold", threshold)
        page.get_by_text("refined by the CRF").wait_for()
        masks = page.evaluate(
            "async url => { const a = await fetch(url);"
            " const d = new Uint8Array(await a.arrayBuffer(), 4);"
            " return new Set(d.filter(v => v > 0)).size }",
            f"/api/images/0/proposals?threshold={threshold}&crf=1",
        )
        page.get_by_text(re.compile(rf"^{masks} masks?, borders refined")).wait_for()
        counts[threshold] = pixels(page)
    assert (counts[0.2] != counts[0.6]).any()
    # The similar regions of a pinned mask appear.
    for key in ("m", "m", "n"):
        page.keyboard.press(key)
    page.get_by_text(re.compile("^Regions similar to mask .*, most similar first")).wait_for()
    assert page.locator(".similar button").count() > 0


@pytest.mark.slow
def test_cuts_names_merges_splits_and_undo(page, served, browser):
    address, out = served
    fitted(page)
    go(page, "Classes")
    start = [one.name for one in legend(out).classes]
    gallery(page, start)
    changes = 0

    # The slider previews every cut and saves the one on which it is released.
    requests = []
    page.on("request", lambda request: requests.append(request.method))
    slider = page.get_by_label("Number of classes", exact=True)
    slider.evaluate("range => { range.value = 4; range.dispatchEvent(new Event('input')) }")
    playwright.expect(page.locator(".card")).to_have_count(4, timeout=PATIENCE)
    assert "POST" not in requests, "the slider sends requests while it moves"
    slider.evaluate("range => range.dispatchEvent(new Event('change'))")
    page.get_by_text("4 classes.").wait_for()
    gallery(page, legend(out).names)
    assert len(legend(out).classes) == 4
    changes += 1

    # A typed name with markup stays text.
    name = "<b>road</b> & pavement"
    field = page.locator(".card .name").first
    field.fill(name)
    field.press("Enter")
    saved(page)
    assert name in legend(out).names
    gallery(page, legend(out).names)
    assert page.locator(".card b").count() == 0
    changes += 1

    # Another tab receives the name by an event.
    other = browser.new_context().new_page()
    other.goto(address)
    other.locator(f'.card .name[title="{name}"]').wait_for(timeout=PATIENCE)
    other.close()

    # A click on a crop shows its whole image; T shows the next one.
    crop = page.locator(".card .crops img").last
    image = ask(page, "images")["names"][int(crop.get_attribute("data-image"))]
    crop.click()
    page.locator(f'.preview .caption[title="{image}"]').wait_for()
    page.locator(".card").first.focus()
    page.keyboard.press("Alt+t")
    first = page.locator(".card .crops img").first.get_attribute("data-image")
    image = ask(page, "images")["names"][int(first)]
    page.locator(f'.preview .caption[title="{image}"]').wait_for()

    # Merging with the keyboard, and by drag and drop.
    first = page.locator(".card").first
    first.focus()
    for key in ("Alt+m", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.get_by_text(re.compile("^Merged .* into ")).first.wait_for()
    gallery(page, legend(out).names)
    assert len(legend(out).classes) == 3
    assert name in legend(out).names, "the merge lost a given name"
    changes += 1
    page.locator(".notice").first.wait_for(state="detached")
    boxes = [page.locator(".card .crops").nth(i).bounding_box() for i in range(2)]
    middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
    page.mouse.move(*middles[0])
    page.mouse.down()
    page.mouse.move(*middles[1], steps=8)
    page.mouse.up()
    page.get_by_text(re.compile("^Merged .* into ")).first.wait_for()
    gallery(page, legend(out).names)
    assert len(legend(out).classes) == 2
    changes += 1

    # Splitting and hiding with the keyboard.
    split = page.locator(".card").first
    split.focus()
    page.keyboard.press("Alt+s")
    page.get_by_text(re.compile("^Split ")).wait_for()
    gallery(page, [one.name for one in legend(out).classes])
    assert len(legend(out).classes) > 2
    changes += 1
    page.locator(".card").first.focus()
    page.keyboard.press("Alt+h")
    saved(page)
    page.get_by_text(re.compile("1 hidden")).wait_for()
    assert sum(one.hidden for one in legend(out).classes) == 1
    changes += 1

    for _ in range(changes):
        page.keyboard.press("Control+z")
        saved(page)
        page.wait_for_timeout(50)
    gallery(page, start)
    assert legend(out).names == start
    page.keyboard.press("Control+Shift+z")
    saved(page)
    page.get_by_text(re.compile("Redone: ")).wait_for()
    assert len(legend(out).classes) == 4
    page.keyboard.press("Control+z")
    gallery(page, start)


@pytest.mark.slow
def test_a_region_is_corrected_and_the_classes_are_audited(page, served):
    _, out = served
    fitted(page)
    go(page, "Images")
    page.get_by_label("Order").select_option("name")
    page.locator(".cell").first.click()
    page.get_by_role("button", name="All images").wait_for()
    page.locator(".viewer .stage[data-shown]").wait_for()
    least = page.locator(".present .line").last
    name = least.locator(".ellipsis").inner_text()
    least.click()  # selecting a class turns the brush on
    page.get_by_text(re.compile(f"assign it to {name}")).wait_for()
    page.locator(".stage canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.get_by_text(f"Corrected to {name}.").wait_for()
    saved(page)
    (path,) = (out / "corrections").rglob("*.png")
    corrected = np.asarray(Image.open(path)).astype(int)
    target = next(one for one in legend(out).classes if one.name == name)
    assert set(np.unique(corrected)) - {65535} == {target.leaves[0]}
    middle = tuple(side // 2 for side in corrected.shape)
    around = corrected[middle[0], middle[1] : middle[1] + corrected.shape[1] // 20]
    assert target.leaves[0] in around, "the correction is not where it was painted"

    page.keyboard.press("Control+z")
    page.get_by_text(re.compile("^Undone: corrected")).wait_for()
    assert ask(page, "images")["corrected"] == []
    page.keyboard.press("Control+Shift+z")
    page.get_by_text(re.compile("Redone: ")).wait_for()
    assert len(ask(page, "images")["corrected"]) == 1

    go(page, "Audit")
    page.get_by_role("button", name="Answer 40").click()
    page.get_by_text("0 of 40 answered").wait_for()
    for done, key in zip((1, 2, 3, 4, 5, 5, 6, 7, 8, 9), "yynyyunyyy", strict=True):
        with page.expect_response("**/api/audit/answer"):
            page.keyboard.press(key)
        page.locator(".audit[aria-busy=false]").wait_for()
        page.get_by_text(f"{done} of 40 answered").wait_for()
    audit = ask(page, "audit")
    page.get_by_text(re.compile(r"^Between \d+% and \d+%")).wait_for()
    text = page.locator(".interval .muted").inner_text()
    low, high = (round(100 * audit["estimate"][end]) for end in ("low", "high"))
    assert text.startswith(f"Between {low}% and {high}%")
    answers = json.loads((out / "audit" / "audit.json").read_text())["answers"]
    assert sorted(filter(lambda one: one is not None, answers)) == [False] * 2 + [True] * 7
    page.keyboard.press("Backspace")
    page.get_by_text("8 of 40 answered").wait_for()
    answers = json.loads((out / "audit" / "audit.json").read_text())["answers"]
    assert answers.count(True) == 6


@pytest.mark.slow
def test_exports_can_be_imported(page, served, image_folder, tmp_path):
    _, out = served
    fitted(page)
    go(page, "Classes")
    field = page.locator(".card .name").first
    field.fill("sky & air")
    field.press("Enter")
    saved(page)
    names = legend(out).names
    assert "sky & air" in names
    count = len([*image_folder.rglob("*.*")])
    for title, form in (("COCO", "coco"), ("CVAT", "cvat")):
        go(page, "Export")
        page.locator(".format").filter(has=page.get_by_text(title, exact=True)).click()
        page.get_by_role("button", name="Export", exact=True).click()
        page.get_by_role("heading", name=f"Exported to {title}", exact=True).wait_for()
        page.get_by_role("heading", name="Next steps").wait_for()
        folder = page.locator(".path").inner_text()
        labels = tmp_path / form
        source = f"{folder}/annotations.{'json' if form == 'coco' else 'xml'}"
        import_labels(source, form, labels)
        maps = sorted(labels.rglob("*.png"))
        assert len(maps) == count
        found = json.loads((labels / "classes.json").read_text())
        assert set(names) <= set(map(str, json.dumps(found, ensure_ascii=False).split('"')))
    # Both formats have the same label maps.
    for path in sorted((tmp_path / "coco").rglob("*.png")):
        one, other = (np.asarray(Image.open(tmp_path / form / path.relative_to(tmp_path / "coco")))
                      for form in ("coco", "cvat"))  # fmt: skip
        np.testing.assert_array_equal(one, other)
