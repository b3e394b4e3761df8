"""Pages: one file, whole, nothing from elsewhere, every text escaped, and the figures that were measured."""

import io
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

import dla
from dla.drawing.shapes import Circle, Line, Page, Rect, Shape, Text, inline_svg
from dla.html_report.charts import COLOURS, STYLES, Series, interval_chart, line_chart, reliability_diagram
from dla.html_report.page import (
    Heading,
    ImageGrid,
    PageImage,
    Section,
    Share,
    SideBySide,
    Table,
    embedded,
    heat_map,
    mosaic_png,
    write_page,
)
from dla.html_report.sections import evaluation_sections, headline, next_steps, sentence, shown_names, surest_errors
from dla.metrics.classification import evaluate
from dla.metrics.intervals import Interval

EVIL = '<script>alert("1")</script>&\'"'
VOID = {"meta", "img", "br", "wbr", "line", "circle", "rect", "polyline", "i"}


class Reader(HTMLParser):
    """Checks that tags close in order; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.joined = False  # with the word before, as by a <wbr>
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.joined = tag == "wbr"
        if tag not in VOID - {"i"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.joined:
            data = f"{self.words.pop()}{data}"
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(folder: Path, *sections: Section | SideBySide) -> Reader:
    write_page(folder / "page.html", Heading("A title", "a-name", "and more", "A sentence."), sections)
    assert [p.name for p in folder.iterdir()] == ["page.html"]
    return Reader((folder / "page.html").read_text(encoding="utf-8"))


def evaluation(classes: int, names: list[str] | None = None) -> tuple[dla.Evaluation, np.ndarray, tuple[str, ...]]:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, classes, 40 * classes)
    logits = generator.normal(size=(len(targets), classes)) * 2
    logits[np.arange(len(targets)), targets] += 3
    ids = names or [f"class{k:03d}" for k in range(classes)]
    return evaluate(logits, targets, ids), targets, tuple(ids)


def test_nothing_comes_from_elsewhere_and_everything_is_escaped(tmp_path: Path) -> None:
    found, targets, names = evaluation(4, [EVIL, "b", "c\n", "é"])
    errors = surest_errors(found, targets, names, lambda i: Image.new("RGB", (30, 20)), [EVIL] * found.count)
    page = written(tmp_path, *evaluation_sections(found, names), *([errors] if errors else []))
    assert errors is not None
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onerror", "onclick"} & set(attributes)
        assert (attributes.get("src") or "data:image/webp").startswith("data:image/webp")
    assert "http" not in re.sub(r"data:[^\"]*", "", (tmp_path / "page.html").read_text()).replace("http-equiv", "")
    assert page.text.count('<script>alert("1")</script>&\'"') > 3


@pytest.mark.parametrize("classes", [2, 5, 20, 21, 200])
def test_every_class_has_its_figures(tmp_path: Path, classes: int) -> None:
    found, _, names = evaluation(classes)
    page = written(tmp_path, Section("x", (headline(found),)), *evaluation_sections(found, names))
    assert f"{100 * found.top1:.1f} %" in page.text
    assert ("top-5" in page.text) == (classes > 5)
    for c in found.classes:
        assert c.recall is not None
        assert c.precision is not None
        figures = f"{c.class_id} {c.support} {100 * c.recall:.1f} % {100 * c.precision:.1f} %"
        assert figures in page.text
    matrix = [a for tag, a in page.tags if tag == "td" and "predicted as" in (a.get("title") or "")]
    assert len(matrix) == (classes**2 if classes <= 20 else 0)
    assert any("pixelated" in (a.get("class") or "") for _, a in page.tags) == (classes > 20)
    assert (tmp_path / "page.html").stat().st_size < 300_000


def test_the_worst_confusions_come_first(tmp_path: Path) -> None:
    answers = np.array([[0] * 10, [2] * 7 + [1] * 3, [2] * 10, [0] * 4 + [3] * 6]).ravel()
    logits, targets = np.eye(30)[answers], np.repeat(np.arange(4), 10)
    targets, logits = np.append(targets, np.arange(4, 30)), np.vstack([logits, np.eye(30)[4:]])
    names = [f"n{k}" for k in range(30)]
    page = written(tmp_path, evaluation_sections(evaluate(logits, targets, names), names)[0])
    assert "n1 n2 7 70.0 % n3 n0 4 40.0 %" in page.text
    assert page.text.count("0 %") == 2


def test_the_surest_errors_are_those(tmp_path: Path) -> None:
    logits = np.array([[9.0, 0], [0, 1], [4, 0], [0, 8], [2, 0]])
    targets = np.array([0, 0, 1, 0, 1])
    found = evaluate(logits, targets, ["cat", "dog"])
    order: list[int] = []

    def photo(i: int) -> Image.Image:
        order.append(i)
        if i == 2:
            raise dla.ImageError("not_found", "gone")
        return Image.new("RGB", (8, 9))

    section = surest_errors(found, targets, ["cat", "dog"], photo, [f"/home/me/val/{i}.jpg" for i in range(5)])
    assert section is not None
    assert order == [3, 2, 4, 1]
    text = written(tmp_path, section).text
    assert "predicted dog, 100.0 % true class cat val/3.jpg" in text
    assert "Of 4 errors" in text
    right = evaluate(np.eye(2), np.array([0, 1]), ["cat", "dog"])
    assert surest_errors(right, np.array([0, 1]), ["cat", "dog"], photo, ["", ""]) is None


def test_equal_labels_are_told_apart() -> None:
    assert shown_names(["n1", "n2", "n3"], ["crane", "crane", "maillot"]) == ("crane (n1)", "crane (n2)", "maillot")


def of_counts(confusion_KK: list[list[int]]) -> dla.Evaluation:
    """An evaluation with this confusion matrix."""
    pairs = [(i, j) for i, row in enumerate(confusion_KK) for j, count in enumerate(row) for _ in range(count)]
    targets, predicted = np.array(pairs).T
    return evaluate(np.eye(len(confusion_KK))[predicted] * 4, targets, [f"c{k}" for k in range(len(confusion_KK))])


@pytest.mark.parametrize(
    ("counts", "few"),
    [
        ([[20, 0, 1], [4, 14, 2], [2, 0, 17]], True),
        ([[900, 20, 10], [35, 1005, 30], [10, 5, 985]], False),
    ],
)
def test_the_sentence_has_the_figures_of_a_count_of_its_own(counts: list[list[int]], few: bool) -> None:
    text = sentence(of_counts(counts), ["rose", "tulip", "daisy"])
    total, right = sum(map(sum, counts)), sum(counts[k][k] for k in range(3))
    low, high = (100 * end for end in scipy.stats.binom.ppf((0.025, 0.975), total, right / total) / total)
    found = re.fullmatch(
        r"([\d,]+) of ([\d,]+) photos are classified correctly. The most common error: tulip taken for rose "
        r"\((\d+) of ([\d,]+) photos\)\. (.*)f 100 other photos like these, between (\d+) and (\d+) can be expected "
        r"to be classified correctly\.",
        text,
    )
    assert found is not None
    numbers = [int(number.replace(",", "")) for number in found.group(1, 2, 3, 4)]
    assert numbers == [right, total, counts[1][0], sum(counts[1])]
    assert found[5] == (f"{total:,} photos are few: o" if few else "O")
    assert [int(end) for end in found.group(6, 7)] == pytest.approx([low, high], abs=1)


def test_all_right_and_none_right_still_leave_room() -> None:
    """The interval has no width then: the rule of three, 3 of N photos, is what may be wrong or right."""
    assert sentence(of_counts([[30, 0], [0, 30]]), ["a", "b"]) == (
        "60 of 60 photos are classified correctly. Of 100 other photos like these, between 95 and 100 can be expected "
        "to be classified correctly."
    )
    assert sentence(of_counts([[0, 30], [0, 0]]), ["a", "b"]).endswith("between 0 and 10 can be expected to be "
                                                                       "classified correctly.")  # fmt: skip
    assert "about 100 can" in sentence(of_counts([[5000, 0], [1, 4999]]), ["a", "b"])


@pytest.mark.parametrize(
    ("counts", "never"),
    [
        ([[9, 0, 0], [4, 0, 0], [0, 0, 2]], "None of the photos of b (4) was recognized. Of"),
        ([[9, 0, 0], [2, 0, 0], [0, 1, 3]], None),
        ([[0, 5, 0], [4, 0, 0], [0, 0, 2]], "None of the photos of a (5) or b (4) was recognized."),
        (np.roll(3 * np.eye(5, dtype=int), 1, 1).tolist(), "of a (3), b (3), c (3) or 2 other classes was recognized."),
    ],
)
def test_classes_that_are_never_recognized_are_named(counts: list[list[int]], never: str | None) -> None:
    text = sentence(of_counts(counts), list("abcde")).replace(" 15 photos are few: of", " Of")
    assert never in text if never else "None of" not in text


def test_figures_of_fewer_than_five_photos_are_faded(tmp_path: Path) -> None:
    counts = [[6, 1, 0], [0, 2, 0], [2, 1, 3]]  # 7, 2 and 6 photos, of which 8, 4 and 3 are predicted as the class
    page = written(tmp_path, *evaluation_sections(of_counts(counts), ["a", "b", "c"]))
    faded = [a for tag, a in page.tags if tag == "td" and "share few" in (a.get("class") or "")]
    shares = [f"{share:.3f}" for share in (2 / 2, 2 / 4, 2 * 2 / 6, 3 / 3, 2 * 3 / 9)]
    assert sorted((a["style"] or "").removeprefix("--s:") for a in faded) == sorted(shares)
    assert sum(tag == "tr" and a.get("class") == "few" for tag, a in page.tags) == 1
    assert "Figures of fewer than five photos are faded" in page.text
    many = written(tmp_path, *evaluation_sections(of_counts([[6, 1], [0, 20]]), ["a", "b"]))
    assert "Figures of fewer" not in many.text


def test_matrix_and_table_are_one_row_of_the_page(tmp_path: Path) -> None:
    found, _, names = evaluation(5)
    text = (written(tmp_path, *evaluation_sections(found, names)), (tmp_path / "page.html").read_text())[1]
    rows = [re.findall(r"<h2>(.*?)</h2>", row) for row in text.split('<div class="row">')[1:]]
    assert rows == [["Confusions", "Classes"], ["Calibration"]]


def test_no_line_ends_between_a_number_and_its_unit_or_within_a_number_of_a_file(tmp_path: Path) -> None:
    table = Table(("name", "share"), (("55.3 % of 3 min, 4 photos/s, 5 species", Share(0.5)),))
    grid = ImageGrid((PageImage("data:image/webp;base64,", ("called rose, 55.3 %",), path="roses/12345_a-b.c&.jpg"),))
    page = written(tmp_path, Section("x", (table, grid)))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "55.3\u00a0% of 3\u00a0min, 4\u00a0photos/s, 5 species" in text
    assert "50.0\u00a0%" in text
    assert not re.search(r"\d %", text.partition("<body>")[2])
    assert "roses/<wbr>12345_<wbr>a-<wbr>b.<wbr>c&amp;.<wbr>jpg" in text
    assert "roses/12345_a-b.c&.jpg" in page.text


def test_words_are_explained_and_the_next_commands_stand_at_the_end(tmp_path: Path) -> None:
    found, _, names = evaluation(5)
    sections = Section("x", (headline(found),)), *evaluation_sections(found, names), next_steps("my runs/best")
    page = written(tmp_path, *sections)
    assert "A sentence." in page.text.partition(" x ")[0]
    assert (
        f"in nats, with p the probability of the true class: 0 is perfect, guessing gives {np.log(5):.2f}" in page.text
    )
    assert "this is the calibration error" in page.text
    assert page.text.partition("Written by dla")[0].endswith(
        "dla predict new/ --model 'my runs/best' dla export 'my runs/best' -o exported/ --to onnx "
    )


def test_each_tile_of_the_mosaic_has_its_label_below_it() -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    long = "a name that is much wider than its photo"

    def sheet(*labels: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(mosaic_png(tiles, labels))))

    found, blank = sheet("rose", "", long), sheet("", "", "")
    assert found.shape[1] == 64 + 6 + 64
    second = (found.shape[0] + 6) // 2  # the top of the second row
    for tile, (top, left) in zip(tiles, ((0, 0), (0, 70), (second, 0)), strict=True):
        assert (found[top : top + 64, left : left + 64, :3] == tile).all()
    rows, columns = np.nonzero((found != blank).any(2))
    assert 64 <= rows.min() < second - 6
    assert columns.max() < 64  # the tile at the right has no label, and the long one is shortened
    assert second + 64 <= rows[rows >= second].min()


def drawn(page: Page | None, style: str) -> list[Shape]:
    """The shapes of one style."""
    assert page is not None
    return [shape for shape in page.shapes if shape.style == style]


def texts(page: Page | None) -> list[str]:
    assert page is not None
    return [shape.text for shape in page.shapes if isinstance(shape, Text)]


def test_lines_go_through_their_points_and_skip_what_is_missing() -> None:
    series = [Series("a<", [1, 2, 3], [0.0, None, 1.0]), Series("b", [1, 2, 3], [float("nan")] * 3)]
    page = line_chart(series, "epoch")
    (line,) = drawn(page, "first")
    assert isinstance(line, Line)
    (left, bottom), (right, top) = line.points
    assert left < right
    assert top < bottom
    assert not drawn(page, "second")
    (dot,) = drawn(page, "first dot")
    assert isinstance(dot, Circle)
    assert (dot.x, dot.y) == (right, top)
    assert "a&lt;" in inline_svg(page)  # type: ignore[arg-type]
    assert line_chart([Series("a", [1], [None])], "epoch") is None
    assert drawn(line_chart([Series("a", [1], [0.5])], "epoch"), "first dot")


def test_a_logarithmic_axis_has_its_powers_of_ten_at_equal_distances() -> None:
    rates = [2e-5, 1e-4, 1e-3, 0.3]
    page = line_chart([Series("loss", rates, [3.0, 2.0, 1.0, 4.0])], "rate", log_x=True, mark=("here", 1e-3))
    (line,) = drawn(page, "first")
    (mark,) = drawn(page, "mark")
    (dot,) = drawn(page, "first dot")
    assert isinstance(line, Line)
    assert isinstance(mark, Line)
    assert isinstance(dot, Circle)
    assert (dot.x, dot.y) == line.points[2]
    xs = [x for x, _ in line.points]
    assert np.diff(xs) / np.diff(np.log10(rates)) == pytest.approx(np.full(3, (xs[2] - xs[1])))
    assert mark.points[0][0] == mark.points[1][0] == xs[2]
    assert "1e-05 0.0001 0.001 0.01 0.1 1 rate loss here" in " ".join(texts(page))


def test_the_diagram_has_a_bar_for_each_bin_with_photos() -> None:
    found, *_ = evaluation(5)
    filled = [b for b in found.calibration.bins if b.count]
    page = reliability_diagram(found.calibration)
    both = [bar for bar in page.shapes if isinstance(bar, Rect) and bar.style in ("bar", "faded bar")]
    bars = sorted(both, key=lambda bar: bar.x)
    assert [bar.style == "faded bar" for bar in bars] == [b.count < 5 for b in filled]
    for count, style in ((4, "faded bar"), (5, "bar")):
        assert len(drawn(reliability_diagram(of_counts([[count - 1, 0], [1, 0]]).calibration), style)) == 1
    (diagonal,) = drawn(page, "target")
    assert isinstance(diagonal, Line)
    (_, bottom), (_, top) = diagonal.points
    heights = [bar.height / (bottom - top) for bar in bars]
    assert heights == pytest.approx([b.accuracy for b in filled])
    counts = [bar.height for bar in drawn(page, "count") if isinstance(bar, Rect)]
    assert np.array(counts) / max(counts) == pytest.approx(
        [b.count / max(b.count for b in filled) for b in found.calibration.bins]
    )


def test_intervals_stand_where_their_values_are() -> None:
    rows = [("a<", 0.5, Interval(0.4, 0.6)), ("b", 0.6, Interval(0.5, 0.7)), ("x" * 90, 0.3, Interval(0.3, 0.3))]
    page = interval_chart(rows, zero=True)
    dots = [dot.x for dot in drawn(page, "first dot") if isinstance(dot, Circle)]
    bars = [bar for bar in drawn(page, "interval") if isinstance(bar, Rect)]
    ends = [(bar.x + bar.radius, bar.x + bar.width - bar.radius) for bar in bars]
    assert dots[0] - dots[2] == pytest.approx(2 * (dots[1] - dots[0]))
    assert ends[0] == pytest.approx((dots[0] - dots[1] + dots[0], dots[1]))
    assert ends[2] == pytest.approx((dots[2], dots[2]))
    (zero,) = drawn(page, "reference")
    assert isinstance(zero, Line)
    assert dots[2] - zero.points[0][0] == pytest.approx(3 * (dots[1] - dots[0]))
    assert texts(page)[:3] == ["a<", "b", f"...{'x' * 53}"]
    assert "a&lt;" in inline_svg(page)


def test_a_chart_has_the_colours_of_its_page(tmp_path: Path) -> None:
    """They are variables, which the page gives a light and a dark value; elsewhere the light ones hold."""
    written(tmp_path)
    light, dark = re.findall(r":root \{(.*?)\}", (tmp_path / "page.html").read_text(), re.DOTALL)
    values = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in (light, dark)]
    assert {name: values[0][name] for name in COLOURS} == COLOURS
    assert set(COLOURS) < set(values[1])
    used = {
        colour for style in STYLES.values() for colour in (style.fill, style.stroke) if colour not in (None, "none")
    }
    assert used == {f"var(--{name}, {colour})" for name, colour in COLOURS.items()}
    svg = inline_svg(reliability_diagram(evaluation(5)[0].calibration))
    assert not re.search(r' (width|height|xmlns)="', svg.partition(">")[0])  # as wide as the page lets it be


def test_the_heat_map_has_a_pixel_a_cell() -> None:
    import base64

    shares = np.array([[1, 0, 0], [0.25, 0.75, 0], [0, 1, 0]])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat_map(shares).split(",")[1]))).convert("RGBA"))
    np.testing.assert_allclose(picture[..., 3], 255 * np.sqrt(shares), atol=0.51)
    assert picture[0, 0, 2] > picture[0, 0, 0]
    assert picture[1, 0, 0] > picture[1, 0, 2]


def test_a_large_picture_is_reduced_and_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 2400, 3), np.uint8))
    page = written(tmp_path, Section("", (ImageGrid((PageImage(embedded(photo)),), wide=True),)))
    assert len(page.words) > 3
    assert (tmp_path / "page.html").stat().st_size < 900_000
    with pytest.raises(OSError, match=r"page\.html") as caught:
        write_page(tmp_path / "gone" / "page.html", Heading(""), ())
    assert caught.value.filename == str(tmp_path / "gone" / "page.html")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\nfrom dla.html_report.page import check_can_write\ncheck_can_write()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UnavailableError: a report needs jinja2: pip install '.[train]'" in done.stderr


def test_a_link_stays_and_a_pipe_is_written_into(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "r.html", tmp_path / "link.html", tmp_path / "pipe"
    link.symlink_to(target)
    write_page(link, Heading("one"), ())
    assert link.is_symlink()
    assert "one" in target.read_text()
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        write_page(pipe, Heading("two"), ())
        assert "two" in read.result(timeout=60)
    assert pipe.is_fifo()
