from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dla.errors import DamagedError, UsageError
from dla.images.preprocessing import Preprocessing, crop_resize
from support.oracle import timm
from support.photos import ASTRONAUT, CHELSEA, COFFEE, ROCKET

HOPPER = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
PHOTOS = {
    str(path).rsplit("/", 1)[-1].split(".")[0]: Image.open(path).convert("RGB")
    for path in (ASTRONAUT, CHELSEA, COFFEE, ROCKET, HOPPER)
}
ODD_SIZES = [(1, 1), (1, 2000), (2000, 1), (33, 17), (17, 33), (224, 224), (256, 256), (255, 257), (3, 300), (100, 700)]
MODES = ("center", "squash", "border")
SMOOTH = ("bilinear", "hamming")
SHARPENING = ("bicubic", "lanczos")
JUMPING = ("nearest", "box")


def theirs(preprocessing: Preprocessing, image: Image.Image) -> np.ndarray:
    """The pixels of timm's own transform, before it normalises them."""
    config = {**preprocessing.to_config(), "input_size": (3, *preprocessing.size)}
    return timm.data.create_transform(**config, normalize=False)(image).permute(1, 2, 0).numpy()


def difference(preprocessing: Preprocessing, image: Image.Image) -> np.ndarray:
    ours = preprocessing.pixels(image)
    assert ours.dtype == np.uint8
    assert ours.shape == (*preprocessing.size, 3)
    return np.abs(ours.astype(int) - theirs(preprocessing, image).astype(int))


def part(size: tuple[int, int], source: str = "chelsea") -> Image.Image:
    """A real photo squeezed to `size` (width, height)."""
    return PHOTOS[source].resize(size)


# The same pixels as timm


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("interpolation", SMOOTH + SHARPENING + JUMPING)
def test_real_photos(name: str, crop_mode: Any, interpolation: Any) -> None:
    for size, crop_pct in (((224, 224), 0.875), ((96, 96), 1.0), ((160, 224), 0.9)):
        preprocessing = Preprocessing(size, crop_pct, crop_mode, interpolation)
        assert difference(preprocessing, PHOTOS[name]).max() <= 1


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("crop_mode", MODES)
def test_odd_sizes(size: tuple[int, int], crop_mode: Any) -> None:
    image = part(size)
    whole_would_be_large = max(size) > 1000 * min(size)  # timm resizes the whole photo: to 393 MB
    for target in ((64, 64), (96, 128)) if whole_would_be_large else ((224, 224), (64, 64), (96, 128)):
        preprocessing = Preprocessing(target, crop_mode=crop_mode)
        if crop_mode == "border" and max(size) > 250 * min(size):
            with pytest.raises(ValueError, match="height and width must be > 0"):
                theirs(preprocessing, image)  # it rounds a side to nothing
            assert preprocessing.pixels(image).shape == (*target, 3)
        else:
            assert difference(preprocessing, image).max() <= 1


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("crop_pct", [1.1, 2.0])
def test_a_crop_larger_than_the_photo_is_padded(crop_mode: Any, crop_pct: float) -> None:
    for target in ((224, 224), (97, 130), (33, 32)):
        preprocessing = Preprocessing(target, crop_pct, crop_mode)
        for name in PHOTOS:
            assert difference(preprocessing, PHOTOS[name]).max() <= 1


@given(
    source=st.sampled_from(sorted(PHOTOS)),
    corner=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    size=st.tuples(st.integers(1, 420), st.integers(1, 420)),
    target=st.tuples(st.integers(1, 256), st.integers(1, 256)),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0, 1.2]),
    crop_mode=st.sampled_from(MODES),
    interpolation=st.sampled_from(SMOOTH + JUMPING),
)
@example(
    source="astronaut",
    corner=(0, 20),
    size=(132, 10),
    target=(2, 189),
    crop_pct=0.95,
    crop_mode="center",
    interpolation="bilinear",
)
@settings(max_examples=120)
def test_any_size_and_setting(source: str, corner: tuple[int, int], size: tuple[int, int], **settings_: Any) -> None:
    """Pillow rounds after each of its two passes, so a value that lies between two levels twice may be 2 off."""
    preprocessing = Preprocessing(settings_.pop("target"), **settings_)
    image = PHOTOS[source].crop((*corner, corner[0] + size[0], corner[1] + size[1]))
    assume(max(size) < 30 * min(size))
    try:
        found = difference(preprocessing, image)
    except (ValueError, ZeroDivisionError):  # timm rounds a side to nothing
        assume(False)
    assert found.max() <= 2
    assert (found > 1).sum() <= max(1, found.size // 1000)


@pytest.mark.parametrize("size", [(318, 509), (118, 482), (363, 557), (400, 600), (600, 400), (40, 211)], ids=str)
@pytest.mark.parametrize("crop_mode", MODES)
def test_sharp_edges_in_tall_photos(size: tuple[int, int], crop_mode: Any) -> None:
    """Pillow clips between its two passes, so that their order shows; it depends on the sizes."""
    noise = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3), np.uint8) * 255
    for interpolation in SHARPENING:
        for target in ((224, 224), (64, 64), (212, 139)):
            found = difference(Preprocessing(target, 0.875, crop_mode, interpolation), Image.fromarray(noise))
            assert (found > 1).mean() < 1e-3
            assert found.max() <= 2


