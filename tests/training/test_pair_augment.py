"""Photo and mask are moved by the same map: a photo of coordinates says where each pixel of the mask is from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dla.training.pair_augment import IGNORED, random_pair
from dla.training.recipe_input import AugmentConfig

H, W = 120, 150
Y, X = np.mgrid[:H, :W].astype(np.uint8)
PHOTO = Image.fromarray(np.stack([X, Y, 0 * X], -1))


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(zoom=(0.5, 2.0)),
        AugmentConfig(zoom=(0.8, 3.0), rotate=45.0),
        AugmentConfig(rotate="quarter", flip=1.0),
    ],
    ids=["crop", "zoom", "rotate", "quarter"],
)
@pytest.mark.parametrize("seed", range(12))
def test_photo_and_mask_move_together(augment: AugmentConfig, seed: int) -> None:
    size = (40, 56)
    (photo, x_HW), (_, y_HW) = (random_pair(PHOTO, axis, size, augment, np.random.default_rng(seed)) for axis in (X, Y))
    assert photo.shape == (*size, 3)
    known = (x_HW != IGNORED) & (y_HW != IGNORED)
    # away from the border of the photo, where it is reflected
    known &= (x_HW > 3) & (x_HW < W - 4) & (y_HW > 3) & (y_HW < H - 4)
    assert known.any()
    for channel, axis_HW in ((0, x_HW), (1, y_HW)):
        difference = photo[..., channel][known].astype(int) - axis_HW[known]
        assert np.abs(difference).max() <= 2  # half a pixel to the next one, and rounding
        assert abs(difference.mean()) <= 0.6


def test_beyond_the_photo_the_mask_is_ignored_and_the_photo_reflected() -> None:
    augment = AugmentConfig(zoom=(0.5, 0.5), flip=0.0)
    photo, mask = random_pair(PHOTO, np.full((H, W), 7, np.uint8), (H, W), augment, np.random.default_rng(0))
    assert (mask == IGNORED).mean() == pytest.approx(0.75, abs=0.02)
    inside = photo[H // 4 : -H // 4, W // 4 : -W // 4]
    above = photo[: H // 4, W // 4 : -W // 4]
    assert np.abs(above[::-1].astype(int)[1:20] - inside[1:20]).max() <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3), st.floats(0, 180), st.integers(1, 40), st.integers(1, 40))
def test_no_new_ids(seed: int, zoom: float, rotate: float, height: int, width: int) -> None:
    random = np.random.default_rng(seed)
    mask_HW = random.choice(np.array([0, 3, 9], np.uint8), (height, width))
    photo = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    augment = AugmentConfig(zoom=(zoom, zoom), rotate=rotate)
    pixels, crop_HW = random_pair(photo, mask_HW, (17, 23), augment, random)
    assert pixels.shape == (17, 23, 3)
    assert set(np.unique(crop_HW)) <= {*np.unique(mask_HW), IGNORED}


def test_a_crop_without_change_is_the_photo() -> None:
    photo, mask = random_pair(PHOTO, X, (H, W), AugmentConfig(flip=0.0), np.random.default_rng(0))
    assert (photo == np.asarray(PHOTO)).all()
    assert (mask == X).all()


def test_the_centre_of_a_disc_stays_in_place() -> None:
    """Nearest sampling at pixel centres moves nothing, up or down."""
    disc_HW = ((X.astype(int) - 70) ** 2 + (Y.astype(int) - 60) ** 2 < 30**2).astype(np.uint8)
    for zoom in (1 / 3, 3.0):
        place = AugmentConfig(zoom=(zoom, zoom), flip=0.0)
        size = round(H * zoom), round(W * zoom)
        _, small_HW = random_pair(PHOTO, disc_HW, size, place, np.random.default_rng(0))
        rows, columns = np.nonzero(small_HW == 1)
        assert (columns.mean() + 0.5) / zoom == pytest.approx(70.5, abs=0.15)
        assert (rows.mean() + 0.5) / zoom == pytest.approx(60.5, abs=0.15)


def test_favoured_crops_hold_a_rare_class() -> None:
    mask_HW = np.zeros((H, W), np.uint8)
    mask_HW[10:14, 10:14] = 5
    random = np.random.default_rng(0)
    shares = []
    for favour in (0.0, 1.0):
        augment = AugmentConfig(favour=favour)
        crops = [random_pair(PHOTO, mask_HW, (40, 50), augment, random, frozenset({5}))[1] for _ in range(100)]
        shares.append(np.mean([(crop == 5).any() for crop in crops]))
    assert shares[1] > 2 * shares[0]
