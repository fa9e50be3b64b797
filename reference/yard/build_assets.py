"""Makes the pictures in `assets/` from Debian packages: `python -m reference.yard.build_assets`.

It states the origin and licence of each photograph and sprite. It needs `apt-get` and `dpkg-deb`,
and is run once: its results are committed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from protos.errors import ConfigError
from reference.yard.scene import ASSETS, KINDS

CELL_PX = 64  # side of a sprite's cell in the sheet
SPRITE_PX = 56  # longest side of an ordinary sprite in its cell
GROUND_PX = 512  # side of a ground photograph
FONT_PX = 109  # the one size that Noto Color Emoji holds

EMOJI = {
    "car": "🚗", "truck": "🚚", "tractor": "🚜", "bus": "🚌", "bicycle": "🚲", "person": "🧍",
    "worker": "👷", "dog": "🐕", "cat": "🐈", "horse": "🐎", "crate": "📦", "barrel": "🛢",
    "ladder": "🪜", "barrier": "🚧", "tree": "🌳", "wrench": "🔧", "fire": "🔥", "smoke": "💨",
}  # fmt: skip
NARROW = ("person", "ladder")  # these fill their cell; else they would be too thin to recognise


@dataclass(frozen=True)
class Photograph:
    """One square crop: `box` is (left, top, side) as fractions of the picture's height."""

    package: str
    path: str
    box: tuple[float, float, float]
    author: str
    licence: str


_PLASMA = "usr/share/wallpapers/{}/contents/images/2560x1600.jpg"
_MATE = "usr/share/backgrounds/mate/nature/{}.jpg"
_LOMIRI = "usr/share/backgrounds/{}.jpg"


COMMON_LICENSES = ("GPL-2", "GPL-3", "LGPL-3", "CC0-1.0")


def _plasma(name: str, box: tuple[float, float, float], author: str) -> Photograph:
    return Photograph(
        "plasma-workspace-wallpapers", _PLASMA.format(name), box, author, "LGPL-3 (metadata.json)"
    )


def _mate(name: str, box: tuple[float, float, float], author: str) -> Photograph:
    return Photograph("mate-backgrounds", _MATE.format(name), box, author, "GPL-2+")


def _lomiri(
    name: str, box: tuple[float, float, float], author: str, licence: str, release: str = "16.04"
) -> Photograph:
    package = f"lomiri-wallpapers-{release}"
    return Photograph(package, _LOMIRI.format(name), box, author, licence)


