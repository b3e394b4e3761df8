"""The page in Chromium: photos in, answers, heat maps and nodes out, and nothing leaves the machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dla
from dla.options import ServeOptions
from dla.serving.page_doors import SAMPLES
from dla.serving.served_model import ServedModel
from support.photos import CHELSEA
from support.pixel_models import edge_detector, segmenter
from support.served import Running, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
TOKEN = "0123456789abcdef-secret"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 700}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


def served(network: Any) -> Callable[[ServeOptions], ServedModel]:
    config = network.config
    info = {"architecture": config.architecture, "task": config.task,
            "classes": [{"class_id": c.class_id, "label": c.label} for c in network.classes]}  # fmt: skip
    return lambda options: ServedModel(network, options, info)


@pytest.fixture(scope="module")
def classifier() -> dla.Classifier:
    return dla.load(engine="torch")


@pytest.fixture(scope="module")
def service(classifier: dla.Classifier) -> Iterator[Running]:
    with serving(load=served(classifier)) as running:
        yield running


class Visit:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser: Any, service: Running, **settings: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **settings})
        self.page = self.context.new_page()
        self.base = f"http://127.0.0.1:{service.port}/"
        self.asked: list[Any] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self) -> Any:
        self.page.goto(self.base)
        return self.page

    def answers(self, path: str | os.PathLike[str] = CHELSEA) -> Any:
        """The page with the answer for a photo."""
        self.page.locator("#file").set_input_files(str(path))
        self.page.locator("#classes button, #legend li, #caption:not(:empty)").first.wait_for()
        return self.page

    def check(self, expected: tuple[str, ...] = (), axe: bool = False) -> None:
        """Nothing went wrong, nothing was asked of anyone else, all fits the width; with `axe`, it finds nothing."""
        from axe_playwright_python.sync_playwright import Axe

        if axe:
            found = Axe().run(self.page)
            assert found.violations_count == 0, found.generate_report()
        assert [c for c in self.complaints if not any(words in c for words in (*expected, "willReadFrequently"))] == []
        assert all(request.url.startswith((self.base, "blob:", "data:")) for request in self.asked)
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def visit(browser: Any, service: Running) -> Iterator[Visit]:
    opened = Visit(browser, service)
    yield opened
    opened.context.close()


def says(page: Any, selector: str, words: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(words)


def pixels(page: Any) -> list[int]:
    """The mean colour of the stage."""
    found: list[int] = page.evaluate("""() => {
      const stage = document.getElementById("stage")
      const data = stage.getContext("2d").getImageData(0, 0, stage.width, stage.height).data
      const sums = [0, 0, 0]
      for (let at = 0; at < data.length; at++) if (at % 4 < 3) sums[at % 4] += data[at]
      return sums.map(sum => Math.round(4 * sum / data.length))
    }""")
    return found


def test_a_photo_its_classes_and_why(visit: Visit, classifier: dla.Classifier) -> None:
    page = visit.open()
    visit.answers()
    expected = classifier.predict(CHELSEA).classes
    lines = page.locator("#classes li").all_inner_texts()
    assert [line.split("\n") for line in lines] == [[c.label, f"{100 * c.probability:.1f} %"] for c in expected]
    widths = page.locator("#classes .bar").evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width))")
    assert widths == pytest.approx([100 * c.probability for c in expected], abs=0.01)
    says(page, "#time", "engine")
    before = pixels(page)
    page.locator("#classes button").first.press("Enter")
    says(page, "#caption", f"What speaks for {expected[0].label}: 4 \u00d7 4 places, the exact class activation map.")
    assert page.locator("#classes button").first.get_attribute("aria-pressed") == "true"
    assert pixels(page) != before
    page.get_by_label("rather than").select_option(label=expected[1].label)
    says(page, "#caption", f"What speaks for {expected[0].label} rather than {expected[1].label}")
    page.get_by_role("slider", name="Between the photo and the answer").fill("0")
    page.locator("#curl").click()
    says(page, "#command", f"curl --data-binary '@chelsea.png' '{visit.base}v1/predict'")
    visit.check()


def test_the_nodes_come_from_one_request_and_are_in_the_drawing(visit: Visit) -> None:
    page = visit.open()
    visit.answers()
    page.locator("summary").press("Enter")
    page.locator("#drawing svg").wait_for()
    names = page.locator("#strip button").all_inner_texts()
    assert names == ["level0", "level1", "level2", "level3.tree1", "level3", "level4.tree1", "level4", "level5"]
    assert [request.url for request in visit.asked if "explain" in request.url] == [f"{visit.base}v1/explain?at=nodes"]
    for name in ("level0", "level3.tree1", "level5"):
        page.locator(f'#drawing [data-name="{name}"]').first.press(" ")
        says(page, "#caption", f"{name}: ")
        assert page.locator("#strip [aria-pressed=true]").inner_text() == name
    page.get_by_role("button", name="level4.tree1").first.click()
    says(page, "#caption", "level4.tree1: 128 channels, 8 \u00d7 8 places, stride 16.")
    assert page.locator("#drawing [aria-pressed=true]").get_attribute("data-name") == "level4.tree1"
    visit.check(axe=True)


GIVE_PHOTO = """async ([kind, name, target]) => {
  const blob = await (await fetch("page/samples/chelsea")).blob()
  const transfer = new DataTransfer()
  transfer.items.add(new File([blob], name, { type: blob.type }))
  const data = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer }
  const event = kind === "drop" ? new DragEvent(kind, data) : new ClipboardEvent(kind, data)
  document.querySelector(target).dispatchEvent(event)
}"""


def test_samples_dropped_and_pasted_photos(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("button", name="hubble").wait_for()
    assert page.locator("#samples img").evaluate_all("all => all.map(image => image.alt)") == list(SAMPLES)
    page.get_by_role("button", name="coffee").click()
    says(page, "#classes", "espresso")
    assert page.locator("#stage-title").inner_text() == "coffee.jpg"
    for kind, words, target in (("drop", "dropped.png", "#drop"), ("paste", "pasted.png", "body")):
        page.evaluate(GIVE_PHOTO, [kind, words, target])
        says(page, "#stage-title", words)
        says(page, "#classes", "Egyptian cat")
    visit.check()


def test_what_goes_wrong_is_said(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    text = tmp_path / "notes.jpg"
    text.write_text("not a photo at all")
    page.locator("#file").set_input_files(str(text))
    says(page, "[role=alert]", "notes.jpg: this is not a photo. Allowed: JPEG, PNG")
    says(page, "#caption", "This browser cannot show the photo.")
    visit.answers()
    page.locator("#classes button").first.wait_for()  # the caption of the photo before is there already
    assert page.locator("[role=alert]").inner_text() == ""
    page.route("**/v1/explain*", lambda route: route.abort())
    page.locator("#classes button").first.click()
    says(page, "[role=alert]", "The service cannot be reached.")
    visit.check(expected=("422", "ERR_FAILED"))


def test_the_token_is_asked_for_and_stays_in_memory(browser: Any, classifier: dla.Classifier, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    with serving(load=served(classifier), token_file=str(file)) as running:
        visit = Visit(browser, running)
        page = visit.open()
        page.get_by_label("This service wants a token").fill("wrong-wrong-wrong-wrong")
        page.keyboard.press("Enter")
        says(page, "[role=alert]", "This is not the token of this service.")
        page.get_by_label("This service wants a token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="coffee").click()
        says(page, "#classes", "espresso")
        page.locator("#curl").click()
        says(page, "#command", '-H "Authorization: Bearer $DLA_TOKEN"')
        assert TOKEN not in page.content()
        assert (
            page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])") == '[{},{},""]'
        )
        assert not any(TOKEN in request.url for request in visit.asked)
        visit.check(expected=("401",))
        visit.context.close()


def test_a_mask_has_a_legend_and_a_slider(browser: Any) -> None:
    network = segmenter()
    with serving(load=served(network)) as running:
        visit = Visit(browser, running)
        page = visit.open()
        visit.answers()
        found = {c.label: c for c in network(str(CHELSEA)).classes}
        rows = [row.split("\n") for row in page.locator("#legend li").all_inner_texts()]
        assert rows == [[c.label, f"{100 * c.share:.1f} %"] for c in found.values()]
        swatches = page.locator("#legend .swatch").evaluate_all("all => all.map(s => s.style.backgroundColor)")
        assert swatches == [f"rgb({', '.join(map(str, network.palette[c.index]))})" for c in found.values()]
        page.get_by_role("slider", name="Between the photo and the answer").fill("100")
        shares = {c.index: c.share for c in found.values()}
        wanted = [sum(share * network.palette[k][level] for k, share in shares.items()) for level in range(3)]
        assert pixels(page) == pytest.approx(wanted, abs=3)
        assert not page.locator("#inside").is_visible()
        visit.check(axe=True)
        visit.context.close()


def test_boundaries_lie_over_the_photo(browser: Any) -> None:
    with serving(load=served(edge_detector())) as running:
        visit = Visit(browser, running)
        page = visit.open()
        visit.answers()
        says(page, "#caption", f"{100 * edge_detector()(str(CHELSEA)).lines.mean():.1f} % of the pixels are on one")
        visit.check()
        visit.context.close()


def test_it_fits_a_narrow_screen_and_the_dark(browser: Any, service: Running) -> None:
    visit = Visit(browser, service, viewport=NARROW, color_scheme="dark")
    page = visit.open()
    visit.answers()
    page.locator("#classes button").first.click()
    says(page, "#caption", "What speaks for")
    page.locator("summary").click()
    page.locator("#drawing svg").wait_for()
    visit.check(axe=True)
    visit.context.close()


def test_only_its_own_script_and_style_may_run(service: Running) -> None:
    _, headers, body = service.ask("GET", "/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert body.count(policy.split("'nonce-")[1].split("'")[0].encode()) == 2
    assert service.ask("GET", "/")[1]["content-security-policy"] != policy
    assert b"http://" not in body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in body
    status, _, answer = service.ask("GET", "/page/samples/../x")
    assert (status, json.loads(answer)["error"]["code"]) == (404, "not_found")
