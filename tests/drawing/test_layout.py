"""Pictures of networks: everything is there once, nothing hides anything else, and the file is what it says."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image, ImageFont
from torch import nn

from dla.drawing.layout import STYLES, lay_out
from dla.drawing.network import describe
from dla.drawing.shapes import Circle, Line, Page, Rect, Style, Text, inline_svg, to_png, to_svg, writer_of
from dla.errors import UsageError
from dla.models.aggregation import HDA, graft
from dla.models.build import build
from dla.models.decoder import DLAUp
from support.tiny import LEVELS, tiny

# dla.md 1.1
DEPTHS = {
    "dla34": (1, 1, 1, 2, 2, 1),
    "dla46_c": (1, 1, 1, 2, 2, 1),
    "dla46x_c": (1, 1, 1, 2, 2, 1),
    "dla60x_c": (1, 1, 1, 2, 3, 1),
    "dla60": (1, 1, 1, 2, 3, 1),
    "dla60x": (1, 1, 1, 2, 3, 1),
    "dla102": (1, 1, 1, 3, 4, 1),
    "dla102x": (1, 1, 1, 3, 4, 1),
    "dla102x2": (1, 1, 1, 3, 4, 1),
    "dla169": (1, 1, 2, 3, 5, 1),
    "dla60_res2net": (1, 1, 1, 2, 3, 1),
    "dla60_res2next": (1, 1, 1, 2, 3, 1),
}
SHAPES = ("dla34", "dla60", "dla102", "dla169")  # every shape of tree there is
SVG = "{http://www.w3.org/2000/svg}"
BOXES = ("conv", "block", "map", "pool")
WIRES = ("path", "takes", "pooled", "up")

Box = tuple[float, float, float, float]


def tree(level: int, depth: int, before: str) -> Iterator[tuple[str, list[str]]]:
    """Each part of a level with what it takes, by the closed form of the trees: 2^n blocks, 2^(n-1) nodes, of which
    the j-th takes 2 + (trailing ones of j) maps, the last one also the pooled input."""
    pooled, names = f"level{level}.downsample", list[str]()
    count = 2 ** (depth - 1)
    for j in range(count):
        turns = (".tree2" if j >> bit & 1 else ".tree1" for bit in reversed(range(depth - 1)))
        path = f"level{level}" + "".join(turns)
        ones = (~j & (j + 1)).bit_length() - 1
        last = level > 2 and j == count - 1
        if last:
            yield pooled, [before]
        yield f"{path}.tree1", [names[-1] if names else before]
        yield f"{path}.tree2", [f"{path}.tree1"]
        names.append(path.removesuffix(".tree2" * min(ones, depth - 1)))
        yield names[-1], [f"{path}.tree2", f"{path}.tree1", *[pooled] * last, *(names[j - 2**k] for k in range(ones))]


def network(depths: tuple[int, ...]) -> dict[str, list[str]]:
    """Each part of a network with what it takes."""
    convs = ["base_layer.0", *(f"level{level}.{3 * k}" for level in (0, 1) for k in range(depths[level]))]
    parts = {convs[0]: list[str]()} | {b: [a] for a, b in pairwise(convs)}
    for level, depth in enumerate(depths[2:], start=2):
        parts |= dict(tree(level, depth, [*parts][-1]))
    return parts | {"fc": [[*parts][-1]]}


def seen(svg: str) -> tuple[Counter[str], Counter[str], dict[str, tuple[float, float]]]:
    """What an SVG has: boxes and circles, lines, and where the circles are."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    parts, lines, nodes = Counter[str](), Counter[str](), dict[str, tuple[float, float]]()
    for element in root.iter():
        title = element.findtext(f"{SVG}title")
        if title is None:
            continue
        if element.tag == f"{SVG}polyline":
            lines[title] += 1
        else:
            parts[title.partition(":")[0]] += 1
            if element.tag == f"{SVG}circle":
                nodes[title.partition(":")[0]] = float(element.attrib["cx"]), float(element.attrib["cy"])
    return parts, lines, nodes


def page_of(model: str | nn.Module) -> Page:
    if isinstance(model, nn.Module):
        return lay_out(describe(model))
    with torch.device("meta"):
        return lay_out(describe(build(model)))


