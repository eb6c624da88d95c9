"""The explorer's page, in a real browser: what it shows is what the run holds, and it asks nothing of anyone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cri
from cri.attribution.neighbors import METRICS, similarity
from cri.cli import run_command
from cri.errors import CriError
from cri.explore.coding import LEVELS, Blob
from cri.explore.command import ExploreConfig
from cri.explore.command import run as explore
from cri.explore.inside import nearest_table
from cri.explore.page import embedded, page
from cri.explore.payload import CHOSEN, Payload, explained_cases, payload, reference_log_odds, shown_sites
from cri.explore.scores import score_cases
from cri.explore.summary import HALF, kernels, summaries
from cri.models.activations import collect

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)")
SIZE = 12
HOSTILE = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script>__BLOBS__'
SHIFT = """new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => { for (const e of list.getEntries()) sum += e.value; })
    .observe({type: "layout-shift", buffered: true});
  setTimeout(() => done(sum), 100);
})"""
"""The sum of all layout shifts so far."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[cri.OpenRun]:
    out = tmp_path_factory.mktemp("runs")
    made = []
    for split in ("square", "random"):
        config = cri.recipe("addition", task_params={"size": SIZE}, steps=120).replace(split=split)
        if split == "square":
            config = config.replace(split_params={"half_side": 2})
        made.append(cri.load_run(cri.train_run(config, out, device="cpu", progress=False)))
    return made


@pytest.fixture(scope="module")
def scratchpad(tmp_path_factory: pytest.TempPathFactory) -> cri.OpenRun:
    config = cri.recipe(
        "addition", "scratchpad", tokenizer="digit", task_params={"size": SIZE}, split_params={"half_side": 1}, steps=15
    )
    return cri.load_run(cri.train_run(config, tmp_path_factory.mktemp("runs"), device="cpu", progress=False))


@pytest.fixture(scope="module")
def data(runs: list[cri.OpenRun]) -> Payload:
    return payload(runs)


@pytest.fixture(scope="module")
def path(data: Payload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(data))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        context = opened.new_context(permissions=["clipboard-read", "clipboard-write"])
        yield context
        opened.close()


