"""Renders scenes to camera pictures: ground, shadows, objects, light, blur, sensor noise.

Pillow does the geometry, a picture at a time; light is computed on whole batches.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from projector.models import pictures
from reference.yard.scene import (
    ASSETS,
    COLOURS,
    KINDS,
    NO_COLOUR,
    PICTURE_PX,
    UNTINTED,
    Floats,
    Scenes,
    strip_of,
)

Pixels = NDArray[np.uint8]

TINTS = {
    "red": (222, 28, 36),
    "green": (36, 168, 52),
    "blue": (36, 84, 232),
    "yellow": (248, 208, 24),
    "purple": (156, 44, 196),
    "white": (250, 250, 250),
}  # fmt: skip
TINT_SHARE = 0.85  # the rest is the sprite's own colour
_OWN_SATURATION = 0.25

_CELL_PX = 64  # side of a sprite's cell; an ordinary sprite fills _SPRITE_PX of it
_SPRITE_PX = 56
_SMALL_CELL_PX = 40  # small objects are drawn from a reduced sprite; else they would alias
_SMALL_BELOW_PX = 36
_GROUND_PX = 512
_GROUND_CONTRAST = 0.60
_GROUND_SATURATION = 0.65
_GROUND_MEAN = (85.0, 150.0)
_SHADOW = 0.45
_SHADOW_SHIFT = (0.05, 0.07)  # in units of the object's size
_FOG_LEVEL = 190.0
_CHUNK = 32  # pictures lit together: as many as a cache holds


def render(scenes: Scenes, noise: bool = True) -> Pixels:
    """Pictures [N, 144, 144, 3], RGB; `noise=False` leaves out the sensor noise alone."""
    pictures = np.empty((len(scenes), PICTURE_PX, PICTURE_PX, 3), np.uint8)
    for start in range(0, len(scenes), _CHUNK):
        chunk = scenes[start : start + _CHUNK]
        drawn = np.stack([np.asarray(_draw(chunk, i)) for i in range(len(chunk))])
        pictures[start : start + _CHUNK] = _expose(drawn, chunk, noise)
    return pictures


def _draw(scenes: Scenes, index: int) -> Image.Image:
    """Draws ground, shadows and objects of one scene; small objects are in front of large ones."""
    picture = _draw_ground(scenes, index)
    count = int(scenes.n_objects[index])
    size = scenes.size_px[index, :count]
    for slot in np.argsort(-size, kind="stable"):
        kind, colour = int(scenes.kind[index, slot]), int(scenes.colour[index, slot])
        small = bool(size[slot] < _SMALL_BELOW_PX)
        place = (float(scenes.x[index, slot]), float(scenes.y[index, slot]))
        size_px, angle = float(size[slot]), float(scenes.angle[index, slot])
        pose = (size_px, angle, bool(scenes.mirror[index, slot]))
        shift_x, shift_y = (shift * size_px for shift in _SHADOW_SHIFT)
        if KINDS[kind] != "fire":
            shadow, box = _posed(_shadows()[kind], (place[0] + shift_x, place[1] + shift_y), *pose)
            picture.paste((0, 0, 0), box, shadow)
        sprite, box = _posed(_sprites(small)[kind, colour], place, *pose)
        picture.paste(sprite, box, sprite)
    return picture


def _draw_ground(scenes: Scenes, index: int) -> Image.Image:
    side = PICTURE_PX * float(scenes.ground_scale[index])
    left = float(scenes.ground_x[index]) * (_GROUND_PX - side)
    top = float(scenes.ground_y[index]) * (_GROUND_PX - side)
    photograph = _grounds(strip_of(scenes.split))[int(scenes.ground[index])]
    picture = photograph.resize(
        (PICTURE_PX, PICTURE_PX), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
    )
    if scenes.ground_mirror[index]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


def _posed(
    sprite: Image.Image, place: tuple[float, float], size_px: float, angle: float, mirror: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """The sprite scaled, turned and set on the pixel grid, and the window's top left corner."""
    half = int(np.ceil(0.71 * size_px * _CELL_PX / _SPRITE_PX))
    corner = (round(place[0]) - half, round(place[1]) - half)
    shrink = sprite.width / _CELL_PX * _SPRITE_PX / size_px  # sprite px per picture px
    cos, sin = shrink * np.cos(np.deg2rad(angle)), shrink * np.sin(np.deg2rad(angle))
    flip = -1.0 if mirror else 1.0
    off_x, off_y = place[0] - corner[0], place[1] - corner[1]
    middle = sprite.width / 2
    matrix = (
        flip * cos, flip * sin, middle - flip * (cos * off_x + sin * off_y),
        -sin, cos, middle + sin * off_x - cos * off_y,
    )  # fmt: skip
    window = (2 * half, 2 * half)
    return (
        sprite.transform(window, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR),
        corner,
    )


