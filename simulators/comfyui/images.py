"""Draws placeholder images. Their text says that no model generated them, and has the prompt and settings. No I/O.

The same recipe gives the same pixels: random colours from the seed and the prompt, with the text on a dark panel. For
img2img, the source image is blended with the drawing in the proportion `denoise`; outside of a noise mask it stays.
The text of img2img is at the bottom, so that it does not cover the text of a source from txt2img.
Pillow's own font has only ASCII, so accents are removed and other letters become escapes.
"""

from __future__ import annotations

import hashlib
import random
import textwrap
import unicodedata
from dataclasses import dataclass, replace

from PIL import Image, ImageColor, ImageDraw, ImageFont

TITLE = "ComfyUI simulator - not a Flux image"
BACKGROUND_CELLS = 5
PREVIEW_SIDE = 512
UNSAMPLED_COLOR = (128, 128, 128)
INK, PANEL = (255, 255, 255), (12, 14, 20)
PANEL_OPACITY = 0.6
TEXT_SIZES = (64, 44, 32, 24, 18, 14, 11, 8)
LINE_HEIGHT = 1.25
MAX_SHOWN_PROMPT = 3000

Loras = tuple[tuple[str, float], ...]
"""Name and strength of each LoRA."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a sampler for one image of a batch."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    denoise: float = 1.0
    loras: Loras = ()
    sampler: str = ""
    index: int = 0


@dataclass(frozen=True)
class Sketch:
    """The description of one image of a latent batch. `decoded` draws the image."""

    width: int
    height: int
    recipe: Recipe | None = None
    source: Image.Image | Sketch | None = None
    mask: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height."""
        return self.width, self.height


def decoded(sketch: Sketch) -> Image.Image:
    """Return the image that a sketch describes."""
    source = decoded(sketch.source) if isinstance(sketch.source, Sketch) else sketch.source
    if source is not None and source.size != sketch.size:
        source = source.resize(sketch.size, Image.Resampling.BICUBIC)
    if sketch.recipe is None:
        return source or Image.new("RGB", sketch.size, UNSAMPLED_COLOR)
    drawing = placeholder(sketch.recipe, sketch.size)
    if source is None:
        return drawing
    blended = Image.blend(source, drawing, sketch.recipe.denoise)
    return Image.composite(blended, source, sketch.mask.resize(sketch.size)) if sketch.mask else blended


def preview(sketch: Sketch, progress: float) -> Image.Image:
    """Return a sampler's preview after the fraction `progress` (0 to 1) of its steps, in ComfyUI's preview size."""
    scale = PREVIEW_SIDE / max(sketch.size)
    size = (max(1, round(sketch.width * scale)), max(1, round(sketch.height * scale)))
    noise = Image.effect_noise((max(1, size[0] // 8), max(1, size[1] // 8)), 90).resize(size).convert("RGB")
    return Image.blend(noise, decoded(replace(sketch, width=size[0], height=size[1])), progress)


def placeholder(recipe: Recipe, size: tuple[int, int]) -> Image.Image:
    """Return the drawing of a recipe: a background and the text."""
    image = _background(recipe, size)
    _write(image, paragraphs_of(recipe, size), at_bottom=recipe.denoise < 1)
    return image


def paragraphs_of(recipe: Recipe, size: tuple[int, int]) -> list[str]:
    """Return the paragraphs of text on a drawing, the most important ones first."""
    seed = f"seed {recipe.seed}" + (f" (image {recipe.index + 1} of its batch)" if recipe.index else "")
    settings = f"{size[0]}x{size[1]}, {recipe.steps} steps, guidance {recipe.guidance:g}"
    if recipe.denoise < 1:
        settings += f", denoise {recipe.denoise:g}"
    if recipe.sampler:
        settings += f", {recipe.sampler}"
    loras = [f"lora {name} ({strength:g})" for name, strength in recipe.loras]
    prompt = recipe.prompt[:MAX_SHOWN_PROMPT]
    return [_ascii(text) for text in (TITLE, seed, settings, *loras, prompt) if text.strip()]


def _ascii(text: str) -> str:
    r"""Return `text` in letters that Pillow's own font has: é becomes e, other letters escapes such as \u732b."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "backslashreplace").decode()


def _background(recipe: Recipe, size: tuple[int, int]) -> Image.Image:
    identity = f"{recipe.seed}/{recipe.index}/{recipe.prompt}" + "".join(f"/{lora}" for lora in recipe.loras)
    rng = random.Random(hashlib.sha256(identity.encode()).digest())  # noqa: S311  a pattern, not a secret
    hue = rng.randrange(360)
    cells = []
    for _ in range(BACKGROUND_CELLS**2):
        shade = (hue + rng.randint(-50, 50)) % 360
        cells.append(ImageColor.getrgb(f"hsl({shade}, {rng.randint(35, 75)}%, {rng.randint(22, 62)}%)"))
    cloud = Image.new("RGB", (BACKGROUND_CELLS, BACKGROUND_CELLS))
    cloud.putdata(cells)
    return cloud.resize(size, Image.Resampling.BICUBIC)


def _write(image: Image.Image, paragraphs: list[str], *, at_bottom: bool) -> None:
    """Write the paragraphs on a panel, in the largest size that fits. Text that is too long is cut off."""
    margin = max(1, min(image.size) // 64)
    width, height = (max(1, side - 4 * margin) for side in image.size)
    largest = max(TEXT_SIZES[-1], min(image.size) // 24)
    for text_size in (size for size in TEXT_SIZES if size <= largest):
        font, line_height = ImageFont.load_default(text_size), round(text_size * LINE_HEIGHT)
        columns = max(1, int(width / font.getlength("n")))
        lines = [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, columns)]
        room = max(1, height // line_height)
        if len(lines) <= room:
            break
    lines = lines if len(lines) <= room else [*lines[: room - 1], f"{lines[room - 1][:-3]}..."]
    panel_height = min(image.height - 2 * margin, 2 * margin + line_height * len(lines))
    top = image.height - margin - panel_height if at_bottom else margin
    box = (margin, top, image.width - margin, top + panel_height)
    panel = image.crop(box)
    image.paste(Image.blend(panel, Image.new("RGB", panel.size, PANEL), PANEL_OPACITY), box)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((2 * margin, top + margin + number * line_height), line, INK, font)