class Opened:
    """A page in the browser, with everything it asked for and every error it made."""

    def __init__(self, browser: Any, path: Path, hash: str = "") -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": 1400, "height": 900})
        self.page.set_default_timeout(90_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(f"file://{path}{hash}")
        self.page.wait_for_selector("body[data-ready=yes]")

    def shown(self, run: int, a: int, b: int, method: str) -> None:
        """Waits until a case is drawn."""
        self.page.wait_for_selector(f'body[data-shown="{run}:{a},{b}:{method}"]')

    def view(self, **state: Any) -> None:
        """Shows this, as if it had been chosen."""
        self.page.evaluate("s => { Object.assign(explorer.state, s); return explorer.refresh(true); }", state)

    def until(self, condition: str) -> None:
        """Waits until an expression holds; asked from outside, for the page's policy forbids evaluating text in it."""
        deadline = time.monotonic() + 90
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def list(self) -> list[tuple[int, float]]:
        return [(int(case), float(score)) for case, score in self.page.evaluate("explorer.current().list")]

    def map(self) -> np.ndarray:
        found = self.page.evaluate("Array.from(explorer.current().map, x => Number.isNaN(x) ? null : x)")
        return np.array([np.nan if x is None else x for x in found])

    def text(self, selector: str) -> str:
        return self.page.text_content(selector)

    def click(self, canvas: str, a: int, b: int) -> None:
        self.page.evaluate(f"document.getElementById('{canvas}').scrollIntoView()")
        x, y = self.page.evaluate(
            "([id, a, b]) => { const c = document.getElementById(id), q = c.geometry, r = c.getBoundingClientRect();"
            "return [r.left + q.left + (b + .5) * q.cell, r.top + q.top + (a + .5) * q.cell]; }",
            [canvas, a, b],
        )
        self.page.mouse.click(x, y)


@pytest.fixture(scope="module")
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    shown = Opened(browser, path)
    yield shown
    # whatever the tests of this module did to it
    assert shown.errors == []
    assert shown.requests == [f"file://{path}"]


@needs_browser
def test_a_clicked_cell_shows_the_run_s_own_neighbours_and_influences(runs: list[cri.OpenRun], opened: Opened) -> None:
    run, case = runs[0], runs[0].case(5, 7)
    opened.click("map0", 5, 7)
    opened.shown(0, 5, 7, "cosine")
    for number, site in enumerate(shown_sites(run, "all")):
        acts = collect(run.bridge, run.tokens, [site])[site]
        for metric in METRICS:
            opened.view(method=metric, site=number)
            table, found = nearest_table(run, np.array([case]), site, metric), opened.list()
            own = dict(zip(table["neighbor"], table["similarity"], strict=True))
            assert {c for c, _ in found} == set(own)
            # the nearest first; those that are as near to float32's digits may come in either order. A distance is the
            # root of a difference of squared lengths, which is what has these digits
            listed, expected = np.array([s for _, s in found]), np.array([own[c] for c, _ in found])
            if metric == "euclidean":
                listed, expected = (-(d**2) / (acts**2).sum(axis=1).mean() for d in (listed, expected))
            assert np.allclose(listed, expected, atol=1e-5)
            assert (np.diff(expected) <= 1e-5).all()
            # the map is rounded, and whitened by all cases; what it says is the same
            train, by = run.split.train_ids, np.arange(SIZE**2) if metric == "whitened_cosine" else run.split.train_ids
            right, shown = np.full(SIZE**2, np.nan), opened.map()
            right[by] = similarity(acts[by], acts[[case]], metric)[:, 0]
            assert np.isnan(shown[run.split.test_ids]).all()
            error = shown[train] - right[train]
            assert np.sqrt(np.mean(error**2)) < 0.15 * right[train].std(), metric
    opened.page.select_option("#method", "EK-FAC")
    opened.shown(0, 5, 7, "EK-FAC")
    every = run.influence(case, "EK-FAC", k=None)
    listed, largest = opened.list(), every["score"].abs().max()
    half = len(listed) // 2
    assert np.allclose([s for _, s in listed[:half]], every["score"][:half], rtol=1e-3, atol=1e-4 * largest)
    shown = opened.map()[every["case"].to_numpy()]
    steps = np.sqrt(np.abs(shown) / largest) * np.sign(shown), np.sqrt(every["score"].abs() / largest)
    assert np.allclose(steps[0], steps[1] * np.sign(every["score"]), atol=0.51 / LEVELS)
    assert opened.page.locator("#list tbody tr").count() == len(listed)
    assert float(opened.text("#list tbody tr td:last-child")) == pytest.approx(listed[0][1], rel=1e-3)
    groups = run.influence(case, "EK-FAC", k=3)["group"].str.replace("_", " ").tolist()
    assert [opened.text(f"#list tbody tr:nth-child({i + 1}) td:nth-child(6)") for i in range(3)] == groups


@needs_browser
def test_what_is_copied_is_what_is_shown(runs: list[cri.OpenRun], opened: Opened) -> None:
    case = runs[0].case(6, 6)
    for method in ("euclidean", "GradCos", "same answer / distance"):
        opened.view(run=0, a=6, b=6, method=method, site=1)
        opened.page.evaluate("say('')")
        opened.page.click("#csv")
        opened.until("document.getElementById('said').textContent === 'CSV copied'")
        lines = opened.page.evaluate("navigator.clipboard.readText()").splitlines()
        listed = opened.list()
        assert lines[0] == "case,a,b,answer,score"
        assert [int(line.split(",")[0]) for line in lines[1:]] == [c for c, _ in listed]
        a, b = runs[0].task.cases[listed[0][0]]
        assert lines[1].split(",")[1:4] == [str(a), str(b), str(a + b)]
        # the Python finds the same cases
        call = next(x for x in opened.page.evaluate("explorer.python()").splitlines() if x.startswith("print("))
        assert str(case) in call
        table = eval(call.removeprefix("print(").removesuffix(")"), {"run": runs[0]})
        score = table["similarity" if method == "euclidean" else "score"].to_numpy()
        k = 20 if method != "GradCos" else len(listed) // 2
        assert np.allclose(score[:k], [s for _, s in listed[:k]], rtol=1e-3, atol=1e-6)
    opened.page.click("#png")
    opened.until("document.getElementById('said').textContent === 'PNG copied'")
    kinds = opened.page.evaluate("navigator.clipboard.read().then(items => items[0].types)")
    assert kinds == ["image/png"]


@needs_browser
def test_arrows_move_and_the_address_restores_the_view(path: Path, browser: Any, opened: Opened) -> None:
    shown = Opened(browser, path, hash="#a=3&b=4&method=ekfac&value=difference&run=1&frame=offset&control=untrained")
    shown.shown(1, 3, 4, "EK-FAC")
    assert shown.page.input_value("#value") == "difference"
    assert shown.page.input_value("#frame") == "offset"
    assert shown.page.evaluate(SHIFT) < 0.01  # nothing moved while the page opened (0.1 passes for good)
    shown.page.focus("#map0")
    shown.page.keyboard.press("ArrowDown")
    shown.shown(1, 4, 4, "EK-FAC")
    shown.page.keyboard.press("ArrowRight")
    shown.shown(1, 4, 5, "EK-FAC")
    assert "a=4&b=5" in shown.page.url
    shown.page.fill("#find", "2 9")
    shown.page.press("#find", "Enter")
    shown.shown(1, 2, 9, "EK-FAC")
    # in offsets the case is in the middle: a click one cell to its right and below leads there
    shown.click("score", HALF + 1, HALF + 1)
    shown.shown(1, 3, 10, "EK-FAC")
    url = shown.page.url
    for question, words in (("99 99", "no case"), ("seven", "write two numbers")):
        shown.page.fill("#find", question)
        shown.page.press("#find", "Enter")
        shown.until(f"document.getElementById('said').textContent.startsWith('{words}')")
    shown.page.goto(f"file://{path}#a=0&b=0")
    shown.shown(1, 0, 0, "EK-FAC")
    shown.page.goto(url)
    shown.shown(1, 3, 10, "EK-FAC")
    # a method that was not scored is said so; the rest of an odd address is taken as far as it makes sense
    shown.page.goto(f"file://{path}#a=99999&b=-1&method=<img src=x>&run=7&value=x&frame=__proto__&element=q")
    shown.until("document.getElementById('said').textContent.includes('was not scored')")
    assert "EK-FAC" in shown.text("#said")
    assert shown.errors == []
    shown.page.close()


@needs_browser
def test_runs_are_switched_and_controls_stand_beside(runs: list[cri.OpenRun], opened: Opened) -> None:
    opened.view(run=0, a=6, b=6, method="cosine", site=1, control="", frame="grid")
    assert opened.page.input_value("#control") == "run1"  # the random split
    assert "random split" in opened.text("#againstnote")
    opened.page.select_option("#control", "untrained")
    opened.until("document.getElementById('againstnote').textContent.includes('before training')")
    opened.page.select_option("#control", "nearest operands")
    opened.until("document.getElementById('againstnote').textContent.includes('no model')")
    opened.page.select_option("#run-split", "random")
    opened.shown(1, 6, 6, "cosine")
    assert not opened.page.locator("#run-seed").count()  # both have the same
    opened.page.hover("#map0", position={"x": 100, "y": 100})
    opened.until("document.getElementById('hover').textContent.includes('log-odds')")
    rings = opened.page.eval_on_selector_all(".cursor", "all => all.filter(x => x.style.display === 'block').length")
    assert rings == 4  # linked: in both maps, the scores and the control
    assert "do not show" in opened.text("header")


@needs_browser
def test_aggregates_have_n_and_an_interval(data: Payload, opened: Opened) -> None:
    opened.view(run=0, method="EK-FAC", frame="mean")
    opened.until("document.getElementById('scorenote').textContent.includes('Mean of 25 explained')")
    opened.click("score", HALF, HALF + 4)
    opened.until("document.getElementById('hover').textContent.startsWith('Offset (0, +4)')")
    assert "n = " in opened.text("#hover")
    row = next(
        x
        for x in data.facts["summary"]["shares"]
        if (x["method"], x["group"], x["kindNumber"]) == ("EK-FAC", "near", 0)
    )
    assert f"{row['mean']:.3f}" in opened.text("#sumtable")
    assert "n = 25 explained cases, 1 seed" in opened.text("#sumnote")
    test = next(x for x in data.facts["summary"]["accuracy"] if x["part"] == "test" and x["kindNumber"] == 1)
    assert f"{test['mean']:.3f} [{test['low']:.3f}, {test['high']:.3f}], n = {test['cases']}" in opened.text("#sumnote")
    opened.view(frame="grid")


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1400, "light"), (3840, "dark")])
def test_the_page_fits_every_screen(opened: Opened, width: int, scheme: str) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.emulate_media(color_scheme=scheme)
    opened.view(a=6, b=7)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    labels = opened.page.eval_on_selector_all("canvas", "all => all.map(c => c.getAttribute('aria-label'))")
    assert len(labels) == 4
    assert all(labels)
    unnamed = opened.page.eval_on_selector_all(
        "select, input, button", "all => all.filter(x => !x.textContent && !x.labels.length).length"
    )
    assert unnamed == 0
    # nothing moves when another case is shown
    boxes = "[...document.querySelectorAll('section, canvas, select')].map(x => x.getBoundingClientRect().top)"
    before = opened.page.evaluate(boxes)
    opened.view(a=5, b=5)
    assert opened.page.evaluate(boxes) == before


