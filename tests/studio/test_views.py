"""Single views in a real browser, on a small model: one page for all tests of a worker."""

import re
import shutil

import numpy as np
import pytest

from tests.studio.conftest import TOKEN, model_served
from tests.studio.test_journeys import PATIENCE, card, go, legend, saved, set_range

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow
ARABIC = "سماء زرقاء"


@pytest.fixture(scope="module")
def served(prepared, tmp_path_factory):
    root = tmp_path_factory.mktemp("views")
    for name in ("images", "model"):
        shutil.copytree(prepared / name, root / name)
    path = root / "images" / "a" / "0.png"
    path.rename(path.with_name(f"{ARABIC}  صور.png"))
    (root / "images" / "b" / "damaged.png").write_bytes(b"no image")
    with model_served(root) as found:
        yield found.seen()


@pytest.fixture(scope="module")
def page(browser, served):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    found = context.new_page()
    found.set_default_timeout(PATIENCE)
    found.goto(f"http://127.0.0.1:{served.port}/?token={TOKEN}")
    found.locator(".card").first.wait_for()
    yield found
    context.close()


@pytest.fixture(autouse=True)
def start(page, served):
    """Every test starts with the classes of the model."""
    page.evaluate("location.hash = 'start'")
    page.get_by_role("heading", level=1, name="Start").wait_for()
    content = served.get("classes").json()
    while content["undo"]:
        content = served.post("undo", revision=content["revision"]).json()
    page.wait_for_function(
        "async revision => (await import('/static/js/store.js')).store.state.classes?.revision"
        " === revision",
        arg=content["revision"],
    )
    go(page, "Classes")  # the cards follow the store, and their order the shares
    page.wait_for_function(
        "names => JSON.stringify([...document.querySelectorAll('.card .name')]"
        ".map(one => one.title).sort()) === JSON.stringify(names)",
        arg=sorted(one["name"] for one in content["classes"]),
    )
    page.wait_for_timeout(300)


def model(served):
    return legend(served.studio.workspace.out.parent)


def wait_for_name(page, name):
    page.locator(f'.card .name[title="{name}"]').wait_for()
    saved(page)


def test_typing_on_a_card_renames_its_class(page, served):
    """No letter of "shop" is a shortcut: it split the class and switched the outlines off."""
    go(page, "Classes")
    page.locator(".card").first.focus()
    page.keyboard.type("shop 2")
    page.keyboard.press("Enter")
    wait_for_name(page, "shop 2")
    found = model(served)
    assert len(found.classes) == 3
    assert "shop 2" in found.names
    assert page.get_by_label("Outlines").first.is_checked()
    # With Alt, letters are shortcuts.
    card(page, "shop 2").focus()
    page.keyboard.press("Alt+h")
    page.get_by_text("Hid shop 2.").wait_for()
    saved(page)
    assert [one.name for one in model(served).classes if one.hidden] == ["shop 2"]


def test_a_blank_name_restores_the_field(page, served):
    go(page, "Classes")
    field = page.locator(".card .name").first
    name = field.input_value()
    for typed in ("", "   ", f" {name} "):
        field.fill(typed)
        field.press("Enter")
        assert field.input_value() == name
    assert not served.get("classes").json()["undo"]


def test_an_existing_name_offers_to_merge(page, served):
    go(page, "Classes")
    for place, name in enumerate(("road", "road")):
        field = page.locator(".card .name").nth(place)
        field.fill(name)
        field.press("Enter")
        if not place:
            wait_for_name(page, "road")
    notice = page.locator(".notice", has_text="road already exists.")
    notice.get_by_role("button", name="Merge").click()
    page.get_by_text(re.compile("^Merged .* into road.$")).wait_for()
    saved(page)
    assert len(model(served).classes) == 2


def test_names_from_right_to_left_keep_their_order(page, served):
    go(page, "Classes")
    field = page.locator(".card .name").first
    field.fill(ARABIC)
    field.press("Enter")
    page.get_by_text(re.compile(f"^Renamed .+ to \u2068{ARABIC}\u2069\\.$")).wait_for()
    saved(page)
    assert field.evaluate("one => getComputedStyle(one).direction") == "rtl"
    go(page, "Images")
    page.get_by_label("Order").select_option("name")
    label = page.locator(".file-label", has_text=ARABIC).first
    # The two parts of the file name follow from right to left, and its spaces have a width.
    first, second = (label.locator("span[aria-hidden]").nth(i).bounding_box() for i in range(2))
    assert second["x"] < first["x"]
    assert "  " in label.evaluate("one => one.innerText.replaceAll('\\n', '')")
    page.locator(".cell").first.click()
    row = page.locator(".present .line", has_text=ARABIC).locator(".ellipsis")
    assert row.evaluate("one => getComputedStyle(one).direction") == "rtl"
    page.get_by_role("button", name="All images").click()


def open_image(page, number=1):
    go(page, "Images")
    page.get_by_label("Order").select_option("name")
    page.locator(".cell").nth(number).click()
    page.locator(".viewer .stage[data-shown]").wait_for()


