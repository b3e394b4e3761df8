"""Many small pictures as one."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["mosaic_png"]

GAP, WHITE = 2, 255
MOST = 64


def mosaic_png(pixels_NHW3: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Up to 64 pictures of one size as one PNG, row by row, in the shape nearest to a square."""
    n, (height, width) = min(len(pixels_NHW3), MOST), pixels_NHW3.shape[1:3]
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), WHITE, np.uint8)
    for i, picture in enumerate(pixels_NHW3[:n]):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    data = io.BytesIO()
    Image.fromarray(sheet).save(data, "PNG")
    return data.getvalue()
