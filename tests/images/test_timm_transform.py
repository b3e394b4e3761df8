"""timm's road from a photo to a network's input: the same numbers in evaluation, the same chances in training."""

from __future__ import annotations

import inspect
import io
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

import dla
from dla.errors import ImageError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.images.timm_transform import Transform, create_transform, resolve_data_config
from support.oracle import timm
from support.photos import CHELSEA, ROCKET, jpeg

PHOTO = Image.open(CHELSEA).convert("RGB")
CONFIG = {
    "input_size": (3, 64, 64), "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875, "crop_mode": "center",
}  # fmt: skip


# Evaluation


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=str)
def test_the_normalised_numbers_are_timms(crop_mode: str, size: tuple[int, int]) -> None:
    config = {**CONFIG, "input_size": (3, *size), "crop_mode": crop_mode, "mean": (0.1, 0.5, 0.7), "std": (1, 0.2, 0.1)}
    found, expected = create_transform(**config)(PHOTO), timm.data.create_transform(**config)(PHOTO)
    assert found.shape == (3, *size)
    assert found.dtype == torch.float32
    one_level = 1 / 255 / torch.tensor(config["std"])[:, None, None]
    assert ((found - expected).abs() <= one_level + 1e-5).all()
    assert ((found - expected).abs() <= 1e-5).float().mean() > 0.9


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "LA", "1", "YCbCr", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    """timm takes RGB alone, so that its answer is for the photo made RGB by Pillow."""
    image = PHOTO.convert("L") if mode == "I;16" else PHOTO.convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
        expected = timm.data.create_transform(64, normalize=False)(PHOTO.convert("L").convert("RGB"))
    else:
        expected = timm.data.create_transform(64, normalize=False)(image.convert("RGB"))
    found = create_transform(64, normalize=False)(image)
    assert int((found.int() - expected.int()).abs().max()) <= 1


def test_whatever_holds_a_photo_is_taken() -> None:
    transform = create_transform(64)
    expected = transform(PHOTO)
    pixels = np.array(PHOTO)
    for photo in (CHELSEA, str(CHELSEA), CHELSEA.read_bytes(), pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert torch.equal(transform(photo), expected)
    with pytest.raises(ImageError, match="there is no such file"):
        transform("/nowhere/photo.jpg")


def test_orientation_is_ignored_as_timm_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(jpeg(PHOTO, exif=exif)))
    expected = timm.data.create_transform(64, normalize=False)(turned)
    assert int((create_transform(64, normalize=False)(turned).int() - expected.int()).abs().max()) <= 1


def test_it_is_the_one_preprocessing() -> None:
    transform = create_transform(**CONFIG)
    expected = Preprocessing(size=(64, 64), exif="ignore")
    assert transform == Transform(expected)
    assert np.array_equal(create_transform(**CONFIG, normalize=False)(PHOTO), expected.pixels(PHOTO).transpose(2, 0, 1))


# Training