def test_the_brush_shows_what_it_paints(page):
    """In the mode that shows the plain image, nothing of the stroke was visible."""
    open_image(page)
    page.get_by_role("radio", name="Image", exact=True).click()
    page.keyboard.press("b")
    assert page.get_by_role("radio", name="Classes", exact=True).is_checked()
    page.get_by_role("radio", name="Image", exact=True).click()
    brush = page.get_by_role("button", name="Correct with brush")
    assert brush.get_attribute("aria-pressed") == "false"
    page.get_by_role("radio", name="Classes", exact=True).click()
    page.get_by_role("button", name="All images").click()


def test_the_ring_of_the_brush_follows_the_zoom(page):
    open_image(page)
    page.keyboard.press("b")
    page.keyboard.press("f")
    page.locator(".stage canvas").hover()
    ring = page.locator(".cursor")
    before = ring.bounding_box()["width"]
    page.mouse.wheel(0, -600)
    after = ring.bounding_box()["width"]
    assert after == pytest.approx(before * np.exp(600 * 0.0016), rel=0.05)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="All images").click()


def test_a_stroke_waits_for_the_next_map(page, served):
    """J, B and a click while the map of the next image is on its way."""
    open_image(page)
    number = int(page.locator(".viewer .stage").get_attribute("data-shown"))
    held = []
    page.route(f"**/api/images/{number + 1}/leaves", lambda route: held.append(route))
    page.evaluate("import('/static/js/loader.js').then(one => one.leaves.forget())")
    page.keyboard.press("j")
    page.keyboard.press("b")
    page.locator(".stage canvas").click()
    page.get_by_text("The image is loading…").wait_for()
    page.wait_for_timeout(100)
    assert not served.get("images").json()["corrected"]
    for route in held:
        route.continue_()
    page.unroute(f"**/api/images/{number + 1}/leaves")
    page.locator(f'.viewer .stage[data-shown="{number + 1}"]').wait_for()
    page.locator(".stage canvas").click()
    page.get_by_text(re.compile("^Corrected to ")).wait_for()
    saved(page)
    assert served.get("images").json()["corrected"] == [number + 1]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="All images").click()


def test_a_pinned_mask_follows_the_threshold(page):
    """Its number, tag and similar regions are those of the new map."""
    go(page, "Masks")
    page.get_by_text("refined by the CRF").wait_for()
    page.locator(".masks .stage canvas").click()
    page.locator(".similar button").first.wait_for()
    for threshold in (0.1, 0.9):
        with page.expect_response(f"**/similar?threshold={threshold:.2f}"):
            set_range(page, "Threshold", threshold)
        page.get_by_text("refined by the CRF").wait_for()
        tag = page.locator(".masks .tag").inner_text()
        number = re.fullmatch(r"mask (\d+)", tag)[1]
        page.get_by_text(f"Regions similar to mask {number},").wait_for()
    set_range(page, "Threshold", 0.4)


def test_the_filmstrip_shows_the_open_image(page, served):
    page.set_viewport_size({"width": 700, "height": 800})
    last = len(served.studio.workspace.images) - 2
    page.evaluate(
        "image => import('/static/js/store.js').then(one => one.store.set({ image }))", last
    )
    go(page, "Masks")
    strip = page.locator(".filmstrip")
    chosen = strip.locator(".cell.chosen")
    chosen.wait_for()
    box, inside = strip.bounding_box(), chosen.bounding_box()
    page.set_viewport_size({"width": 1280, "height": 800})
    assert box["x"] <= inside["x"]
    assert inside["x"] + inside["width"] <= box["x"] + box["width"] + 1


def test_unreadable_files_stay_listed_after_the_fit(page):
    go(page, "Start")
    summary = page.locator(".skipped summary")
    assert summary.inner_text() == "1 image cannot be read"


def test_an_audit_warns_about_names_and_starts_over_after_a_question(page, served):
    go(page, "Audit")
    page.get_by_text("3 classes have no name").wait_for()
    page.get_by_role("button", name="Answer 40").click()
    page.get_by_text("0 of 40 answered").wait_for()
    page.keyboard.press("y")
    page.get_by_text("1 of 40 answered").wait_for()
    page.get_by_role("button", name="Start over…").click()
    page.get_by_role("button", name="Cancel").click()
    assert served.get("audit").json()["done"] == 1
    page.get_by_role("button", name="Start over…").click()
    page.get_by_role("button", name="Start over with 40 questions").click()
    page.get_by_text("0 of 40 answered").wait_for()
    page.get_by_role("button", name="Restore the earlier 1 answer").click()
    page.get_by_text("1 of 40 answered").wait_for()


def test_a_wrong_number_of_classes_is_explained(browser, prepared, tmp_path):
    from primaps.studio.workspace import open_workspace
    from tests.studio.conftest import serving

    given = prepared / "images", tmp_path / "out", {}
    with open_workspace(*given) as workspace, serving(workspace, "auto") as served:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{served.port}/?token={TOKEN}")
        number = page.get_by_role("spinbutton")
        for typed in ("1", "999", "", "2.5"):
            number.fill(typed)
            page.get_by_role("button", name="Find the classes").click()
            page.get_by_text("must be an integer from 2 to 256").wait_for()
            assert served.get("state").json()["stage"] == "ready"
        number.fill("3")
        assert page.get_by_text("must be an integer from 2 to 256").count() == 0
        page.close()