@needs_browser
def test_texts_of_runs_are_never_markup(data: Payload, scratchpad: cri.OpenRun, tmp_path: Path, browser: Any) -> None:
    hostile = payload([scratchpad], ("GradCos",), 3)
    hostile.facts["task"] = HOSTILE
    hostile.facts["runs"][0] |= {"name": HOSTILE, "split": HOSTILE, "sites": [HOSTILE] * 2}
    texts: dict[str, Any] = {key: [HOSTILE] * SIZE**2 for key in ("question", "answer", "prediction", "status")}
    hostile.put("texts0", texts | {"label": [HOSTILE] * SIZE**2, "said": [HOSTILE] * SIZE**2})
    lines = [{"text": HOSTILE, "elements": {HOSTILE: [0, 9]}}]
    case = int(explained_cases(scratchpad, 3)[1])
    edit = dict.fromkeys(("element", "old", "new", "expected", "unedited", "answer", "outcome", "text"), HOSTILE)
    traced = {"traces": {case: {"lines": lines, "written": HOSTILE}}, "near": {}, "steps": {}, "edited": [case]}
    hostile.put("traces0", traced | {"edits": [edit | {"id": case, "line": 0}]})
    file = tmp_path / "hostile.html"
    file.write_text(page(hostile))
    a, b = scratchpad.task.coords[case]
    shown = Opened(browser, file, f"#a={a}&b={b}")
    assert shown.page.evaluate("window.hit") is None
    assert shown.page.locator("img").count() == 0
    assert shown.errors == []
    for place in ("#title", "#facts", "#lines", "#edits", "#foot", "#lenstable"):
        assert "<img src=x" in shown.text(place)
    shown.page.close()