def positions(width: int, height: int) -> Image.Image:
    """A photo that tells where each of its pixels was: x in red, y in green."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8))


def crops(library: Any, count: int = 1500, size: tuple[int, int] = (250, 250), **options: Any) -> np.ndarray:
    """Width, height, left and top of each random crop as shares of the photo, and whether it is mirrored."""
    random.seed(0)
    transform = library.create_transform(
        32, is_training=True, color_jitter=None, interpolation="bilinear", normalize=False, **options
    )
    image = positions(*size)
    found = []
    for _ in range(count):
        seen = transform(image).float()
        across, down = seen[0].mean(0), seen[1].mean(1)
        w, h = abs(float(across[-1] - across[0])), float(down[-1] - down[0])
        found.append(
            (w / size[0], h / size[1], min(across[0], across[-1]) / size[0], down[0] / size[1], across[0] > across[-1])
        )
    return np.array(found, float)


def test_crops_and_flips_are_distributed_as_timms() -> None:
    ours, theirs = crops(dla), crops(timm.data)
    for values in (
        lambda c: c[:, 0] * c[:, 1],
        lambda c: np.log(c[:, 0] / c[:, 1]),
        lambda c: c[:, 2],
        lambda c: c[:, 3],
    ):
        a, b = np.sort(values(ours)), np.sort(values(theirs))
        # Kolmogorov-Smirnov: at 1500 a side the distance is above 0.071 once in a thousand times
        grid = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / len(a)
        assert distance < 0.071
    assert abs(ours[:, 4].mean() - 0.5) < 4 * 0.5 / 1500**0.5


def test_scale_ratio_and_flip_are_as_asked() -> None:
    found = crops(dla, 200, scale=(0.3, 0.5), ratio=(1.0, 1.0), hflip=1.0)
    share = found[:, 0] * found[:, 1] * (32 / 31) ** 2  # from the centres of the outer pixels to their edges
    assert 0.28 < share.min() < share.max() < 0.52
    assert np.abs(found[:, 0] / found[:, 1] - 1).max() < 0.03
    assert found[:, 4].all()
    assert not crops(dla, 50, hflip=0.0)[:, 4].any()


def test_a_whole_photo_is_only_resized() -> None:
    found = create_transform(64, True, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, normalize=False)(
        positions(200, 200)
    )
    expected = torch.from_numpy(np.array(positions(200, 200).resize((64, 64), Image.Resampling.BILINEAR)))
    assert int((found.int() - expected.permute(2, 0, 1).int()).abs().max()) <= 1


def test_the_seed_is_torchs() -> None:
    transform = create_transform(**CONFIG, is_training=True)
    torch.manual_seed(5)
    one, other = transform(PHOTO), transform(PHOTO)
    torch.manual_seed(5)
    assert torch.equal(transform(PHOTO), one)
    assert not torch.equal(one, other)


class Photos(torch.utils.data.Dataset):
    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(PHOTO)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors
def test_workers_differ_and_repeat() -> None:
    transform = create_transform(16, True)
    assert pickle.loads(pickle.dumps(transform)) == transform
    batches = []
    for _ in range(2):
        torch.manual_seed(5)
        batches.append(torch.cat(list(torch.utils.data.DataLoader(Photos(transform), num_workers=2))))
    assert torch.equal(*batches)
    assert len({tuple(one.flatten().tolist()) for one in batches[0]}) == 4


def test_random_interpolation_is_one_of_two() -> None:
    options: dict[str, Any] = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0.0, "normalize": False}
    image = Image.open(ROCKET).convert("RGB").resize((200, 200))
    both = [create_transform(64, True, interpolation=name, **options)(image) for name in ("bilinear", "bicubic")]
    mixed = create_transform(64, True, interpolation="random", **options)
    seen = [[torch.equal(found, one) for one in both] for found in (mixed(image) for _ in range(30))]
    assert [True, False] in seen
    assert [False, True] in seen
    assert [False, False] not in seen


# What is not done is told


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"color_jitter": 0.4}, TypeError, "create_transform does not implement color_jitter=0.4. Leave it out"),
        ({"auto_augment": "rand-m9"}, TypeError, "create_transform does not implement auto_augment='rand-m9'"),
        ({"re_prob": 0.25}, TypeError, "create_transform does not implement re_prob=0.25"),
        ({"vflip": 0.5}, TypeError, "create_transform does not implement vflip=0.5"),
        ({"use_prefetcher": True}, TypeError, "create_transform does not implement use_prefetcher=True"),
        ({"train_crop_mode": "rkrc"}, TypeError, "create_transform does not implement train_crop_mode='rkrc'"),
        ({"colour_jitter": 0}, TypeError, "create_transform has no argument 'colour_jitter'. Nearest: color_jitter"),
        ({"xyzzy": 0}, TypeError, "create_transform has no argument 'xyzzy'."),
        (
            {"input_size": (1, 28, 28)},
            UsageError,
            "input_size is (1, 28, 28). Allowed: 3 channels, since a photo becomes",
        ),
        (
            {"scale": (1.0, 0.5)},
            UsageError,
            "scale is (1.0, 0.5). Allowed: the smaller of two numbers above 0, then the",
        ),
        ({"ratio": (0, 1)}, UsageError, "ratio is (0, 1)."),
        (
            {"interpolation": "area"},
            UsageError,
            "interpolation is one of bilinear, bicubic, nearest, lanczos, box, hamming",
        ),
        *(
            ({"interpolation": "random", "is_training": False, **other}, UsageError, "interpolation is one of")
            for other in ({}, {"input_size": (48, 64)}, {"crop_mode": "border"}, {"crop_mode": "squash"})
        ),
        ({"input_size": 0}, UsageError, "size is (height, width) in whole pixels, at least 1, not (0, 0)"),
    ],
)
def test_a_wrong_argument_is_told(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        create_transform(**{"is_training": True, **arguments})
    assert str(caught.value).startswith(message)


def test_what_is_switched_off_is_taken() -> None:
    """timm's own defaults, but for the colours, and what only says how a thing is done that is off."""
    defaults = {p.name: p.default for p in inspect.signature(timm.data.create_transform).parameters.values()}
    assert defaults.pop("color_jitter") == 0.4
    assert create_transform(**defaults) == create_transform()
    assert (
        create_transform(color_jitter=0, color_jitter_prob=0.8, auto_augment="", re_mode="pixel") == create_transform()
    )


