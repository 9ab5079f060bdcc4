"""`python -m benchmarks.gallery`: docs/gallery.md, the embedded codecs beside JPEG, WebP and AVIF at equal bytes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.harness import ROOT
from coco224.photographs.decode import read_photograph
from coco224.photographs.sample import LICENCES, sample_splits
from codec.checkpoint import open_codec
from codec.evaluation.figures import Figures, measure_pictures
from codec.evaluation.references import within
from codec.files import FileCodec
from codec.sample import GDN, NPU, to_use
from codec.targets import TargetOptions, bytes_of

PAGE = ROOT / "docs" / "gallery.md"

SHOWN = {"astronaut.png": (108, 0), "coffee.png": (190, 110), "chelsea.png": (110, 30), "rocket.jpg": (240, 150)}
"""The photographs of scikit-image, and the left and top corner of the part that is shown."""

BPP = 0.25
"""Bits per pixel that no file exceeds."""

SIDE, CAPTION, GAP, COLUMNS = 256, 40, 8, 3
"""Of the part, in pixels; height of the words under it; between parts; parts in a row."""

FORMATS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}

INTRODUCTION = """\
# Gallery

Written by `python -m benchmarks.gallery`. The [embedded codecs](../codec/sample/README.md) beside JPEG (with optimized
Huffman tables), WebP and AVIF (Pillow's default settings): each file is the best one of at most {bpp} bits per pixel of
the complete photograph, and was decoded again. The codecs are small ones (N={N}, M={M}), trained on a CPU on
{photographs} other photographs. *int8*: all that a chip runs is in int8. A part of each photograph is shown, pixel
for pixel.
"""

Coded = tuple[bytes, Tensor]


def main() -> None:
    """Writes the page and its pictures."""
    folder = PAGE.with_suffix("")
    folder.mkdir(exist_ok=True)
    gdn, int8 = (open_codec(to_use(name)) for name in (GDN, NPU))
    codecs = {"GDN, float": FileCodec(gdn), "gate_mlp, int8": FileCodec(int8)}
    photographs = len((to_use(GDN).parent / "photographs.csv").read_text().splitlines()) - 1
    parts = [INTRODUCTION.format(bpp=BPP, N=gdn.N, M=gdn.M, photographs=photographs)]
    for name, corner in SHOWN.items():
        picture = torch.from_numpy(read_photograph(_path(name)).pixels()).permute(2, 0, 1)
        rows = list(measured(picture, codecs))
        out = folder / f"{Path(name).stem}.jpg"
        montage(picture, rows, corner).save(out, quality=92, subsampling=0)
        parts.append(section(name, out, rows))
    PAGE.write_text("\n".join(parts))


def measured(picture: Tensor, codecs: dict[str, FileCodec]) -> Iterator[tuple[str, Figures, Tensor]]:
    """For each codec and format its name, its figures, and the decoded picture, uint8 [3, H, W]."""
    limit = bytes_of(BPP, picture[0].numel())
    target = TargetOptions(target_bytes=limit)
    ways: dict[str, Coded] = {name: codec.through_file(picture, target) for name, codec in codecs.items()}
    ways |= {title: within(name, picture, limit) for name, title in FORMATS.items()}
    for name, (file, decoded) in ways.items():
        (figures,) = measure_pictures(picture[None], decoded[None], None, [file])
        yield name, figures, decoded


def montage(picture: Tensor, rows: list[tuple[str, Figures, Tensor]], corner: tuple[int, int]) -> Image.Image:
    """The part of the original and of each decoded picture, with words under it."""
    parts = [(picture, "original", ""), *((x, name, f"{of.psnr:.2f} dB") for name, of, x in rows)]
    lines = -(-len(parts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, lines * (SIDE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    left, top = corner
    for i, (x, name, words) in enumerate(parts):
        row, column = divmod(i, COLUMNS)
        place = column * (SIDE + GAP), row * (SIDE + CAPTION)
        part = x[:, top : top + SIDE, left : left + SIDE].permute(1, 2, 0).contiguous()
        sheet.paste(Image.fromarray(part.numpy()), place)
        draw.text((place[0] + 4, place[1] + SIDE + 6), f"{name}   {words}", "black", font)
    return sheet


def section(name: str, picture: Path, rows: list[tuple[str, Figures, Tensor]]) -> str:
    """A photograph's heading, picture and table, in Markdown."""
    lines = [
        f"## {picture.stem}",
        "",
        f"![{', '.join(each for each, _, _ in rows)}]({picture.parent.name}/{picture.name})",
        "",
    ]
    lines += ["| codec | bits per pixel | PSNR | MS-SSIM |", "| --- | --: | --: | --: |"]
    lines += [f"| {each} | {of.bpp:.3f} | {of.psnr:.2f} dB | {of.ms_ssim:.4f} |" for each, of, _ in rows]
    return "\n".join([*lines, "", f"{name} of scikit-image: {LICENCES[name]}.", ""])


def _path(name: str) -> Path:
    return next(each.folder / name for each in sample_splits(True).values() if name in each.names)


if __name__ == "__main__":
    main()
