"""A photo with a bar chart of its classes beneath."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from dla.records import Prediction

__all__ = ["with_bars"]

WIDTH = 480
ROW = 30
MARGIN = 12
INK, FAINT, BAR, PAPER = "#1b1f24", "#59636e", "#0969da", "#ffffff"


def with_bars(photo: Image.Image, prediction: Prediction) -> Image.Image:
    """The photo, scaled to a fixed width, and below it a bar a class, as long as its probability."""
    image = photo.convert("RGB")
    image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (WIDTH, image.height + 2 * MARGIN + ROW * len(prediction.classes)), PAPER)
    page.paste(image, (0, 0))
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