def _expose(drawn: Pixels, scenes: Scenes, noise: bool) -> Pixels:
    """Light, fog, blur and noise on pictures [n, 144, 144, 3]."""
    levels = drawn.astype(np.float32)
    contrast, brightness = scenes.contrast[:, None], scenes.brightness[:, None]
    balance = 1 + scenes.warmth[:, None] * np.array([1, 0, -1], np.float32)
    clear = 1 - scenes.fog[:, None]
    gain = clear * balance * contrast * brightness  # [n, 3]
    offset = clear * balance * brightness * (1 - contrast) * 128 + scenes.fog[:, None] * _FOG_LEVEL
    levels *= _light_field(scenes)[..., None] * gain[:, None, None]
    levels += offset[:, None, None]
    _blur(levels, scenes.blur_px)
    if noise:
        for picture, seed, sigma in zip(levels, scenes.noise_seed, scenes.noise, strict=True):
            rng = np.random.Generator(np.random.SFC64(int(seed)))
            picture += float(sigma) * rng.standard_normal(picture.shape, np.float32)
    np.rint(levels, out=levels)
    np.clip(levels, 0, 255, out=levels)
    return levels.astype(np.uint8)


def _light_field(scenes: Scenes) -> Floats:
    """Relative light [n, 144, 144]: a linear gradient and, in some, a large soft shadow."""
    unit = np.linspace(-1, 1, PICTURE_PX, dtype=np.float32)
    slope_x, slope_y = scenes.gradient[:, 0, None, None], scenes.gradient[:, 1, None, None]
    field = 1 + slope_x * unit + slope_y * unit[:, None]
    px = np.arange(PICTURE_PX, dtype=np.float32) - PICTURE_PX / 2
    for row in np.flatnonzero(scenes.shade[:, 0]):
        strength, direction, shift = (float(v) for v in scenes.shade[row])
        across = np.cos(direction) * px + np.sin(direction) * px[:, None] - shift
        field[row] *= 1 - strength * np.clip(across / 16 + 0.5, 0, 1)
    return np.asarray(field, np.float32)


def _blur(levels: Floats, blur_px: Floats) -> None:
    """Three-tap binomial blur in place, of the given standard deviation, where it is not 0."""
    for row in np.flatnonzero(blur_px):
        side = np.float32(blur_px[row] ** 2 / 2)
        for axis in (0, 1):
            lines = np.moveaxis(levels[row], axis, 0)
            step = np.diff(lines, axis=0) * side
            lines[:-1] += step
            lines[1:] -= step


@cache
def _grounds(strip: str) -> tuple[Image.Image, ...]:
    """The photographs of a strip, toned down so that objects stand out."""
    strip_levels = np.asarray(pictures.read(ASSETS / f"grounds_{strip}.webp"), np.float32)
    photographs = []
    for levels in np.split(strip_levels, strip_levels.shape[1] // _GROUND_PX, axis=1):
        grey = levels.mean(axis=2, keepdims=True)
        toned = grey + _GROUND_SATURATION * (levels - grey)
        mean = toned.mean()
        toned = np.clip(mean, *_GROUND_MEAN) + _GROUND_CONTRAST * (toned - mean)
        photographs.append(Image.fromarray(np.clip(toned, 0, 255).astype(np.uint8)))
    return tuple(photographs)


@cache
def _cells() -> tuple[Image.Image, ...]:
    """The sprites as they come, RGBA 64 x 64, in the order of `KINDS`."""
    with Image.open(ASSETS / "sprites.png") as file:
        sheet = file.convert("RGBA")
    lefts = range(0, sheet.width, _CELL_PX)
    return tuple(sheet.crop((left, 0, left + _CELL_PX, _CELL_PX)) for left in lefts)


@cache
def _sprites(small: bool) -> dict[tuple[int, int], Image.Image]:
    """RGBA sprites by (kind, colour), of 64 x 64 px or, where `small`, 40 x 40."""
    sprites = {}
    for kind, cell in enumerate(_cells()):
        tints = [NO_COLOUR] if KINDS[kind] in UNTINTED else range(len(COLOURS))
        for colour in tints:
            sprite = cell if colour == NO_COLOUR else _tinted(cell, TINTS[COLOURS[colour]])
            if small:
                sprite = sprite.resize((_SMALL_CELL_PX, _SMALL_CELL_PX), Image.Resampling.BOX)
            sprites[kind, colour] = sprite
    return sprites


@cache
def _shadows() -> tuple[Image.Image, ...]:
    """Soft shadows, one grey 64 x 64 mask a kind."""
    shadows = []
    for cell in _cells():
        mask = np.asarray(cell.getchannel("A"), np.float32) * _SHADOW
        for _ in range(4):
            for axis in (0, 1):
                mask = (np.roll(mask, 1, axis) + mask + np.roll(mask, -1, axis)) / 3
        shadows.append(Image.fromarray(mask.astype(np.uint8)))
    return tuple(shadows)


def _tinted(cell: Image.Image, tint: tuple[int, int, int]) -> Image.Image:
    """The sprite in shades of one colour: black stays black, middle grey becomes the tint."""
    rgba = np.asarray(cell, np.float32)
    grey = rgba[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    opaque = rgba[..., 3] > 128
    middle = 0.6
    grey = np.clip(grey, 0.02, 1) ** (np.log(middle) / np.log(np.median(grey[opaque])))
    colour = np.array(tint, np.float32)
    dark = np.minimum(grey / middle, 1)[..., None]
    light = (0.55 * np.maximum(grey - middle, 0) / (1 - middle))[..., None]
    shade = dark * colour + light * (255 - colour)
    own = rgba[..., :3].mean(axis=2, keepdims=True)
    own = own + _OWN_SATURATION * (rgba[..., :3] - own)
    rgb = (1 - TINT_SHARE) * own + TINT_SHARE * shade
    return Image.fromarray(np.dstack([rgb, rgba[..., 3]]).round().astype(np.uint8))
