"""Pictures of the answers: faces with their boxes, and a sheet of faces with all probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from auto_fernet.pictures import WRITTEN, Rect, explained, unfinished

BOX_COLOUR, TEXT_COLOUR = (33, 102, 172), (255, 255, 255)
INK, FAINT, BAR_COLOUR = (40, 40, 40), (120, 120, 120), (157, 184, 211)

MOST_FACES, COLUMNS = 60, 3
FACE, LINE, NAMES, BARS, PERCENT, GAP = 112, 16, 72, 96, 40, 16  # parts of the sheet, in pixels


def draw_answers(picture: Image.Image, answers: Sequence[tuple[Rect, str]]) -> Image.Image:
    """A copy of a picture, mode RGB, with each rectangle and its text above it."""
    drawn = picture.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for (left, top, width, height), text in answers:
        line = max(1, round(min(drawn.size) / 250))
        pen.rectangle((left, top, left + width, top + height), outline=BOX_COLOUR, width=line)
        font = ImageFont.load_default(max(10, min(round(width / 7), 48)))
        x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
        pad = max(2, line)
        wide, high = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
        # Above the box, or inside it at the picture's upper edge; never beyond the right edge.
        x = max(0, min(left, drawn.width - wide))
        y = top - high if top >= high else top
        pen.rectangle((x, y, x + wide, y + high), fill=BOX_COLOUR)
        pen.text((x + pad - x0, y + pad - y0), text, font=font, fill=TEXT_COLOUR)
    return drawn


def caption(number: int, probabilities: np.ndarray, classes: Sequence[str]) -> str:
    """The text of a face: its number, its most probable class and that probability in %."""
    return f"{number}: {classes[int(probabilities.argmax())]} {100 * probabilities.max():.0f} %"


def draw_sheet(
    faces: Sequence[tuple[np.ndarray, np.ndarray, str]], classes: Sequence[str], total: int
) -> Image.Image:
    """A sheet of faces, each uint8 (48, 48) with its probability of each class (K,) and its name.

    `total` is the number of faces of which these are the first. The most probable class is
    highlighted.
    """
    small, bold = ImageFont.load_default(12), ImageFont.load_default(15)
    columns = min(len(faces), COLUMNS)
    height = 2 * LINE + 6 + max(FACE, LINE * len(classes)) + GAP
    width = FACE + NAMES + BARS + PERCENT + 2 * GAP
    sheet = Image.new(
        "RGB", (columns * width + GAP, math.ceil(len(faces) / columns) * height + 3 * LINE), "white"
    )
    pen = ImageDraw.Draw(sheet)
    which = f"the first {len(faces)} of {total} faces" if len(faces) < total else "faces"
    pen.text((GAP, LINE), f"{which} as the network sees them", font=bold, fill=INK)
    for k, (face, p, name) in enumerate(faces):
        x, y = GAP + k % columns * width, 3 * LINE + k // columns * height
        best = int(p.argmax())
        pen.text((x, y), _shortened(name), font=small, fill=FAINT)
        pen.text((x, y + LINE), classes[best], font=bold, fill=BOX_COLOUR)
        y += 2 * LINE + 6
        large = Image.fromarray(face).resize((FACE, FACE), Image.Resampling.NEAREST)
        sheet.paste(large, (x, y))
        for c, label in enumerate(classes):
            row, left = y + c * LINE, x + FACE + 8 + NAMES
            ink = BOX_COLOUR if c == best else INK
            short = _shortened(label, 11)
            pen.text((left - 6, row + 1), short, font=small, fill=ink, anchor="ra")
            length = round(BARS * float(p[c]))
            fill = BOX_COLOUR if c == best else BAR_COLOUR
            pen.rectangle((left, row + 3, left + length, row + LINE - 3), fill=fill)
            share = f"{100 * float(p[c]):.0f} %"
            pen.text((left + length + 5, row + 1), share, font=small, fill=ink)
    return sheet


def save_drawn(image: Image.Image, path: Path) -> None:
    """Write a drawn picture, marked so that it is never read as a picture of faces."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", WRITTEN)
    part = unfinished(path)
    with explained(path, "room for a picture", "written"):
        try:
            kind = "PNG" if path.suffix == ".png" else "JPEG"
            image.save(part, kind, quality=92, comment=WRITTEN.encode(), pnginfo=info)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _shortened(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