@needs_browser
def test_a_scratchpad_s_elements_lead_to_steps_and_edits(scratchpad: cri.OpenRun, tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "page.html"
    explore(ExploreConfig((str(scratchpad.path),), out=file, methods=("GradCos",), cases=9))
    case = scratchpad.case(6, 6)
    shown = Opened(browser, file, "#a=6&b=6")
    trace = scratchpad.trace(case)
    written = [line for line in shown.page.locator("#lines > div").all_text_contents() if line]
    assert [line.partition("  ←")[0] for line in written] == [text for text in trace["text"] if text]
    # 6 + 6 is executed in the square alone
    assert "never trained" in shown.text("#steps")
    assert "add(6,6,0)" in shown.text("#steps")
    assert shown.page.locator("#lines .untrained").count() == 1
    assert shown.page.locator("#steps tbody tr").count() == 10
    line = next(i for i, elements in enumerate(trace["elements"]) if "carry" in elements and i > 0)
    button = shown.page.locator(f"#lines > div:nth-child({line + 1}) button[title=carry]")
    button.click()
    shown.page.wait_for_selector("#lines .element[aria-pressed=true]")
    assert "element=1%3Acarry" in shown.page.url
    edited = scratchpad.edit(case, "carry", "0", line)
    assert f"carry: 1 → 0. The rule then answers {edited['expected']}" in shown.text("#edits")
    assert edited["outcome"] in shown.text("#edits")
    assert shown.errors == []
    shown.page.close()


@needs_browser
def test_a_notebook_shows_the_same_page_in_a_frame(runs: list[cri.OpenRun], tmp_path: Path, browser: Any) -> None:
    shown = runs[0].explore((5, 5), "EK-FAC", cases=25, methods=("EK-FAC",))
    assert shown.save(tmp_path / "p.html").read_text() == shown.text
    notebook = browser.new_page()
    notebook.set_content(f"<p>a notebook</p>{shown._repr_html_()}")
    frame = notebook.frame_locator("iframe")
    frame.locator("body[data-ready=yes]").wait_for(timeout=90_000)
    assert frame.locator("body").get_attribute("data-shown") == "0:5,5:EK-FAC"
    frame.locator("#map0").press("ArrowDown")
    frame.locator('body[data-shown="0:6,5:EK-FAC"]').wait_for(timeout=90_000)
    notebook.close()
    with pytest.raises(CriError, match=r"^method: [^\n]*EK-FAC[^\n]*$"):
        runs[0].explore(method="EK-FAC", methods=("GradCos",))


def test_facts_cannot_end_their_element() -> None:
    assert "<" not in embedded({"x": "</script>"})
    assert json.loads(embedded({"x": "</script>&"})) == {"x": "</script>&"}


def test_the_page_is_the_same_twice_and_small(runs: list[cri.OpenRun], data: Payload) -> None:
    again = payload(runs)
    assert again.blobs == data.blobs
    assert again.facts == data.facts
    assert page(again).count("__BLOBS__") == 0
    assert again.size < 500_000
    # both runs started from one model, which is held once
    assert again.facts["runs"][0]["blobs"]["untrained"] == again.facts["runs"][1]["blobs"]["untrained"]
    assert len(payload(runs[:1], ("GradCos",), 5, "last").facts["runs"][0]["sites"]) == 1


def test_explained_are_the_square_s_cases_first(runs: list[cri.OpenRun]) -> None:
    assert explained_cases(runs[0], CHOSEN).tolist() == runs[0].split.test_ids.tolist()
    assert len(explained_cases(runs[1], 5)) == 5
    assert set(explained_cases(runs[1], 5)) <= set(runs[1].split.test_ids.tolist())
    square = np.abs(runs[1].task.coords - 6).max(1) <= 2
    there = np.flatnonzero(square & ~runs[1].split.train)
    assert set(explained_cases(runs[1], len(there), runs[0].split.squares)) == set(there.tolist())


def test_log_odds_are_those_of_the_whole_right_answer(runs: list[cri.OpenRun], scratchpad: cri.OpenRun) -> None:
    for run in (runs[0], scratchpad):
        odds = reference_log_odds(run)
        for case in (0, 70, 143):
            ids = run.tokens.ids[case, : run.tokens.lengths[case]][None]
            with torch.no_grad():
                logp = run.model(ids).logits[0].log_softmax(-1).double()
            first = int(run.tokens.prompt_lengths[case])
            p = sum(float(logp[i - 1, ids[0, i]]) for i in range(first, ids.shape[1]))
            assert odds[case] == pytest.approx(p - np.log1p(-np.exp(p)), rel=1e-3)
    right = runs[0].predictions["correct"].to_numpy(dtype=bool)
    odds = reference_log_odds(runs[0])
    assert odds[right].mean() > odds[~right].mean()


def test_a_mean_over_offsets_is_that_of_the_pairs_and_seeds_give_its_interval(runs: list[cri.OpenRun]) -> None:
    run = runs[0]
    cases, site = explained_cases(run, CHOSEN), shown_sites(run, "last")[0]
    acts = collect(run.bridge, run.tokens, [site])[site]
    one = score_cases(run, cases, ("GradCos",), acts, acts)
    facts, blob = next((f, b) for f, b in kernels([run], [one]) if f["method"] == "GradCos")
    arrays = {
        k: np.frombuffer(b"".join(blob.parts), v["type"], (2 * HALF + 1) ** 2, v["at"]) for k, v in blob.index.items()
    }
    scores = one.scores["GradCos"] / np.abs(one.scores["GradCos"]).max(0)
    at = {case: i for i, case in enumerate(run.split.train_ids.tolist())}
    pairs = [
        scores[at[other], column]
        for column, (a, b) in enumerate(run.task.cases[cases].tolist())
        if a + 3 < SIZE and b - 1 >= 0 and (other := run.case(a + 3, b - 1)) in at
    ]
    place = (HALF + 3) * (2 * HALF + 1) + HALF - 1
    assert arrays["n"][place] == len(pairs) > 3
    assert arrays["mean"][place] == pytest.approx(np.mean(pairs), rel=1e-5)
    assert facts["cases"] == 25
    # three runs of one kind, whose scores differ: the interval is Student's over them
    three = [dataclasses.replace(one, scores={"GradCos": one.scores["GradCos"] + x}) for x in (0.0, 0.1, 0.3)]
    rows = summaries([run] * 3, three)["shares"]
    assert {row["seeds"] for row in rows} == {3}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows if row["low"] is not None)
    ((_, several),) = kernels([run] * 3, three)
    half = np.frombuffer(b"".join(several.parts), "f4", arrays["mean"].size, several.index["half"]["at"])
    means = [np.mean([(s + x) / m for s, m in pairs_of(one, at, run, cases, x)]) for x in (0.0, 0.1, 0.3)]
    assert half[place] == pytest.approx(4.302653 * np.std(means, ddof=1) / np.sqrt(3), rel=1e-3)