# The data config


sizes = st.none() | st.tuples(*[st.integers(1, 9)] * 3)
channels = st.none() | st.lists(st.floats(0.1, 1), min_size=1, max_size=4)
shares = st.none() | st.sampled_from([0, 0.5, 1.0])
words = st.none() | st.sampled_from(["", "bicubic", "border"])
cfgs = st.fixed_dictionaries(
    {},
    optional={
        "input_size": sizes, "test_input_size": sizes, "crop_pct": shares, "test_crop_pct": shares, "mean": channels,
        "std": channels, "interpolation": words, "crop_mode": words, "num_classes": st.just(3),
    },
)  # fmt: skip
arguments = st.fixed_dictionaries(
    {},
    optional={
        "input_size": sizes, "img_size": st.none() | st.integers(1, 99), "in_chans": st.none() | st.integers(1, 4),
        "chans": st.none() | st.integers(1, 4), "mean": channels, "std": channels, "interpolation": words,
        "crop_pct": shares, "crop_mode": words,
    },
)  # fmt: skip


@given(arguments, cfgs, st.booleans())
def test_any_arguments_and_record(args: dict[str, Any], cfg: dict[str, Any], use_test_size: bool) -> None:
    assume(args or cfg)
    try:
        expected = timm.data.resolve_data_config(args, cfg, use_test_size=use_test_size)
    except AssertionError:
        with pytest.raises(UsageError):
            resolve_data_config(args, cfg, use_test_size=use_test_size)
        return
    found = resolve_data_config(args, cfg, use_test_size=use_test_size)
    assert found == expected
    assert list(found) == list(expected)


def test_verbose_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dla"):
        resolve_data_config({"img_size": 64})
        assert not caplog.records
        resolve_data_config({"img_size": 64}, verbose=True)
    assert caplog.messages[0].startswith("data config: {'input_size': (3, 64, 64)")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "there is nothing to take the data config from"),
        ({"input_size": 224}, "input_size is 224. Allowed: (channels, height, width)"),
        (
            {"img_size": (64, 64)},
            "img_size is (64, 64). Allowed: one whole number; input_size takes (3, height, width)",
        ),
        ({"mean": (0.1, 0.2)}, "mean is (0.1, 0.2). Allowed: one number, or one for each of 3 channels"),
    ],
)
def test_a_wrong_config_is_told(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_data_config(args)
    assert str(caught.value).startswith(message)
