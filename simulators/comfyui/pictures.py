"""Honest placeholders: pictures that say themselves that no model drew them, and what was asked.

The same recipe gives the same pixels. The backdrop is a soft cloud of colours drawn from the seed and the prompt; on it
stands the text. img2img blends the given picture with the drawing by denoise. Pillow's own font knows ASCII only, so
accents are dropped and other letters stand as escapes. No I/O here.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageColor, ImageDraw, ImageFont

TITLE = "ComfyUI simulator \N{EN DASH} not a Flux picture"
CLOUD_CELLS = 5
PREVIEW_SIDE = 512
UNSAMPLED = (128, 128, 128)
INK, PANEL = (255, 255, 255), (12, 14, 20)
PANEL_OPACITY = 0.6
SMALLEST_TEXT, LARGEST_TEXT = 8, 64
LONGEST_PROMPT_SHOWN = 3000
_PLAIN = str.maketrans(
    {
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    }
)
"""What people paste, and Pillow's own font lacks."""


@dataclass(frozen=True)
class Recipe:
    """What a sampler was asked to make of one picture of a batch."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    denoise: float = 1.0
    loras: tuple[tuple[str, float], ...] = ()
    sampler: str = ""
    index: int = 0


@dataclass(frozen=True)
class Sketch:
    """One picture of a latent batch; it is drawn when it is decoded."""

    width: int
    height: int
    recipe: Recipe | None = None
    source: Image.Image | Sketch | None = None
    mask: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height."""
        return self.width, self.height

    def resized(self, width: int, height: int) -> Sketch:
        """Return the same picture at another size."""
        return Sketch(width, height, source=self)


def drawn(sketch: Sketch) -> Image.Image:
    """Return the picture of a sketch."""
    source = _source(sketch)
    if sketch.recipe is None:
        return source or Image.new("RGB", sketch.size, UNSAMPLED)
    drawing = placeholder(sketch.recipe, sketch.size)
    if source is None:
        return drawing
    picture = Image.blend(source, drawing, sketch.recipe.denoise)
    if sketch.mask is None:
        return picture
    return Image.composite(picture, source, sketch.mask.resize(sketch.size, Image.Resampling.BILINEAR))


def preview(sketch: Sketch, done: float) -> Image.Image:
    """Return what a sampler shows when a part `done` (0 to 1) of its steps is over, as large as ComfyUI makes it."""
    scale = PREVIEW_SIDE / max(sketch.size)
    size = (max(1, round(sketch.width * scale)), max(1, round(sketch.height * scale)))
    noise = Image.effect_noise((max(1, size[0] // 8), max(1, size[1] // 8)), 90).resize(size).convert("RGB")
    return Image.blend(noise, drawn(replace(sketch, width=size[0], height=size[1])), done)


def placeholder(recipe: Recipe, size: tuple[int, int]) -> Image.Image:
    """Return the drawing of a recipe: a backdrop of its own and the text."""
    picture = _backdrop(recipe, size)
    _write(picture, described(recipe, size))
    return picture


def described(recipe: Recipe, size: tuple[int, int]) -> list[str]:
    """Return the paragraphs that a drawing shows, the most important ones first."""
    facts = f"seed {recipe.seed}" + (f" (picture {recipe.index + 1} of its batch)" if recipe.index else "")
    settings = f"{size[0]}x{size[1]}, {recipe.steps} steps, guidance {recipe.guidance:g}"
    if recipe.denoise < 1:
        settings += f", denoise {recipe.denoise:g}"
    if recipe.sampler:
        settings += f", {recipe.sampler}"
    loras = [f"lora {name} ({strength:g})" for name, strength in recipe.loras]
    prompt = recipe.prompt[:LONGEST_PROMPT_SHOWN]
    return [plain(text) for text in (TITLE, facts, settings, *loras, prompt) if text.strip()]


def plain(text: str) -> str:
    r"""Return `text` in letters that Pillow's own font has: é as e, a cat in Chinese as \u732b."""
    split = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    letters = "".join(letter for letter in split if not unicodedata.combining(letter))
    return letters.encode("ascii", "backslashreplace").decode()


def _source(sketch: Sketch) -> Image.Image | None:
    match sketch.source:
        case None:
            return None
        case Sketch() as earlier:
            picture = drawn(earlier)
        case picture:
            pass
    return picture if picture.size == sketch.size else picture.resize(sketch.size, Image.Resampling.BICUBIC)


def _backdrop(recipe: Recipe, size: tuple[int, int]) -> Image.Image:
    chance = _chance(recipe)
    hue = chance.randrange(360)
    cells = []
    for _ in range(CLOUD_CELLS**2):
        shade = (hue + chance.randint(-50, 50)) % 360
        cells.append(ImageColor.getrgb(f"hsl({shade}, {chance.randint(35, 75)}%, {chance.randint(22, 62)}%)"))
    cloud = Image.new("RGB", (CLOUD_CELLS, CLOUD_CELLS))
    cloud.putdata(cells)
    return cloud.resize(size, Image.Resampling.BICUBIC)


def _chance(recipe: Recipe) -> random.Random:
    identity = f"{recipe.seed}/{recipe.index}/{recipe.prompt}"
    return random.Random(hashlib.sha256(identity.encode()).digest())  # noqa: S311  a pattern, not a secret


def _write(picture: Image.Image, paragraphs: list[str]) -> None:
    width, height = picture.size
    margin = max(1, min(picture.size) // 64)
    room = (width - 4 * margin, height - 4 * margin)
    for text_size in _text_sizes(min(picture.size)):
        lines, fits = _wrapped(paragraphs, text_size, room)
        if fits:
            break
    line_height = _line_height(text_size)
    box = (margin, margin, max(width - margin, margin), min(height - margin, 3 * margin + line_height * len(lines)))
    panel = picture.crop(box)
    picture.paste(Image.blend(panel, Image.new("RGB", panel.size, PANEL), PANEL_OPACITY), box)
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((2 * margin, 2 * margin + number * line_height), line, INK, _font(text_size), anchor="la")


def _text_sizes(side: int) -> list[int]:
    largest = min(LARGEST_TEXT, max(SMALLEST_TEXT, side // 24))
    return [largest, *(size for size in (44, 32, 24, 18, 14, 11, SMALLEST_TEXT) if size < largest)]


def _line_height(text_size: int) -> int:
    return round(text_size * 1.25)


def _wrapped(paragraphs: list[str], text_size: int, room: tuple[int, int]) -> tuple[list[str], bool]:
    most = max(1, room[1] // _line_height(text_size))
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += _lines(paragraph, text_size, room[0])
        if len(lines) > most:
            return [*lines[: most - 1], f"{lines[most - 1][:-3]}..."], False
    return lines, True


def _lines(paragraph: str, text_size: int, width: int) -> list[str]:
    longest_word = max(1, round(width / _length("m", text_size)))
    words = [word[at : at + longest_word] for word in paragraph.split() for at in range(0, len(word), longest_word)]
    space, used = _length(" ", text_size), 0.0
    lines: list[str] = []
    for word in words:
        length = _length(word, text_size)
        if lines and used + space + length <= width:
            lines[-1] += f" {word}"
            used += space + length
        else:
            lines.append(word)
            used = length
    return lines


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _length(word: str, text_size: int) -> float:
    return _font(text_size).getlength(word)