@pytest.mark.parametrize("name", DEPTHS)
def test_every_part_and_what_it_takes_is_there_once(name: str) -> None:
    parts, lines, _ = seen(to_svg(page_of(name)))
    expected = network(DEPTHS[name])
    assert parts == Counter(dict.fromkeys(expected, 1))
    assert lines == Counter(f"{taken} to {part}" for part, takes in expected.items() for taken in takes)


@pytest.mark.parametrize("name", SHAPES)
def test_a_node_is_as_high_as_its_tree_is_deep_and_says_how_many_maps_it_joins(name: str) -> None:
    page = page_of(name)
    _, _, nodes = seen(to_svg(page))
    expected = network(DEPTHS[name])
    numbers = {(text.x, text.y): text.text for text in page.shapes if isinstance(text, Text) and text.style == "number"}
    circles = [c for c in page.shapes if isinstance(c, Circle) and c.hint]
    assert len(circles) == sum(2 ** (depth - 1) for depth in DEPTHS[name][2:])
    rows = dict[int, float]()
    for circle in circles:
        node = circle.hint.partition(":")[0]
        takes = expected[node]
        depth = 1 + sum(taken in nodes for taken in takes)
        assert rows.setdefault(depth, circle.y) == circle.y
        assert numbers[circle.x, circle.y + 3.8] == str(len(takes))
        assert all(nodes[taken][0] < circle.x and nodes[taken][1] > circle.y for taken in takes if taken in nodes)
    assert [*rows] == sorted(rows)
    assert sorted(rows.values(), reverse=True) == [rows[depth] for depth in sorted(rows)]


def test_what_stands_beneath_the_levels_is_the_network() -> None:
    texts = [shape.text for shape in page_of("dla34").shapes if isinstance(shape, Text)]
    assert "15.7 M parameters, 3.06 GMACs at 224x224" in texts
    facts = texts[texts.index("stem") :]
    widths, strides = (16, 16, 32, 64, 128, 256, 512), (1, 1, 2, 4, 8, 16, 32)
    names = ["stem", *(f"level {level}" for level in range(6))]
    expected = [
        line for n, c, s in zip(names, widths, strides, strict=True) for line in (n, f"{c} channels", f"stride {s}")
    ]
    assert facts[: len(expected) + 2] == [*expected, "classifier", "1000 classes"]


def test_a_network_of_ones_own() -> None:
    model = tiny("bottleneck", output_stride=16, num_classes=0)
    parts, lines, _ = seen(to_svg(page_of(model)))
    expected = network(LEVELS)
    del expected["fc"]
    assert parts == Counter(dict.fromkeys(expected, 1))
    assert sum(lines.values()) == sum(map(len, expected.values()))
    texts = [shape.text for shape in page_of(model).shapes if isinstance(shape, Text)]
    assert texts.count("stride 16") == 2
    assert "block (Bottleneck)" in texts


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_a_decoder(levels: int) -> None:
    """dla.md 2.1: S_m := y_m = N(y_(m-1), S_m up-sampled), for j from the second coarsest map to the finest."""
    channels = (4, 8, 16, 24, 32)[-levels:]
    model = DLAUp(channels, (2, 4, 8, 16, 32)[:levels])
    parts, lines, nodes = seen(to_svg(page_of(model)))
    s = {m: f"map {m}" for m in range(levels)}
    expected = Counter[str]()
    for i in range(levels - 1):
        j = levels - 2 - i
        for m in range(j + 1, levels):
            node = f"ida_{i}.node_{m - j}"
            expected += Counter([f"{s[m - 1]} to {node}", f"{s[m]} to {node}"])
            s[m] = node
    expected[f"{s[levels - 1]} to output"] += 1
    assert lines == expected
    convolutions = {name for name, _ in model.named_modules() if ".node_" in name and name.count(".") == 1}
    assert set(nodes) == convolutions
    assert parts == Counter([*convolutions, *(f"map {m}" for m in range(levels)), "output"])


def test_a_decoder_over_a_network() -> None:
    page = page_of(DLAUp.over(tiny()))
    texts = [shape.text for shape in page.shapes if isinstance(shape, Text)]
    assert texts[texts.index("output") :][:3] == ["output", "8 channels", "stride 1"]
    assert any("of them in the decoder" in text for text in texts)


def takings(blocks: list[int], kept: tuple[str, ...], nodes: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """T(B_1 ... B_m) with what its last node also takes: each node of a stage, and what it takes."""
    if len(blocks) <= 2:
        yield next(nodes), [*map(str, reversed(blocks)), *kept]
        return
    p = max(2**k for k in range(8) if 2**k < len(blocks))
    left = list(takings(blocks[:p], (), nodes))
    yield from left
    yield from takings(blocks[p:], (*kept, left[-1][0]), nodes)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 13])
