"""Draws pictures with text, as scanners and cameras give them."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
_INVOICE = ("Invoice No. 20418", "Total amount due: 117.30", "VAT 23 % included", "Please pay by Friday")
_RULES = (
    "Keep out of reach of children.",
    "Best before 06/27, batch A7-0094.",
    "Store below 25 degrees.",
    "Net weight 250 g",
    "Made in Portugal",
    "Handle with care",
    "Fragile: glass",
    "This side up",
)


def pictures() -> dict[str, npt.NDArray[np.uint8]]:
    """Return pictures by name: UINT8 [height, width, 3], blue, green, red."""
    invoice = _draw(_INVOICE, 28, "DejaVuSans.ttf")
    rules = _draw(_RULES, 22, "DejaVuSerif-Bold.ttf", ink="navy", paper="ivory")
    strip = _draw(("Platform 9, 14:25 to Porto, calls at Aveiro and Coimbra",), 20, "DejaVuSans.ttf", margin=4)
    drawn = {
        "invoice": invoice,
        "upside down": invoice.rotate(180, expand=True),
        "askew": rules.rotate(8, expand=True, fillcolor="ivory"),
        "on its side": rules.rotate(90, expand=True),
        "a strip": strip,
        "small": _draw(("Gate 7",), 12, "DejaVuSansMono.ttf", margin=3),
        "large": invoice.resize((2600, round(2600 * invoice.height / invoice.width))),
        "nothing": Image.new("RGB", (300, 200), "white"),
        "a portrait": Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB"),
    }
    return {name: _pixels(image) for name, image in drawn.items()}


def _draw(
    lines: tuple[str, ...], size: int, font: str, ink: str = "black", paper: str = "white", margin: int = 30
) -> Image.Image:
    face = ImageFont.truetype(_FONTS / font, size)
    width = round(max(face.getlength(line) for line in lines)) + 2 * margin
    image = Image.new("RGB", (width, 2 * size * len(lines) - size + 2 * margin), paper)
    canvas = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        canvas.text((margin, margin + 2 * size * number), line, ink, face)
    return image


def _pixels(image: Image.Image) -> Any:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
