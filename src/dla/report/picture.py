"""A photo with a bar chart of its classes beneath."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from dla.records import Prediction

__all__ = ["reduced", "with_bars"]

WIDTH, MOST_HEIGHT = 480, 960
ROW = 30
MARGIN = 12
INK, FAINT, BAR, PAPER = "#1b1f24", "#59636e", "#0969da", "#ffffff"


def reduced(photo: Image.Image) -> Image.Image:
    """The photo as large as `with_bars` shows it, which needs no more of it: RGB."""
    scale = min(WIDTH / photo.width, MOST_HEIGHT / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    return photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def with_bars(photo: Image.Image, prediction: Prediction) -> Image.Image:
    """The photo, scaled to a fixed width, and below it a bar a class, as long as its probability."""
    image = reduced(photo)
    page = Image.new("RGB", (WIDTH, image.height + 2 * MARGIN + ROW * len(prediction.classes)), PAPER)
    page.paste(image, ((WIDTH - image.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for i, c in enumerate(prediction.classes):
        top = image.height + MARGIN + i * ROW
        draw.text((MARGIN, top), c.label, fill=INK, font=font)
        draw.text((WIDTH - MARGIN, top), f"{100 * c.probability:.1f} %", fill=FAINT, font=font, anchor="ra")
        line = (MARGIN, top + 21, WIDTH - MARGIN, top + 24)
        draw.rounded_rectangle(line, 2, fill="#eaeef2")
        length = (line[2] - line[0]) * c.probability
        draw.rounded_rectangle((line[0], line[1], line[0] + max(3, length), line[3]), 2, fill=BAR)
    return page
