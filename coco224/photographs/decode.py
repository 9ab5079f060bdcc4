"""Any odd photograph to an upright RGB picture, or the reason why it is none."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)


class BadPhotograph(Exception):
    """A file that gives no picture; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Photograph:
    """An upright picture as it was decoded, and the size that its file has.

    Attributes:
        image: mode RGB, `1/reduction` of the file's size (rounded up).
        width, height: of the file's picture, upright, in pixels.
        reduction: 1, 2, 4 or 8.
    """

    image: Image.Image
    width: int
    height: int
    reduction: int


def read_photograph(path: Path, shortest: int | None = None) -> Photograph:
    """Decodes one file whole: 8-bit RGB, EXIF rotation applied, transparency laid on white, profiles ignored.

    Args:
        path: a JPEG, PNG, BMP or WebP file, whatever its suffix says.
        shortest: where given, a JPEG may be decoded at 1/2, 1/4 or 1/8 (DCT scaling, many times faster) as
            long as its short side keeps this many pixels.

    Raises:
        BadPhotograph: not a picture, or one that is not whole.
    """
    try:
        # One sequential read: a disk that seeks sees a file at a time.
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata would tear the progress bar
            return _decode(data, shortest)
    except BadPhotograph:
        raise
    except UnidentifiedImageError:
        raise BadPhotograph("not a JPEG, PNG, BMP or WebP picture" if data else "an empty file") from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them trip over
        raise BadPhotograph(" ".join(str(error).split()) or type(error).__name__) from error


def _decode(data: bytes, shortest: int | None) -> Photograph:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.format in ("JPEG", "MPO"):  # MPO: what some cameras write into a .jpg
            _refuse_zero_filled(data)
        width, height = image.size
        orientation = image.getexif().get(_ORIENTATION, 1)
        # A turned picture is decoded whole: its partial last column would become the first.
        if shortest and image.format == "JPEG" and orientation == 1:
            image.draft(None, (shortest, shortest))  # None keeps the mode
        reduction = round(width / image.width)
        image.load()
        upright = image if orientation == 1 else ImageOps.exif_transpose(image)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return Photograph(_rgb(upright), width, height, reduction)


def _refuse_zero_filled(data: bytes) -> None:
    """A download that was cut off in a preallocated file ends in zeros, which decode as a grey area."""
    picture = data.rstrip(b"\0")
    if len(picture) < len(data) - 1 and not picture.endswith(b"\xff\xd9"):
        raise BadPhotograph(f"truncated: the last {len(data) - len(picture)} bytes are zeros")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 16 bits to 8 by scale: convert("RGB") would clip everything above 255 to white.
        sixteen = np.asarray(image).astype(np.float32)
        return Image.fromarray((sixteen / 257 + 0.5).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _WHITE), over).convert("RGB")
    return image.convert("RGB")


def list_photographs(folder: Path) -> list[tuple[str, int]]:
    """Names (relative to `folder`, subfolders included, sorted) and bytes of the files with a picture's suffix.

    Hidden files are left out: they are other programs' notes (`._000001.jpg` of macOS), not pictures.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                size = path.stat().st_size if path.exists() else 0  # a dangling link is listed, then skipped
                found.append((path.relative_to(folder).as_posix(), size))
    return sorted(found)
