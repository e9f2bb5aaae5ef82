"""The accessibility tree of Chromium for screen readers, and the focus."""

import re
import shutil
from itertools import pairwise

import pytest

from tests.studio.conftest import TOKEN, model_served

pytestmark = pytest.mark.slow
VIEWS = {
    "Start": ".start",
    "Masks": ".masks .stage[data-shown]",
    "Classes": ".preview .stage[data-shown]",
    "Images": ".cell",
    "Audit": ".audit h2",
    "Export": ".format",
}
"""Views, and a selector of what they show once they are open."""


@pytest.fixture(scope="module")
def own(prepared, tmp_path_factory):
    """A studio of these tests."""
    root = tmp_path_factory.mktemp("screen-reader")
    for name in ("images", "model"):
        shutil.copytree(prepared / name, root / name)
    with model_served(root) as found:
        yield found.seen()


@pytest.fixture
def page(browser, own):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    found = context.new_page()
    found.set_default_timeout(120_000)
    found.goto(f"http://127.0.0.1:{own.port}/?token={TOKEN}")
    found.locator(".card").first.wait_for()
    yield found
    context.close()


def go(page, view):
    page.evaluate("name => (location.hash = name)", view.lower())
    page.get_by_role("heading", level=1, name=view, exact=True).wait_for()
    page.locator(VIEWS[view]).first.wait_for()


def large(page):
    """One image large."""
    go(page, "Images")
    page.locator(".cell").first.click()
    page.locator(".viewer .stage[data-shown]").wait_for()