def test_a_stage_of_any_blocks(count: int) -> None:
    _, lines, nodes = seen(to_svg(page_of(HDA([nn.Identity()] * count, 4))))
    expected = dict(takings([*range(count)], (), (f"nodes.{i}" for i in range(99))))
    joined = Counter(f"{taken} to {node}" for node, takes in expected.items() for taken in takes)
    # a block takes what runs before it: the last node, where one has just run
    blocks = [takes[::-1] for takes in ([t for t in takes if t.isdigit()] for takes in expected.values())]
    order = [part for node, own in zip(expected, blocks, strict=True) for part in (*own, node)]
    assert lines == joined + Counter(f"{a} to {b}" for a, b in pairwise(order) if b.isdigit())
    assert set(nodes) == set(expected)
    for node, takes in expected.items():
        assert all(nodes[taken][1] > nodes[node][1] for taken in takes if taken in nodes)


def grafted() -> nn.Module:
    """Stages of 13 and 6 blocks, with something between them."""
    stages = [nn.Sequential(nn.Conv2d(3, 4, 1), *(nn.Conv2d(4, 4, 1) for _ in range(n - 1))) for n in (13, 6)]
    model = nn.Sequential(stages[0], nn.Conv2d(4, 3, 1), stages[1])
    return graft(model, ["0", "2"])


def test_a_graft() -> None:
    parts, lines, nodes = seen(to_svg(page_of(grafted())))
    assert set(nodes) == {*(f"0.nodes.{i}" for i in range(7)), *(f"2.nodes.{i}" for i in range(3))}
    assert parts == Counter([*nodes, *(f"0.{i}" for i in range(13)), *(f"2.{i}" for i in range(6))])
    assert lines["0.nodes.6 to 2.0"] == 1


def box_of(text: Text) -> Box:
    """Where a text may be, whatever font it is set in."""
    style = STYLES[text.style]
    assert style.font_size
    width = (0.7 if style.font_weight else 0.58) * style.font_size * len(text.text)
    left = text.x - {None: 0.0, "start": 0.0, "middle": 0.5, "end": 1.0}[style.text_anchor] * width
    return left, text.y - 0.8 * style.font_size, left + width, text.y + 0.25 * style.font_size


def boxes(page: Page) -> dict[str, Box]:
    """The boxes and circles of a network by name."""
    found = dict[str, Box]()
    for shape in page.shapes:
        if isinstance(shape, Rect) and shape.style in BOXES and shape.hint:
            found[shape.hint.partition(":")[0]] = (
                shape.x, shape.y, shape.x + shape.width, shape.y + shape.height,
            )  # fmt: skip
        elif isinstance(shape, Circle) and shape.hint:
            x, y, r = shape.x, shape.y, shape.radius
            found[shape.hint.partition(":")[0]] = x - r, y - r, x + r, y + r
    return found