def test_one_photo_a_megapixel_long_takes_no_memory_for_what_is_cropped() -> None:
    image = Image.new("RGB", (1, 60_000), (9, 8, 7))  # resized as a whole it would have 3.9 billion pixels
    assert (Preprocessing().pixels(image) == (9, 8, 7)).all()


def test_the_photo_is_left_alone() -> None:
    image = PHOTOS["chelsea"]
    before = image.tobytes()
    Preprocessing().pixels(image)
    assert image.tobytes() == before


# The crop that training shares


def brute_force(pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Triangle filter with antialiasing, written from its definition: one axis after the other, in float64."""

    def weights(start: float, stop: float, count: int, length: int) -> np.ndarray:
        step = (stop - start) / count
        centres = start + (np.arange(count) + 0.5) * step
        reach = np.abs(np.arange(length)[None] + 0.5 - centres[:, None]) / max(step, 1.0)
        triangle = np.maximum(0.0, 1 - reach)
        return triangle / triangle.sum(1, keepdims=True)

    across = weights(box[0], box[2], size[1], pixels.shape[1])
    down = weights(box[1], box[3], size[0], pixels.shape[0])
    return np.stack([down @ pixels[:, :, c].astype(np.float64) @ across.T for c in range(3)], 2)


@given(st.tuples(*[st.floats(0, 1)] * 4), st.tuples(st.integers(1, 70), st.integers(1, 70)), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_crop_resize_is_the_definition(corners: tuple[float, ...], size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (37, 53, 3), np.uint8)
    (left, right), (top, bottom) = (sorted(corners[i::2]) for i in (0, 1))
    box = (left * 53, top * 37, right * 53, bottom * 37)
    assume(box[2] - box[0] > 0.5 and box[3] - box[1] > 0.5)
    found = crop_resize(Image.fromarray(pixels), box, size, "bilinear")
    assert found.shape == (*size, 3)
    assert np.abs(found - brute_force(pixels, box, size)).max() <= 1.01  # two roundings of half a level


def test_a_crop_of_whole_pixels_is_a_copy() -> None:
    image = PHOTOS["coffee"]
    for interpolation in SMOOTH + SHARPENING + JUMPING:
        found = crop_resize(image, (10, 20, 74, 52), (32, 64), interpolation)
        assert np.array_equal(found, np.asarray(image)[20:52, 10:74])
        assert found.flags.writeable


# Numbers and settings


def test_scale_and_shift_are_timms_normalisation() -> None:
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    image = PHOTOS["chelsea"]
    expected = timm.data.create_transform(**preprocessing.to_config())(image).permute(1, 2, 0).numpy()
    scale, shift = preprocessing.scale_shift()
    assert scale.dtype == shift.dtype == np.float32
    one_level = (1 / 255 / np.array(preprocessing.std)).max()
    found = preprocessing.pixels(image) * scale + shift
    assert np.abs(found - expected).max() <= one_level + 1e-5
    same = preprocessing.pixels(image) == theirs(preprocessing, image)
    assert same.mean() > 0.9
    assert np.abs(found - expected)[same].max() <= 1e-5


@pytest.mark.parametrize("name", ["dla34", "dla60_res2net", "efficientnet_b0", "vit_base_patch16_224", "resnet50"])
def test_timms_configurations_are_read_as_timm_reads_them(name: str) -> None:
    config = timm.get_pretrained_cfg(name).to_dict()
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=config)
    found = Preprocessing.from_config(config).to_config()
    assert found == {**resolved, "mean": tuple(resolved["mean"]), "std": tuple(resolved["std"])}


def test_missing_fields_are_timms_defaults() -> None:
    for config in ({}, {"input_size": None, "mean": None, "crop_pct": 0, "interpolation": "", "crop_mode": None}):
        expected = timm.data.resolve_data_config({}, pretrained_cfg={"no": "such", **config})
        assert Preprocessing.from_config(config).to_config() == expected


def test_settings_survive_a_config_file() -> None:
    preprocessing = Preprocessing((96, 64), 0.9, "border", "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "ignore")
    read = json.loads(json.dumps(preprocessing.to_config()))
    assert Preprocessing.from_config(read, exif="ignore") == preprocessing
    assert Preprocessing.from_config(read) == dataclasses.replace(preprocessing, exif="apply")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_size": 224}, "pretrained_cfg: input_size is 3, height, width, not 224"),
        ({"input_size": [1, 28, 28]}, r"input_size is 3, height, width, not \[1, 28, 28\]"),
        ({"input_size": [3, "224", 224]}, r"pretrained_cfg: size is \(height, width\).*'224'"),
        ({"input_size": [3, -4, 224]}, "size"),
        ({"crop_pct": "0.9"}, "pretrained_cfg: crop_pct is .* not '0.9'"),
        ({"crop_mode": "middle"}, "pretrained_cfg: crop_mode is one of center, squash, border, not 'middle'"),
        ({"crop_mode": ["center"]}, r"crop_mode .* not \['center'\]"),
        ({"interpolation": "random"}, "interpolation is one of bilinear, bicubic, .* not 'random'"),
        ({"mean": [0.5]}, r"mean is three numbers of at most 1,000,000, one per colour, not \[0.5\]"),
        ({"mean": [0.5, None, 0.5]}, "mean"),
        ({"mean": {"r": 1}}, "mean"),
        ({"std": [0.5, 0.5, 0]}, "std is three numbers from 1e-06 to 1,000,000"),
        ({"std": [1, 1, 10**400]}, "std is three numbers from 1e-06 to 1,000,000"),
        ({"std": [1e-320, 1, 1]}, "std is three numbers from"),
        ({"mean": [1e308, 0, 0]}, "mean is three numbers of at most 1,000,000"),
        ({"mean": [math.nan, 0, 0]}, "mean is three numbers of at most 1,000,000"),
        ({"crop_pct": 10**400}, "crop_pct is the share"),
        ({"crop_pct": 1e-300}, "crop_pct is the share"),
        ({"std": 1}, "std"),
    ],
)
def test_a_damaged_config_is_told_by_its_field(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        Preprocessing.from_config(config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 224)}, {"size": (224,)}, {"size": 224}, {"size": (224.0, 224)}, {"size": (True, True)},
        {"crop_pct": 0}, {"crop_pct": float("nan")}, {"crop_pct": None}, {"crop_mode": "centre"}, {"exif": "maybe"},
        {"interpolation": "BILINEAR"}, {"mean": (0.5, 0.5)}, {"std": (1, 1, -1)}, {"mean": (0, 0, float("inf"))},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_told_by_their_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^{next(iter(wrong))} is .*, not .*"):
        Preprocessing(**wrong)


def test_it_is_one_frozen_value() -> None:
    preprocessing = Preprocessing(size=[64, 96])  # type: ignore[arg-type]
    assert preprocessing.size == (64, 96)
    assert len({preprocessing, Preprocessing((64, 96)), copy.deepcopy(preprocessing)}) == 1
    assert pickle.loads(pickle.dumps(preprocessing)) == preprocessing
    with pytest.raises(dataclasses.FrozenInstanceError):
        preprocessing.crop_pct = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"])
@pytest.mark.parametrize("size", [(3, 70_000), (70_000, 5)])
def test_of_a_long_photo_only_what_the_crop_keeps_is_resized(interpolation: str, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), np.uint8))
    found = Preprocessing(size=(8, 8), crop_pct=1.0, interpolation=interpolation).pixels(image).astype(int)
    filter_ = Image.Resampling[interpolation.upper()]
    short = min(size)
    resized = tuple(int(8 * side / short) for side in size)
    whole = np.asarray(image.resize(resized, filter_))  # all of it, as torchvision and timm do it
    top, left = (round((whole.shape[axis] - 8) / 2) for axis in (0, 1))
    wanted = whole[top : top + 8, left : left + 8].astype(int)
    assert np.abs(found - wanted).max() <= (
        1 if interpolation not in ("nearest", "box") else 255 * (found != wanted).mean()
    )


def test_a_very_long_photo_takes_little_memory() -> None:
    code = (
        "import resource, sys; from PIL import Image; from dla.images.preprocessing import Preprocessing\n"
        "image = Image.new('RGB', (1, 3_000_000), 'red')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "for name in ('bilinear', 'bicubic', 'nearest', 'box', 'lanczos'):\n"
        "    pixels = Preprocessing(interpolation=name).pixels(image)\n"
        "    assert pixels.shape == (224, 224, 3) and (pixels == [255, 0, 0]).all()\n"
    )
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.0, 1.25])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("photo", [(250, 90), (90, 250), (64, 64), (251, 199)])
def test_the_seen_box_is_where_the_pixels_come_from(photo: tuple[int, int], mode: Any, crop_pct: float) -> None:
    width, height = photo
    x_HW, y_HW = np.meshgrid(np.arange(width), np.arange(height))
    coordinates = Image.fromarray(np.stack([x_HW, y_HW, np.full_like(x_HW, 255)], -1).astype(np.uint8))
    preprocessing = Preprocessing((32, 48), crop_pct, mode, "bilinear", mean=(0, 0, 0))
    pixels = preprocessing.pixels(coordinates).astype(float)
    left, top, right, bottom = preprocessing.seen_box(photo)
    inside = pixels[:, :, 2] > 250  # and no padding
    x_W = left + (np.arange(48) + 0.5) * (right - left) / 48 - 0.5
    y_H = top + (np.arange(32) + 0.5) * (bottom - top) / 32 - 0.5
    tolerance = 1.5 + max((right - left) / 48, (bottom - top) / 32)  # of the borders, where the filter is cut off
    assert inside.any()
    assert np.abs(pixels[:, :, 0] - x_W)[inside].max() < tolerance
    assert np.abs(pixels[:, :, 1] - y_H[:, None])[inside].max() < tolerance
    outside = (x_W < -1) | (x_W > width)
    assert not inside[:, outside].any()
