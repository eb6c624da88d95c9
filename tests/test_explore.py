"""The explorer's page, in a real browser: what it shows is what the run holds, and it asks nothing of anyone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cri
from cri.errors import CriError
from cri.explore.command import ExploreConfig
from cri.explore.command import run as explore
from cri.explore.page import embedded, page
from cri.explore.payload import CHOSEN, Blob, explained_cases, nearest_table, payload, reference_log_odds

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[cri.OpenRun]:
    out = tmp_path_factory.mktemp("runs")
    made = []
    for split in ("square", "random"):
        config = cri.recipe("addition", task_params={"size": 12}, steps=120).replace(split=split)
        if split == "square":
            config = config.replace(split_params={"half_side": 2})
        made.append(cri.load_run(cri.train_run(config, out, device="cpu", progress=False)))
    return made


@pytest.fixture(scope="module")
def path(runs: list[cri.OpenRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    explore(ExploreConfig(tuple(str(run.path) for run in runs), file))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Opened:
    """The page in the browser, with everything it asked for and every error it made."""

    def __init__(self, browser: Any, path: Path, width: int = 1400, hash: str = "") -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(f"file://{path}{hash}")
        self.page.wait_for_selector("body[data-ready=yes]", timeout=60_000)

    def shown(self, run: int, a: int, b: int, method: str) -> None:
        """Waits until a case is drawn."""
        self.page.wait_for_selector(f'body[data-shown="{run}:{a},{b}:{method}"]', timeout=30_000)

    def list(self) -> list[tuple[int, float]]:
        return [(int(case), float(score)) for case, score in self.page.evaluate("explorer.current().list")]

    def click(self, run: int, a: int, b: int, size: int = 12) -> None:
        canvas = self.page.locator(f"#map{run}")
        box = canvas.bounding_box()
        canvas.click(position={"x": (b + 0.5) / size * box["width"], "y": (a + 0.5) / size * box["height"]})


@needs_browser
def test_a_clicked_cell_shows_the_run_s_own_neighbours_and_influences(
    runs: list[cri.OpenRun], path: Path, browser: Any
) -> None:
    shown = Opened(browser, path)
    run, case = runs[0], runs[0].case(5, 7)
    shown.click(0, 5, 7)
    shown.shown(0, 5, 7, "cosine")
    table = nearest_table(run, np.array([case]), 0)
    found = shown.list()
    assert [c for c, _ in found] == table["neighbor"].tolist()
    assert np.allclose([s for _, s in found], table["similarity"], atol=1e-5)
    shown.page.select_option("#method", "EK-FAC")
    shown.shown(0, 5, 7, "EK-FAC")
    every = run.influence(case, "EK-FAC", k=None)
    listed = shown.list()
    half = len(listed) // 2
    assert np.allclose(
        [s for _, s in listed[:half]], every["score"][:half], rtol=1e-3, atol=1e-4 * every["score"].abs().max()
    )
    rows = shown.page.locator("#list tbody tr")
    assert rows.count() == len(listed)
    # what is copied is what is shown
    lines = shown.page.evaluate("explorer.csv()").splitlines()
    assert lines[0] == "case,a,b,answer,score"
    assert [int(line.split(",")[0]) for line in lines[1:]] == [c for c, _ in listed]
    assert f'run.influence({case}, "EK-FAC", target="predicted")' in shown.page.evaluate("explorer.python()")
    assert shown.errors == []
    assert shown.requests == [f"file://{path}"]


@needs_browser
def test_arrows_move_and_the_address_restores_the_view(path: Path, browser: Any) -> None:
    shown = Opened(browser, path, hash="#a=3&b=4&method=cosine&value=difference&run=1")
    shown.shown(1, 3, 4, "cosine")
    assert shown.page.input_value("#value") == "difference"
    shown.page.focus("#map0")
    shown.page.keyboard.press("ArrowDown")
    shown.shown(1, 4, 4, "cosine")
    shown.page.keyboard.press("ArrowRight")
    shown.shown(1, 4, 5, "cosine")
    assert "a=4&b=5" in shown.page.url
    again = Opened(browser, path, hash="#" + shown.page.url.split("#")[1])
    again.shown(1, 4, 5, "cosine")
    shown.page.fill("#find", "2 9")
    shown.page.press("#find", "Enter")
    shown.shown(1, 2, 9, "cosine")
    shown.page.fill("#find", "99 99")
    shown.page.press("#find", "Enter")
    shown.page.wait_for_function("document.getElementById('said').textContent.startsWith('no case')")
    assert shown.errors == []
    # an address from elsewhere is taken as far as it makes sense
    odd = Opened(browser, path, hash="#a=99999&b=-1&method=<img>&run=7&value=x")
    assert odd.errors == []


@needs_browser
@pytest.mark.parametrize("width", [375, 1400, 3840])
def test_the_page_fits_every_screen(path: Path, browser: Any, width: int) -> None:
    shown = Opened(browser, path, width)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.page.locator("canvas").count() == 3
    labels = shown.page.eval_on_selector_all("canvas", "all => all.map(c => c.getAttribute('aria-label'))")
    assert all(labels)


@needs_browser
def test_texts_of_runs_are_never_markup(runs: list[cri.OpenRun], tmp_path: Path, browser: Any) -> None:
    data = payload(runs[:1])
    evil = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script>__BLOBS__'
    data.facts["task"] = evil
    data.facts["runs"][0]["name"] = evil
    file = tmp_path / "evil.html"
    file.write_text(page(data))
    shown = Opened(browser, file)
    assert shown.page.evaluate("window.hit") is None
    assert shown.errors == []
    assert evil.split("_")[0][:20] in shown.page.inner_text("#title")


@needs_browser
def test_a_scratchpad_s_elements_can_be_clicked(tmp_path: Path, browser: Any) -> None:
    config = cri.recipe(
        "addition", "scratchpad", tokenizer="digit", task_params={"size": 12}, split_params={"half_side": 1}, steps=20
    )
    folder = cri.train_run(config, tmp_path / "runs", device="cpu", progress=False)
    file = tmp_path / "page.html"
    explore(ExploreConfig((str(folder),), file, methods=("GradCos",), cases=9))
    shown = Opened(browser, file)
    assert shown.page.locator("#trace .element").count() > 3
    shown.page.locator("#trace .element").first.click()
    shown.page.wait_for_selector("#trace .element[aria-pressed=true]")
    assert shown.errors == []


def test_facts_cannot_end_their_element() -> None:
    assert "<" not in embedded({"x": "</script>"})
    assert json.loads(embedded({"x": "</script>&"})) == {"x": "</script>&"}


def test_the_page_is_the_same_twice_and_small(runs: list[cri.OpenRun]) -> None:
    one, two = payload(runs[:1]), payload(runs[:1])
    assert one.blobs == two.blobs
    assert page(one).count("__BLOBS__") == 0
    assert one.size < 400_000


def test_explained_are_the_square_s_cases_first(runs: list[cri.OpenRun]) -> None:
    assert explained_cases(runs[0], CHOSEN).tolist() == runs[0].split.test_ids.tolist()
    assert len(explained_cases(runs[1], 5)) == 5
    assert set(explained_cases(runs[1], 5)) <= set(runs[1].split.test_ids.tolist())


def test_log_odds_of_the_right_answer_say_who_is_right(runs: list[cri.OpenRun]) -> None:
    odds = reference_log_odds(runs[0])
    right = runs[0].predictions["correct"].to_numpy(dtype=bool)
    assert (odds[odds > 0.01] > 0).all()
    assert right[odds > 0.01].all()  # more than half of the mass is on it


def test_bad_input_is_one_line(runs: list[cri.OpenRun], tmp_path: Path) -> None:
    config = cri.recipe("addition", task_params={"size": 11}, split_params={"half_side": 2}, steps=2)
    other = cri.train_run(config, tmp_path, device="cpu", progress=False)
    mine = str(runs[0].path)
    file = tmp_path / "page.html"
    for bad, field in (
        (ExploreConfig((mine, str(other)), file), "runs"),
        (ExploreConfig((mine,), file, methods=("nothing",)), "methods"),
        (ExploreConfig((mine,), file, methods=("TracIn",)), "methods"),
        (ExploreConfig((mine,), file, cases=0), "cases"),
        (ExploreConfig((mine,), tmp_path), "out"),
        (ExploreConfig((), file), "runs"),
        (ExploreConfig(("nowhere",), file), "run"),
    ):
        with pytest.raises(CriError, match=rf"^{field}: [^\n]+$"):
            explore(bad)
        assert not file.exists()
    with pytest.raises(CriError, match="float64"):
        Blob().add("x", np.zeros(2))