def overlap(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


PICTURES = [*SHAPES, "dla34_half", "decoder", "graft"]


def picture(name: str) -> Page:
    if name == "decoder":
        return page_of(DLAUp((64, 128, 256, 512, 1024), (2, 4, 8, 16, 32)))
    return page_of(grafted() if name == "graft" else name)


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_overlaps(name: str) -> None:
    page = picture(name)
    texts = [shape for shape in page.shapes if isinstance(shape, Text)]
    words = [box_of(text) for text in texts if text.style not in ("inside", "number")]
    parts = boxes(page)
    for a, b in combinations([*words, *parts.values()], 2):
        assert not overlap(a, b)
    for x, y, right, bottom in [*words, *parts.values()]:
        assert min(x, y) > 0
        assert right < page.width
        assert bottom < page.height
    for text in texts:
        if text.style in ("inside", "number"):
            x, y, right, bottom = box_of(text)
            assert any(px <= x and py <= y and right <= pr and bottom <= pb for px, py, pr, pb in parts.values())


@pytest.mark.parametrize("name", PICTURES)
def test_no_word_is_wider_than_its_place(name: str) -> None:
    for text in picture(name).shapes:
        if isinstance(text, Text):
            left, _, right, _ = box_of(text)
            assert ImageFont.load_default(STYLES[text.style].font_size).getlength(text.text) <= right - left


@pytest.mark.parametrize("name", PICTURES)
def test_no_line_crosses_a_box_or_a_line_that_it_does_not_belong_to(name: str) -> None:
    page = picture(name)
    parts = boxes(page)
    lines = [line for line in page.shapes if isinstance(line, Line) and line.style in WIRES and line.hint]
    for line in lines:
        others = [box for part, box in parts.items() if part not in line.hint.split(" to ")]
        for (ax, ay), (bx, by) in pairwise(line.points):
            steps = math.ceil(math.dist((ax, ay), (bx, by)))
            for step in range(steps + 1):
                x, y = ax + (bx - ax) * step / max(steps, 1), ay + (by - ay) * step / max(steps, 1)
                assert not [box for box in others if box[0] < x < box[2] and box[1] < y < box[3]], line.hint
    for a, b in combinations(lines, 2):
        if not set(a.hint.split(" to ")) & set(b.hint.split(" to ")):
            for one in pairwise(a.points):
                assert not any(crosses(*one, *other) for other in pairwise(b.points)), (a.hint, b.hint)


Point = tuple[float, float]


def crosses(a: Point, b: Point, c: Point, d: Point) -> bool:
    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    near = all(max(min(a[i], b[i]), min(c[i], d[i])) <= min(max(a[i], b[i]), max(c[i], d[i])) for i in (0, 1))
    return near and side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) * side(c, d, b) <= 0


def test_equal_networks_are_equal_files() -> None:
    torch.manual_seed(1)
    first = page_of("dla60")
    torch.manual_seed(2)
    second = page_of("dla60")
    assert to_svg(first) == to_svg(second)
    assert to_png(first) == to_png(second)
    assert len(to_svg(page_of("dla169")).encode()) < 50_000


def test_the_png_is_the_same_picture_twice_as_large() -> None:
    page = page_of("dla34")
    image = Image.open(io.BytesIO(to_png(page)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (2 * page.width, 2 * page.height))
    for shape in page.shapes:
        if isinstance(shape, Rect) and shape.style in ("conv", "block"):
            at = 2 * (shape.x + shape.width / 2), 2 * (shape.y + shape.height / 2)
            assert "#{:02x}{:02x}{:02x}".format(*image.getpixel(tuple(map(round, at)))) == STYLES[shape.style].fill
        if isinstance(shape, Circle):
            at = 2 * shape.x, 2 * (shape.y - shape.radius)
            assert "#{:02x}{:02x}{:02x}".format(*image.getpixel(tuple(map(round, at)))) == STYLES["node"].stroke


def test_dashes_and_the_colours_of_a_page() -> None:
    styles = {"dashed": Style(stroke="var(--ink, #102030)", stroke_width=2, stroke_dasharray="6 4")}
    page = Page("a <line>", 100, 20, styles, (Line("dashed", ((0, 10), (95, 10)), "<hint>"),))
    row = [Image.open(io.BytesIO(to_png(page))).getpixel((2 * x + 1, 20)) for x in range(100)]
    inked = [x for x, pixel in enumerate(row) if pixel == (0x10, 0x20, 0x30)]
    assert inked == [x for x in range(95) if x % 10 < 6]
    whole, (width, height) = ElementTree.fromstring(to_svg(page)), ("100", "20")
    assert (whole.attrib["width"], whole.attrib["height"], whole.attrib["viewBox"]) == (width, height, "0 0 100 20")
    part = ElementTree.fromstring(inline_svg(page))
    assert part.tag == "svg"  # without a namespace, as HTML has it
    assert part.attrib["aria-label"] == "a <line>"
    assert {"width", "height"}.isdisjoint(part.attrib)
    (group,) = part
    assert group.attrib == {
        "fill": "none", "stroke": "var(--ink, #102030)", "stroke-width": "2", "stroke-dasharray": "6 4",
    }  # fmt: skip
    assert group.findtext("polyline/title") == "<hint>"


def test_only_pictures_are_drawn() -> None:
    assert writer_of("a/TREE.SVG")(page_of("dla34")).startswith(b"<svg ")
    with pytest.raises(UsageError, match=r"--output is tree.pdf. Allowed: a file that ends in .svg or .png"):
        writer_of("tree.pdf")
    with pytest.raises(UsageError, match=r"a Linear has no aggregation to draw. Allowed: a DLA"):
        describe(nn.Linear(1, 1))