def pairs_of(one: Any, at: dict[int, int], run: cri.OpenRun, cases: np.ndarray, shift: float) -> Iterator[Any]:
    """Score and largest size of every pair at offset (3, -1), where all scores are shifted."""
    for column, (a, b) in enumerate(run.task.cases[cases].tolist()):
        if a + 3 < SIZE and b - 1 >= 0 and (other := run.case(a + 3, b - 1)) in at:
            scores = one.scores["GradCos"][:, column]
            yield scores[at[other]], np.abs(scores + shift).max()


def test_bad_input_is_one_line(runs: list[cri.OpenRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = cri.recipe("addition", task_params={"size": 11}, split_params={"half_side": 2}, steps=2)
    other = cri.train_run(small, tmp_path, device="cpu", progress=False)
    partly = cri.train_run(small.replace(decoded=3), tmp_path, device="cpu", progress=False)
    without = tmp_path / "without"
    shutil.copytree(runs[0].path, without)
    (without / "predictions.csv").unlink()
    mine, file = str(runs[0].path), tmp_path / "page.html"
    for bad, field in (
        (ExploreConfig((mine, str(other)), out=file), "runs"),
        (ExploreConfig((str(partly),), out=file), "runs"),
        (ExploreConfig((str(without),), out=file), "run"),
        (ExploreConfig((mine, mine), out=file), "runs"),
        (ExploreConfig((mine,), out=file, methods=("nothing",)), "methods"),
        (ExploreConfig((mine,), out=file, methods=("TracIn",)), "methods"),
        (ExploreConfig((mine,), out=file, cases=0), "cases"),
        (ExploreConfig((mine,), out=tmp_path), "out"),
        (ExploreConfig((), out=file), "runs"),
        (ExploreConfig(("nowhere",), out=file), "run"),
    ):
        with pytest.raises(CriError, match=rf"^{field}[^\n]*: [^\n]+$"):
            explore(bad)
        assert not file.exists()
    with pytest.raises(SystemExit) as ended:
        run_command(ExploreConfig, explore, "", [mine, str(other), "--out", str(file)], prog="cri explore")
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(CriError, match="float64"):
        Blob().add("x", np.zeros(2))
