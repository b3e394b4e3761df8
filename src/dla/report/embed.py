"""Pictures inside a page: small, as data: URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["embedded", "heat_map", "thumbnail"]

Array = np.ndarray[Any, np.dtype[Any]]

THUMBNAIL = 160
RIGHT, WRONG = (47, 129, 247), (235, 72, 66)  # seen on white and on black


def thumbnail(photo: Image.Image) -> str:
    """The middle square of a photo, `THUMBNAIL` pixels a side at most."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.convert("RGB").crop((left, top, left + side, top + side))
    square.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return embedded(square)


def embedded(picture: Image.Image, most: int = 1000, **options: Any) -> str:
    """A picture as WebP, at most `most` pixels wide."""
    if picture.width > most:
        picture = picture.resize((most, max(1, round(picture.height * most / picture.width))), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", **{"quality": 72, "method": 4, **options})
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def heat_map(shares_KK: Array) -> str:
    """A pixel a cell, the stronger the larger its share of 0 to 1; the diagonal in another colour. Nothing is clear
    through, so that it suits light and dark."""
    rgba = np.zeros((*shares_KK.shape, 4), np.uint8)
    rgba[..., :3] = WRONG
    diagonal = np.arange(min(shares_KK.shape))
    rgba[diagonal, diagonal, :3] = RIGHT
    # the root lifts the many small cells, which are what the picture is for
    rgba[..., 3] = np.round(255 * np.sqrt(np.clip(shares_KK, 0, 1)))
    return embedded(Image.fromarray(rgba, "RGBA"), most=10_000, lossless=True)