PHOTOGRAPHS: dict[str, tuple[Photograph, ...]] = {
    "train": (
        _plasma("BytheWater", (0.45, 0.42, 0.58), "Maciej Wiklo"),
        _plasma("EveningGlow", (0.60, 0.68, 0.32), "Ian Hex"),
        _plasma("FallenLeaf", (0.0, 0.45, 0.55), "Martin Klapetek"),
        _plasma("OneStandsOut", (0.0, 0.0, 0.8), "Risto Saukonpää"),
        _plasma("Grey", (0.5, 0.1, 0.8), "Sigi Sagi"),
        _mate("Blinds", (0.3, 0.0, 1.0), "Lennart Poettering, Andrea Cimitan"),
        _mate("Dune", (0.4, 0.35, 0.65), "Marco Cogoni, Hylke Bons"),
        _mate("GreenMeadow", (0.2, 0.0, 1.0), "Timothy Schellhase, Lapo Calamandrei"),
        _mate("Wood", (0.2, 0.0, 1.0), "Jean-François Fortin Tam"),
        _mate("LadyBird", (0.0, 0.2, 0.7), "Charles Barbin"),
        _lomiri("Dragonfly_by_Bolly", (0.2, 0.3, 0.6), "Bolly", "CC-BY-SA-4.0"),
        _lomiri("Picture_0B_by_freespace", (0.0, 0.62, 0.38), 'Trevor "Freespace"', "CC-BY-4.0"),
        _lomiri(
            "aitzgorri_by_Aitzol_Berasategi", (0.5, 0.6, 0.4), "Aitzol Berasategi", "CC-BY-4.0"
        ),
        _lomiri("life_by_Aitzol_Berasategi", (0.4, 0.4, 0.6), "Aitzol Berasategi", "CC-BY-4.0"),
        _lomiri(
            "seeding_by_Clements_Engelhardt", (0.8, 0.4, 0.6), "Clemens Engelhardt", "CC0-1.0"
        ),
        _mate("Storm", (0.3, 0.62, 0.38), "Sergey Nazarov"),
    ),
    "test": (
        _plasma("Path", (0.3, 0.5, 0.5), "Risto Saukonpää"),
        _plasma("ColdRipple", (0.4, 0.6, 0.4), "Risto Saukonpää"),
        _mate("RainDrops", (0.4, 0.2, 0.8), "blackcombwhistler07"),
        _lomiri(
            "picosdeeuropa_by_Aitzol_Berasategi", (0.0, 0.62, 0.38), "Aitzol Berasategi",
            "CC-BY-4.0",
        ),
        _lomiri(
            "Kleiber_by_Lukas_Baubkus", (0.0, 0.0, 0.75), "Lukas Baubkus", "CC-BY-SA-3.0", "20.04"
        ),
        _lomiri("sunset_by_Aitzol_Berasategi", (0.6, 0.6, 0.4), "Aitzol Berasategi", "CC-BY-4.0"),
    ),
}  # fmt: skip
FONT_PACKAGE = "fonts-noto-color-emoji"
FONT_LICENCE = "OFL-1.1"
SPDX = {"GPL-2+": "GPL-2.0-or-later", "LGPL-3 (metadata.json)": "LGPL-3.0-only"}
"""SPDX ids of licences that Debian or a wallpaper's metadata names in another way."""
FONT_PATH = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


def unpack(package: str, into: Path) -> None:
    """Downloads `package` from the Debian archive and unpacks it under `into/package`."""
    (into / package).mkdir()
    subprocess.run(["apt-get", "download", package], cwd=into, check=True, capture_output=True)
    (archive,) = into.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(into / package)], check=True)