def tree(page):
    """Role, name and properties of everything that a screen reader meets, in its order."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [
        {
            "role": node["role"]["value"],
            "name": node.get("name", {}).get("value", ""),
            **{one["name"]: one["value"].get("value") for one in node["properties"]},
        }
        for node in nodes
        if not node["ignored"] and node["role"]["value"] != "RootWebArea"
    ]


def focus(page):
    """Name of what has the focus."""
    return next((one["name"] for one in tree(page) if one.get("focused")), "")


def said(page):
    """Record from now on what live regions come to say."""
    page.evaluate("""() => {
      window.said = [];
      const live = '[role="status"], [role="alert"], [aria-live="polite"], [aria-live="assertive"]';
      new MutationObserver((records) => {
        for (const { target, addedNodes } of records) {
          const place = (target.closest ? target : target.parentElement).closest(live);
          for (const node of place ? addedNodes : []) window.said.push(node.textContent);
        }
      }).observe(document.body, { childList: true, subtree: true, characterData: true });
    }""")


@pytest.mark.parametrize("view", [*VIEWS, "one image"])
def test_views_have_landmarks_headings_and_named_controls(page, view):
    if view == "one image":
        large(page)
    else:
        go(page, view)
    found = tree(page)
    roles = [one["role"] for one in found]
    assert [roles.count(role) for role in ("banner", "navigation", "main")] == [1, 1, 1]
    levels = [one["level"] for one in found if one["role"] == "heading"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("main h1").count() == 1
    controls = [one for one in found if one.get("focusable")]
    assert len(controls) > 10
    assert [one for one in controls if not one["name"]] == []
    # The same action on many things says on which.
    buttons = [one["name"] for one in controls if one["role"] == "button"]
    assert len(buttons) == len(set(buttons))
    states = "[aria-pressed], [aria-selected], [aria-checked], [aria-hidden], [aria-disabled]"
    values = page.locator(states).evaluate_all(
        "nodes => nodes.flatMap(node => [...node.attributes])"
        ".filter(({ name }) => /pressed|selected|checked|hidden|disabled/.test(name))"
        ".filter(({ name }) => name.startsWith('aria')).map(({ value }) => value)"
    )
    assert set(values) <= {"true", "false"}
    sliders = [one for one in found if one["role"] == "slider"]
    shown = page.locator("input[type=range]:visible, [role=slider]:visible").all()
    assert len(shown) == len(sliders)
    assert all(re.search(r"\d", one.get_attribute("aria-valuetext")) for one in shown)
    assert len(sliders) == {"Classes": 3, "Masks": 2, "one image": 2}.get(view, 0)


def test_sliders_announce_their_value_once(page):
    slider = page.get_by_label("Number of classes", exact=True)
    move = "(range, to) => { range.value = to; range.dispatchEvent(new Event('input')) }"
    before = page.locator(".card").count()
    # Of the page: what developers' tools show for it is another thing in each version of Chromium.
    assert slider.get_attribute("aria-valuetext") == f"{before} classes"
    said(page)
    slider.evaluate(move, 1)
    page.locator(".card").nth(1).wait_for(state="detached")
    assert slider.get_attribute("aria-valuetext") == "1 class"
    assert page.evaluate("said") == []
    slider.evaluate(move, before)
    large(page)
    page.get_by_role("radio", name="Swipe").click()
    handle = page.get_by_role("slider", name="Border between image and classes")
    handle.press("ArrowRight")
    assert handle.get_attribute("aria-valuetext") == "52% image"


def test_notices_are_announced_one_at_a_time(page):
    said(page)
    field = page.locator(".card .name").first
    before = field.input_value()
    for name in ("sky", "air"):
        field.fill(name)
        field.press("Enter")
        page.get_by_text(f"to {name}.").wait_for()
    page.locator(".saved", has_text=re.compile("^Saved$")).wait_for()
    found = page.evaluate("said")
    assert {f"Renamed {before} to sky.", "Renamed sky to air.", "Saving…", "Saved"} <= {*found}
    assert page.locator("#notices").get_attribute("aria-atomic") == "false"


def test_the_skip_link_stays_in_the_view(page):
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert page.evaluate("location.hash") == "#classes"
    assert focus(page) == "Classes"


def test_an_unfocused_list_selects_nothing(page):
    go(page, "Masks")
    strip = page.get_by_role("listbox", name="Images")
    assert focus(page) == "Masks"
    assert strip.get_attribute("aria-activedescendant") is None
    options = strip.get_by_role("option")
    states = "nodes => nodes.map(one => [one.ariaSelected, one.ariaCurrent].join())"
    assert options.evaluate_all(states).count("false,true") == 1
    assert "true,false" not in options.evaluate_all(states)
    strip.focus()
    page.keyboard.press("ArrowDown")
    chosen = page.locator(f"#{strip.get_attribute('aria-activedescendant')}")
    assert chosen.get_attribute("aria-selected") == "true"
    assert chosen.get_attribute("aria-posinset") == "2"
    page.locator(".masks .caption", has_text="1.png").wait_for()  # said, too


def test_updates_of_the_images_keep_the_list(page):
    go(page, "Images")
    kept = page.evaluate("""async () => {
      const { store } = await import("/static/js/store.js");
      const cells = [...document.querySelectorAll(".cell")];
      const { images } = store.state;
      const uncertainty = images.uncertainty.with(0, 0.987);
      store.set({ images: { ...images, uncertainty } });
      return [...document.querySelectorAll(".cell")].every((one, i) => one === cells[i]);
    }""")
    assert kept
    page.get_by_role("option", name="99% uncertain").wait_for()


def test_a_class_is_chosen_for_the_brush_without_losing_the_focus(page):
    large(page)
    line = page.locator(".present button").nth(1)
    name = line.get_attribute("title")
    line.focus()
    page.keyboard.press("Enter")
    page.get_by_text(f"to assign it to {name}.").wait_for()
    assert focus(page).startswith(name)
    pressed = [one["name"] for one in tree(page) if one.get("pressed") == "true"]
    assert [one.split(" ")[0] for one in pressed] == ["Correct", name.split(" ")[0]]
    said(page)
    page.locator(".viewer canvas").focus()
    page.keyboard.press("ArrowRight")
    assert re.match("At the cursor: .*[.]", page.evaluate("said")[-1])


def test_an_image_is_described_by_its_classes(page):
    large(page)
    names = [one["name"] for one in tree(page) if one["role"] == "image"]
    assert any(re.match(r"\w/\d[.]png, with its classes(, .+ \d+%)+$", name) for name in names)
    page.get_by_role("radio", name="Masks").click()
    page.get_by_role("img", name="with its masks").wait_for()


def test_arrow_keys_skip_disabled_choices(page):
    go(page, "Export")
    group = page.get_by_role("radiogroup", name="Images")
    group.get_by_role("radio", name="All").focus()
    page.keyboard.press("ArrowRight")
    assert group.get_by_role("radio", checked=True).inner_text().startswith("All")
    coco = next(one for one in tree(page) if one["role"] == "radio" and one["name"] == "COCO")
    assert coco["checked"] == "true"


def test_the_focus_goes_to_the_first_question_and_every_answer_is_announced(page):
    go(page, "Audit")
    page.get_by_role("button", name="Answer 40").focus()
    page.keyboard.press("Enter")
    page.get_by_text("0 of 40 answered").wait_for()
    assert re.match(r"Is the point in the ring .+, in \d[.]png\?$", focus(page))
    said(page)
    page.keyboard.press("y")
    page.get_by_text("1 of 40 answered").wait_for()
    page.locator(".audit[aria-busy=false]").wait_for()
    assert "1 of 40 answered" in page.evaluate("said")


def test_the_introduction_keeps_the_focus(page):
    page.route("**/api/audit", lambda route: route.fulfill(json={"total": 0, "done": 0}))
    go(page, "Audit")
    button = page.get_by_role("button", name="Answer 40")
    button.focus()
    page.evaluate("""async () => {
      const { store } = await import("/static/js/store.js");
      store.set({ images: { ...store.state.images } });
    }""")
    assert focus(page) == "Answer 40"


def test_the_keys_are_listed_without_gaps(page):
    large(page)
    page.keyboard.press("?")
    rows = page.locator("dialog dd").all_inner_texts()
    assert len(rows) > 10
    assert all(rows)
    assert focus(page) == "Close"


def test_a_missing_token_is_explained_in_a_page(browser, own):
    context = browser.new_context()
    page = context.new_page()
    for query in ("", "?token=another"):
        answer = page.goto(f"http://127.0.0.1:{own.port}/{query}")
        assert answer.status == 403
        assert page.title() == "primaps studio"
        assert page.locator("html").get_attribute("lang") == "en"
        page.locator("main p", has_text="printed").wait_for()
    context.close()


def test_unreadable_images_are_announced(browser, folder):
    broken = folder / "images" / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with model_served(folder) as found:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{found.port}/?token={TOKEN}")
        page.locator(".card").first.wait_for()
        go(page, "Images")
        page.get_by_text("10 images, 1 cannot be read").wait_for()
        assert page.locator(".cell .unreadable").count() == 1
        go(page, "Masks")
        assert page.get_by_role("img", name="2.png cannot be read").count() == 1
        page.evaluate("location.hash = 'audit'")
        page.get_by_role("button", name="Answer 40").wait_for()
        context.close()
