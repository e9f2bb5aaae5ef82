"""Computations of the page in the browser, compared with the library and scipy."""

import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from scipy import ndimage

from primaps.classes.legend import legend, node_classes
from primaps.classes.tree import Tree
from primaps.studio.serve import STATIC, page_html


@pytest.fixture(scope="module")
def page(browser):
    """A blank page that can import the modules."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=STATIC))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = browser.new_page()
    found.set_default_timeout(240_000)
    found.goto(f"http://127.0.0.1:{server.server_port}/index.html")
    yield found
    found.close()
    server.shutdown()


@pytest.fixture
def fresh(page):
    """The page with fresh modules and a mock of fetch.

    ``answers`` maps addresses to answers; ``asked`` lists the requested addresses.
    """
    page.reload()
    page.evaluate("""() => {
      window.answers = {};
      window.asked = [];
      window.fetch = async (address, options) => {
        asked.push(address + (options?.body ?? ""));
        const answer = await answers[address.split("?")[0]];
        return answer instanceof Blob ? new Response(answer) : Response.json(answer ?? {});
      };
    }""")
    return page


def random_tree(seed, classes=4):
    """A tree with one to three leaves per class; leaves of a class merge first."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 4, classes)
    leaves, merges, tops = int(sizes.sum()), [], []
    for first, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        top = int(first)
        for leaf in range(first + 1, first + size):
            merges.append([top, int(leaf)])
            top = leaves + len(merges) - 1
        tops.append((int(first), top))
    while len(tops) > 1:
        one, other = sorted(generator.choice(len(tops), 2, replace=False))
        merges.append([tops[one][1], tops[other][1]])
        joined = (tops[one][0], leaves + len(merges) - 1)
        tops = sorted([t for i, t in enumerate(tops) if i not in (one, other)] + [joined])
    cost = torch.from_numpy(np.sort(generator.random(leaves - 1)))
    return Tree(torch.eye(leaves), torch.ones(leaves).long(), torch.tensor(merges), cost, classes)


def call(page, module, function, *arguments):
    code = f"async given => (await import('/js/{module}.js')).{function}(...given)"
    return page.evaluate(code, list(arguments))