def sprite_sheet(font_path: Path) -> Image.Image:
    """RGBA sheet with one row of `CELL_PX` cells, in the order of `KINDS`."""
    font = ImageFont.truetype(str(font_path), FONT_PX)
    sheet = Image.new("RGBA", (CELL_PX * len(KINDS), CELL_PX))
    for column, kind in enumerate(KINDS):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((10, 10), EMOJI[kind], font=font, embedded_color=True)
        box = glyph.getbbox()
        if box is None:
            raise ConfigError(f"{font_path.name} has no picture of a {kind}: use Noto Color Emoji")
        glyph = glyph.crop(box)
        if kind == "smoke":  # the emoji is a white and blue puff
            grey = ImageOps.grayscale(glyph.convert("RGB")).point(lambda v: max(50, 1.6 * v - 220))
            glyph = Image.merge("RGBA", (grey, grey, grey, glyph.getchannel("A")))
        longest = CELL_PX if kind in NARROW else SPRITE_PX
        scale = longest / max(glyph.size)
        size = (round(glyph.width * scale), round(glyph.height * scale))
        glyph = glyph.resize(size, Image.Resampling.LANCZOS)
        corner = (column * CELL_PX + (CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2)
        sheet.paste(glyph, corner)
    return sheet


def ground_strip(photographs: tuple[Photograph, ...], unpacked: Path) -> Image.Image:
    """RGB strip with one row of `GROUND_PX` square crops."""
    strip = Image.new("RGB", (GROUND_PX * len(photographs), GROUND_PX))
    for column, photograph in enumerate(photographs):
        with Image.open(unpacked / photograph.package / photograph.path) as picture:
            left, top, side = (round(f * picture.height) for f in photograph.box)
            left = min(left, picture.width - side)
            crop = picture.convert("RGB").crop((left, top, left + side, top + side))
        crop = crop.resize((GROUND_PX, GROUND_PX), Image.Resampling.LANCZOS)
        strip.paste(crop, (column * GROUND_PX, 0))
    return strip


def spdx() -> str:
    """The licences of everything in `assets/` as one SPDX expression, in alphabetical order."""
    named = {p.licence for photographs in PHOTOGRAPHS.values() for p in photographs}
    return " AND ".join(sorted({FONT_LICENCE, *(SPDX.get(name, name) for name in named)}))


def licences() -> str:
    """The text of `LICENSES.md`: one row a photograph, as the packages' copyright files say."""
    lines = [
        "# Where these pictures come from",
        "",
        "Made by `python -m reference.yard.build_assets` from Debian 12 packages, cropped and",
        "scaled. Authors and licences as in `/usr/share/doc/<package>/copyright` of each package.",
        "These pictures keep their own licences, whatever that of the code around them. So does a",
        "picture drawn with them (`docs/yard.jpg`, `docs/sequences.jpg`). As an SPDX expression:",
        "",
        f"    {spdx()}",
        "",
        f"`sprites.png`: `{FONT_PACKAGE}`, copyright 2013-2017 Google Inc., Arjen Nienhuis;",
        '"This Font Software is licensed under the SIL Open Font License, Version 1.1" (images',
        "of the same project: Apache-2.0). The smoke was made grey.",
    ]
    for split, photographs in PHOTOGRAPHS.items():
        lines += ["", f"## `grounds_{split}.webp`, from left to right", ""]
        lines += ["| Photograph | Author | Licence | Debian package |", "|---|---|---|---|"]
        for p in photographs:
            name = p.path.split("/")[3] if "wallpapers" in p.path else Path(p.path).name
            lines.append(f"| {name} | {p.author} | {p.licence} | `{p.package}` |")
    lines += [
        "",
        'The copyright file of `plasma-workspace-wallpapers` says: "Files: * Copyright: 2014 KDE',
        "Visual Design Group http://vdesign.kde.org/ License: GPL-2+\"; each wallpaper's own",
        "`metadata.json`, quoted above, says LGPLv3. The copyright file of `mate-backgrounds` says",
        'GPL-2+ for the photographs used ("Copyright holders are found in AUTHORS file"). The',
        "texts of all these licences are in `licenses/`: each package's copyright file (with the",
        "OFL and the Creative Commons licences in full) and the GNU and CC0 texts they refer to.",
        "",
    ]
    return "\n".join(lines)


def copy_texts(packages: Iterable[str], unpacked: Path, out: Path) -> None:
    """Copies each package's copyright file and the common licences that they refer to."""
    out.mkdir(exist_ok=True)
    for package in packages:
        shutil.copy(unpacked / package / "usr/share/doc" / package / "copyright", out / package)
    for name in COMMON_LICENSES:
        shutil.copy(Path("/usr/share/common-licenses") / name, out / name)
    for file in out.iterdir():
        if file.suffix != ".txt":
            file.replace(file.with_name(f"{file.name}.txt"))


def main() -> None:
    """Writes the sprite sheet, the strips of photographs, `LICENSES.md` and the texts it names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    packages = {p.package for photographs in PHOTOGRAPHS.values() for p in photographs}
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder)
        for package in sorted(packages | {FONT_PACKAGE}):
            unpack(package, unpacked)
        copy_texts(sorted(packages | {FONT_PACKAGE}), unpacked, out / "licenses")
        sheet = sprite_sheet(unpacked / FONT_PACKAGE / FONT_PATH)
        sheet.save(out / "sprites.png", optimize=True)
        for split, photographs in PHOTOGRAPHS.items():
            strip = ground_strip(photographs, unpacked)
            strip.save(out / f"grounds_{split}.webp", quality=86, method=6)
    (out / "LICENSES.md").write_text(licences(), encoding="utf-8")


if __name__ == "__main__":
    main()