def as_the_server_sends(tree, edits):
    """The fields of ``GET classes`` that cuts need."""
    nodes = [
        {"id": one.id, "name": one.name, "color": "#000000", "leaves": list(one.leaves)}
        for one in node_classes(tree, edits)
    ]
    classes = [
        {"id": one.id, "leaves": list(one.leaves), "hidden": one.hidden, "name": one.name}
        for one in legend(tree, edits).classes
    ]
    tree = {"nodes": nodes, "merges": tree.merges.tolist(), "cost": tree.cost.tolist()}
    return {"tree": tree, "classes": classes, "leaves": len(nodes) // 2 + 1}


@pytest.mark.parametrize("seed", range(3))
def test_cuts_equal_the_library(page, seed):
    tree = random_tree(seed)
    edits = [{"rename": "0", "to": "road"}, {"hide": "1"}]
    found = as_the_server_sends(tree, edits)
    for count in range(1, len(tree) + 1):
        there = legend(tree, edits, count).classes
        here = call(page, "tree", "cutClasses", found, count)
        assert [(one["id"], one["name"], one["leaves"], bool(one["hidden"])) for one in here] == [
            (one.id, one.name, list(one.leaves), one.hidden) for one in there
        ]
        if count > 1:  # what any two of them would be called if they were merged
            leaves = [*there[0].leaves, *there[-1].leaves]
            merged = legend(tree, [*cut_by_hand(tree, count), {"merge": ids(there[0], there[-1])}])
            name = call(page, "tree", "classId", found, tree.classes, leaves)
            assert name in [one.id for one in merged.classes]


def ids(*classes):
    return [one.id for one in classes]


def cut_by_hand(tree, count):
    """Splits and merges that lead from the classes of the model to a cut."""
    edits = []
    wanted = {one.leaves for one in legend(tree, [], count).classes}
    while {one.leaves for one in legend(tree, edits).classes} != wanted:
        now = legend(tree, edits).classes
        inside = {one: next((w for w in wanted if set(one.leaves) <= set(w)), None) for one in now}
        large = [one for one, whole in inside.items() if whole is None]
        if large:
            edits.append({"split": large[0].id})
            continue
        for whole in wanted:
            together = [one.id for one, mine in inside.items() if mine == whole]
            if len(together) > 1:
                edits.append({"merge": together})
    return edits


def test_a_region_is_connected(page):
    values = np.random.default_rng(0).integers(0, 2, (30, 41))
    map_ = {"width": 41, "height": 30, "values": values.ravel().tolist()}
    labeled, _ = ndimage.label(values)
    borders = [(y, x) for y in range(30) for x in (0, 40) if values[y, x]]
    for y, x in [*np.argwhere(values)[::60], *borders]:
        found = call(page, "views/images/regions", "region", map_, int(x), int(y))
        expected = np.flatnonzero(labeled.ravel() == labeled[y, x])
        np.testing.assert_array_equal(np.sort(found), expected)


def test_runs_and_discs(page):
    rows, columns = np.mgrid[:20, :50]
    for x, y, radius in ((10, 8, 5.5), (0, 0, 7), (49, 10, 30)):
        expected = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        found = call(
            page, "views/images/regions", "disc", {"width": 50, "height": 20}, x, y, radius
        )
        np.testing.assert_array_equal(np.sort(found), np.flatnonzero(expected))
        runs = call(page, "views/images/regions", "runs", expected.ravel().astype(int).tolist())
        covered = [pixel for start, length in runs for pixel in range(start, start + length)]
        np.testing.assert_array_equal(covered, np.flatnonzero(expected))


def test_confidence_adds_up_merged_classes(page):
    logits = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3
    group = [0, 1, 0, 3, 1]
    given = {"classes": 5, "height": 4, "width": 6, "values": logits.flatten().tolist()}
    found = call(page, "confidence", "confidence", given, group)
    shares = torch.zeros(5, 4, 6).index_add_(0, torch.tensor(group), logits.softmax(0))
    expected = (255 * shares.amax(0)).flatten().numpy()
    values = [found["values"][str(i)] for i in range(24)] if isinstance(
        found["values"], dict
    ) else found["values"]  # fmt: skip
    np.testing.assert_allclose(values, expected, atol=0.51)


def test_half_precision_equals_numpy(page):
    numbers = np.array([0, -0.5, 1, 65504, 6e-8, 3.14159, -1e-5, np.inf], np.float16)
    found = page.evaluate(
        "async words => [...(await import('/js/api.js')).halves(new Uint16Array(words))]",
        numbers.view(np.uint16).tolist(),
    )
    np.testing.assert_array_equal(np.array(found, np.float32), numbers.astype(np.float32))


def test_zooming_keeps_the_point_under_the_pointer(page):
    image, pane = {"width": 400, "height": 300}, {"left": 10, "top": 0, "width": 900, "height": 500}
    camera, at = {"zoom": 3, "x": 0.4, "y": 0.6}, {"x": 500, "y": 260}
    before = call(page, "draw/camera", "pointAt", camera, image, pane, at)
    nearer = call(page, "draw/camera", "zoomAt", camera, image, pane, at, 1.7)
    after = call(page, "draw/camera", "pointAt", nearer, image, pane, at)
    assert nearer["zoom"] == pytest.approx(5.1)
    assert after == pytest.approx(before)


def test_images_of_another_folder_are_loaded_again(fresh):
    asked = fresh.evaluate("""async () => {
      const { arrive } = await import("/js/live.js");
      const { store } = await import("/js/store.js");
      const loader = await import("/js/loader.js");
      const canvas = new OffscreenCanvas(2, 2);
      canvas.getContext("2d");
      answers["/api/images/0/image.jpg"] = await canvas.convertToBlob();
      const images = [];
      for (const collection of ["one", "one", "other"]) {
        answers["/api/images"] = { names: [collection], uncertainty: [0.5], unreadable: [] };
        await arrive({ stage: "ready", folder: "images", images: 1, collection });
        images.push(store.state.images.names[0]);
        await loader.image(0);
      }
      return [...asked.filter((address) => address.includes("image.jpg")), ...images];
    }""")
    assert asked == [
        "/api/images/0/image.jpg?of=one", "/api/images/0/image.jpg?of=other", "one", "one", "other",
    ]  # fmt: skip


def test_a_cut_chosen_during_a_save_stays(fresh):
    cuts = fresh.evaluate("""async () => {
      const { commitCut } = await import("/js/classes.js");
      const { store } = await import("/js/store.js");
      let answer;
      answers["/api/classes/cut"] = new Promise((resolve) => (answer = resolve));
      store.set({ classes: { revision: "a", classes: [1, 2, 3] }, cut: 2 });
      const saved = commitCut(2);
      store.set({ cut: 1 });
      answer({ revision: "b", classes: [1, 2] });
      await saved;
      const found = [store.state.cut];
      answers["/api/classes/cut"] = { revision: "c", classes: [1] };
      await commitCut(1);
      return [...found, store.state.cut];
    }""")
    assert cuts == [1, None]


def test_a_stroke_continues_while_the_last_one_is_saved(fresh):
    found = fresh.evaluate("""async () => {
      const { createBrush } = await import("/js/views/images/brush.js");
      const { store } = await import("/js/store.js");
      store.set({ classes: { revision: "a", leaves: 2, classes: [
        { id: "0", name: "a", leaves: [0] }, { id: "1", name: "b", leaves: [1] }] } });
      const view = {
        map: null, redrawMap(map) { this.map = map; },
        stage: { node: document.createElement("div"), image: null },
      };
      let image = 0;
      const proposed = { width: 4, height: 1, values: new Uint8Array([1, 2, 3, 4]) };
      const brush = createBrush({
        view: () => view, masks: () => proposed, image: () => image,
      });
      const map = (values) => ({ width: 4, height: 1, values: new Uint8Array(values) });
      brush.arrive(map([0, 0, 0, 0]));
      brush.choose(store.state.classes.classes[1]);
      const tool = brush.tool();
      tool.start({ x: 0.1, y: 0.5 });
      brush.arrive(map([0, 0, 0, 7]));
      const during = [...view.map.values];
      tool.move({ x: 0.4, y: 0.5 });
      tool.end();
      await new Promise((resolve) => setTimeout(resolve));
      tool.start({ x: 0.1, y: 0.5 });
      image = 1;
      brush.arrive(map([0, 0, 0, 0]));
      tool.end();
      return [during, asked.filter((one) => one.includes("correction"))];
    }""")
    assert found[0] == [1, 0, 0, 7]
    assert len(found[1]) == 1
    assert '"runs":[[0,2]]' in found[1][0]


def test_the_brush_waits_for_the_map_of_its_image(fresh):
    """J, B and a stroke, before the next map has arrived."""
    found = fresh.evaluate("""async () => {
      const { createBrush } = await import("/js/views/images/brush.js");
      const { store } = await import("/js/store.js");
      store.set({ classes: { revision: "a", leaves: 2, classes: [
        { id: "0", name: "a", leaves: [0] }, { id: "1", name: "b", leaves: [1] }] } });
      const view = {
        map: null, redrawMap(map) { this.map = map; },
        stage: { node: document.createElement("div"), image: null },
      };
      let image = 0;
      const brush = createBrush({ view: () => view, masks: () => null, image: () => image });
      const map = (key) => ({ width: 4, height: 1, values: new Uint8Array(4), key, digest: "d" });
      brush.arrive(map("first"));
      brush.choose(store.state.classes.classes[1]);
      const started = brush.tool();
      started.start({ x: 0.1, y: 0.5 });
      image = 1;
      brush.leave(); // the next image is opened in the middle of a stroke
      started.end();
      const during = brush.tool();
      for (const { keys, act } of brush.keys) if (keys.includes(" ")) act({ key: " " });
      brush.arrive(map("second"));
      brush.tool().start({ x: 0.1, y: 0.5 });
      brush.tool().end();
      await new Promise((resolve) => setTimeout(resolve));
      return [during, asked.filter((one) => one.includes("correction"))];
    }""")
    assert found[0] is None
    (sent,) = found[1]
    assert sent.startswith("/api/images/1/correction")
    assert '"key":"second","digest":"d"' in sent


UNSENT = """async () => {
  const { change, restoreUnsent } = await import("/js/classes.js");
  const { store } = await import("/js/store.js");
  sessionStorage.clear();
  const server = { stage: "fitted", collection: "one" };
  store.set({ server, classes: { revision: "a", classes: [] } });
  const wait = () => new Promise((resolve) => setTimeout(resolve, 20));
  const posts = () => asked.filter((one) => one.includes("change"))
    .map((one) => JSON.parse(one.slice(one.indexOf("{"))));
  const answer = window.fetch;
  window.fetch = (address, options) => {
    asked.push(address + (options?.body ?? ""));
    return Promise.reject(new TypeError("no connection"));
  };
  const ahead = (found) => ({ ...found, shown: "b" });
  const saved = change("classes", { edits: [1] }, "Renamed a to b.", ahead);
  change("classes", { edits: [2] }, "Renamed c to d.");
  await wait();
  const lost = { ...store.state, kept: JSON.parse(sessionStorage.getItem("unsent one")).length };
  window.fetch = answer;
  """


def test_an_unconfirmed_edit_is_sent_again(fresh):
    """The server was killed: the edit stays displayed, is marked, and is sent after a restart."""
    found = fresh.evaluate(
        UNSENT
        + """
      answers["/api/state"] = { stage: "fitted", collection: "one" };
      answers["/api/classes"] = { revision: "b", classes: [] };
      store.set({ disconnected: "" });
      await saved;
      await wait();
      return [lost.disconnected, lost.unsaved, lost.classes.shown, lost.kept, posts(),
        store.state.saving, sessionStorage.getItem("unsent one")];
    }"""
    )
    assert found[0].startswith("The server does not respond")
    assert found[1:4] == [["Renamed a to b", "Renamed c to d"], "b", 2]
    first, again, second = found[4]
    assert first == again
    assert (first["revision"], second["revision"], second["edits"]) == ("a", "b", [2])
    assert len({first["change"], second["change"]}) == 2
    assert found[5:] == [0, None]


def test_a_lost_edit_is_shown_with_its_content(fresh):
    """After the restart, the server rejects it: another program changed the classes."""
    shown = fresh.evaluate(
        UNSENT
        + """
      answers["/api/state"] = { stage: "fitted", collection: "one" };
      window.fetch = async (address, options) => options?.body
        ? Response.json({ error: "another tab changed the classes" }, { status: 409 })
        : answer(address, options);
      answers["/api/classes"] = { revision: "z", classes: [] };
      store.set({ disconnected: "" });
      await saved;
      await wait();
      const notices = [...document.querySelectorAll(".notice.lost span")];
      const { classes, saving } = store.state;
      return [notices.map((one) => one.textContent), classes.shown ?? null, saving];
    }"""
    )
    assert shown[0] == [
        "Not saved: Renamed a to b. Another tab changed the classes",
        "Not saved: Renamed c to d. Another tab changed the classes",
    ]
    assert shown[1:] == [None, 0]


def test_a_reloaded_tab_sends_what_is_not_saved(fresh):
    sent = fresh.evaluate("""async () => {
      const { restoreUnsent } = await import("/js/classes.js");
      const { store } = await import("/js/store.js");
      const kept = { id: "x", path: "classes", body: { edits: [1] }, done: "a.", revision: "a" };
      sessionStorage.setItem("unsent one", JSON.stringify([kept]));
      store.set({ server: { stage: "ready", collection: "one" } });
      restoreUnsent();
      const early = asked.length;
      store.set({ server: { stage: "fitted", collection: "one" } });
      await new Promise((resolve) => setTimeout(resolve, 20));
      return [early, ...asked, sessionStorage.getItem("unsent one")];
    }""")
    assert sent == [0, '/api/classes{"revision":"a","edits":[1],"change":"x"}', None]


def test_a_card_changes_only_with_its_class(fresh):
    touched = fresh.evaluate("""async () => {
      const { createCard } = await import("/js/views/classes/card.js");
      const { store } = await import("/js/store.js");
      store.set({ server: { collection: "one" } });
      const one = { id: "0", name: "a", color: "#102030", leaves: [0], hidden: false };
      const card = createCard(one, {});
      card.update(one, 0.5, 1);
      const watch = new MutationObserver(() => {});
      const all = { attributes: true, childList: true, characterData: true, subtree: true };
      watch.observe(card.node, all);
      card.update(one, 0.5, 1);
      const nothing = watch.takeRecords().length;
      card.update({ ...one, color: "#ff0000" }, 0.5, 1);
      const children = watch.takeRecords().filter((record) => record.type === "childList").length;
      card.end();
      return [nothing, children, card.node.querySelector(".color").value];
    }""")
    assert touched == [0, 0, "#ff0000"]


@pytest.mark.parametrize("coarse", [False, True])
def test_both_drawings_agree(page, coarse):
    shown = page.evaluate(DRAWN, coarse)
    card, processor = (np.array(one, float).reshape(96, 200, 4) for one in shown)
    assert len(np.unique(card.reshape(-1, 4), axis=0)) > 50
    apart = np.abs(card - processor).max(2)
    # Bytes are rounded in other ways, and some borders lie a pixel off.
    assert np.median(apart) <= 1
    assert (apart > 4).mean() < 0.01


DRAWN = """async (coarse) => {
  const { canvas2d } = await import("/js/draw/canvas2d.js");
  const { webgl } = await import("/js/draw/webgl.js");
  const { palette } = await import("/js/palette.js");
  const known = WebGL2RenderingContext.prototype.getExtension;
  WebGL2RenderingContext.prototype.getExtension = () => null; // as if a card computed it
  const classes = [
    { id: 0, color: "#102030", leaves: [0, 1], hidden: false },
    { id: 1, color: "#ff8000", leaves: [2], hidden: false },
    { id: 2, color: "#ffffff", leaves: [3], hidden: true },
  ];
  const pixels = new ImageData(80, 60);
  pixels.data.forEach((_, i) => (pixels.data[i] = i % 4 === 3 ? 255 : ((i >> 2) % 80) + (i >> 9)));
  const side = coarse ? 10 : 40;
  const at = (i) => ((i % side) * 4 / side + (i / side) * 7 / side) & 3;
  const values = Uint8Array.from({ length: side * side }, (_, i) => at(i));
  const map = { width: side, height: side, values };
  const grid = new Uint8Array([255, 0, 200, 90, 10, 255, 30, 255]);
  const rect = { left: -9, top: 3, width: 122, height: 91 };
  const panes = ["classes", "masks"].map((layer, i) => ({
    layer,
    clip: { left: 101 * i, top: 0, width: 99, height: 96 },
    rect: { ...rect, left: rect.left + 101 * i },
  }));
  const shown = [];
  for (const make of [webgl, canvas2d]) {
    const canvas = Object.assign(document.createElement("canvas"), { width: 200, height: 96 });
    const drawing = make(canvas);
    drawing.image(await createImageBitmap(pixels));
    for (const layer of ["classes", "masks"]) {
      drawing.labels(layer, map);
      drawing.palette(layer, palette(classes, 4, layer === "masks" ? 0 : null));
    }
    drawing.confidence({ width: 4, height: 2, values: grid });
    const overlay = { opacity: 0.6, outlines: true, line: 1, minConfidence: 0.5 };
    drawing.draw(panes, overlay);
    values.fill(2, 0, values.length / 3); // as a brush does
    drawing.labels("classes", map);
    drawing.draw(panes, overlay);
    values.forEach((_, i) => (values[i] = at(i)));
    const read = new OffscreenCanvas(200, 96).getContext("2d");
    read.drawImage(canvas, 0, 0);
    shown.push([...read.getImageData(0, 0, 200, 96).data]);
  }
  WebGL2RenderingContext.prototype.getExtension = known;
  return shown;
}"""


def test_webgl_in_software_is_not_used(page):
    made = page.evaluate("""async () => {
      const { webgl } = await import("/js/draw/webgl.js?software");
      const canvas = document.createElement("canvas");
      return [webgl(canvas), Boolean(canvas.getContext("2d"))];
    }""")
    assert made == [None, True]  # Chromium without a screen computes WebGL by itself


def test_all_modules_are_preloaded():
    modules = [f"/static/{path.relative_to(STATIC).as_posix()}" for path in STATIC.rglob("*.js")]
    assert "/static/js/views/audit/interval.js" in modules
    assert sorted(re.findall(r'modulepreload" href="(.*?)"', page_html())) == sorted(modules)
