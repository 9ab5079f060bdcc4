"""Decodes any photograph to an upright RGB picture, or gives the reason why it cannot."""

import contextlib
import io
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from coco224.files import read_regular
from coco224.metadata import (
    MOST_PARTS,
    jpeg_is_whole,
    jpeg_scans,
    png_depth,
    png_is_whole,
    too_many_parts,
    webp_without_end,
    without_metadata,
)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_ORIENTATION = 0x0112
# The transposition that turns a stored picture upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255, 255)

_MOST_BYTES = 10**9
"""Limit in bytes of the memory for decoding, its file included, and of a file."""
_BYTES_PER_PIXEL = {"WEBP": 20}
_USUAL_BYTES_PER_PIXEL = 9
_COEFFICIENT_BYTES_PER_PIXEL = 6  # of a JPEG with several scans, whose coefficients are all in memory
_MOST_SCANS = 100  # of a JPEG; a progressive one usually has ten
_MOST_SCANNED_PIXELS = 4 * 10**9  # in all scans: some seconds
_WEBP_PADDING = 64  # zero bytes that an encoder may leave at the end of a frame
_STRIP_PIXELS = 2**22  # pixels converted at a time, so that there is no complete copy of a large picture


class BadPhotograph(Exception):
    """Raised for a file that gives no picture; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Photograph:
    """An upright decoded picture, and the size of the picture in its file.

    Attributes:
        image: mode RGB, `1/reduction` of the file's size (rounded up).
        width, height: size of the file's picture, upright, in pixels.
        reduction: 1, 2, 4 or 8.
    """

    image: Image.Image
    width: int
    height: int
    reduction: int

    def pixels(self) -> NDArray[np.uint8]:
        """The image as uint8 [height, width, 3], copied in strips: at once there would be two copies for a while."""
        width, height = self.image.size
        rows = max(1, _STRIP_PIXELS // width)
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, rows):
            pixels[top : top + rows] = np.asarray(self.image.crop((0, top, width, min(top + rows, height))))
        return pixels


def read_photograph(path: Path, shortest: int | None = None) -> Photograph:
    """Decodes a file to 8-bit RGB: applies EXIF rotation, puts transparency on white, ignores profiles.

    Args:
        path: a JPEG, PNG, BMP or WebP file with any suffix.
        shortest: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 (DCT scaling, many times faster) if its short
            side keeps this many pixels.

    Raises:
        BadPhotograph: the file is not a picture, is truncated or damaged, or would take more than 1 GB of memory.
    """
    try:
        # One sequential read, so that a hard disk does not seek.
        data = read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise BadPhotograph(error.strerror or " ".join(str(error).split())) from error
    return decode_photograph(data, shortest)


def decode_photograph(data: bytes, shortest: int | None = None) -> Photograph:
    """The same from the content of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about metadata would break the progress bar
            return _decode_despite_metadata(data, shortest)
    except BadPhotograph:
        raise
    except UnidentifiedImageError:
        raise BadPhotograph("not a JPEG, PNG, BMP or WebP picture" if data else "an empty file") from None
    except MemoryError:
        raise BadPhotograph("it does not fit into memory") from None
    except OSError as error:
        raise BadPhotograph(error.strerror or " ".join(str(error).split())) from error
    except Exception as error:  # on a damaged file Pillow's decoders raise any exception
        reason = " ".join(str(error).split())
        raise BadPhotograph(reason or f"damaged: its decoder stops with {type(error).__name__}") from error


def _decode_despite_metadata(data: bytes, shortest: int | None) -> Photograph:
    """Decodes a picture; if that fails, tries again without its metadata, since Pillow may fail only on these."""
    try:
        return _decode(data, shortest)
    except (BadPhotograph, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        if 2 * len(data) > _MOST_BYTES or (bare := without_metadata(data)) == data:
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the pixels that were decoded
        with contextlib.suppress(Exception):  # if this fails too, the pixels are damaged: raise the first error
            return _decode(bare, shortest, _orientation_of(data), beside=len(data))
        raise


def _decode(data: bytes, shortest: int | None, orientation: int | None = None, beside: int = 0) -> Photograph:
    """Decodes the content of a file.

    Args:
        orientation: the EXIF orientation, if it is known.
        beside: bytes that the caller holds besides `data`.
    """
    if too_many_parts(data):
        raise BadPhotograph(f"it has more than {MOST_PARTS:,} segments or chunks, as no camera and no program writes")
    _refuse_zero_filled(data, beside)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        scans = 1
        if image.format in ("JPEG", "MPO"):  # some cameras write MPO into a .jpg
            scans = jpeg_scans(data)
            _refuse_many_scans(width, height, scans)
            orientation = orientation or _orientation(image)
            # A picture that must be turned is not reduced: its partial last column would become the first.
            if shortest and image.format == "JPEG" and orientation == 1:
                image.draft(None, (shortest, shortest))  # None keeps the mode
        reduction = round(width / image.width)
        _refuse_huge(image, reduction, scans, len(data) + beside)
        image.load()
        if image.mode == "P" and image.palette is None:
            raise BadPhotograph("damaged: it has colour numbers but no palette")
        orientation = orientation or _orientation(image)  # in a PNG it may come after the pixels
        upright = _rgb(image, png_depth(data))
    del image  # before a picture is turned, which takes another one
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return Photograph(upright, width, height, reduction)


def _orientation_of(data: bytes) -> int:
    """The EXIF orientation of a file, as `_orientation`."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _orientation(image)
    return 1


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF data are damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # on damaged metadata Pillow raises any exception
        return 1
    return found if isinstance(found, int) and found in _UPRIGHT else 1


def _refuse_huge(image: Image.Image, reduction: int, scans: int, held: int) -> None:
    """Refuses, before it is decoded, a picture that would take more than 1 GB of memory with the `held` bytes."""
    per_pixel = _BYTES_PER_PIXEL.get(image.format or "", _USUAL_BYTES_PER_PIXEL)
    if scans > 1 or image.info.get("progressive"):
        per_pixel += _COEFFICIENT_BYTES_PER_PIXEL * reduction**2
    most = max(0, _MOST_BYTES - held) // per_pixel
    if image.width * image.height > most:
        raise BadPhotograph(
            f"{image.width}x{image.height} pixels need more than 1 GB of memory; at most {most // 10**6} million fit"
        )


def _refuse_many_scans(width: int, height: int, scans: int) -> None:
    """Refuses, before it is decoded, a JPEG that would take minutes: a decoder runs over all pixels in every scan."""
    if scans > min(_MOST_SCANS, _MOST_SCANNED_PIXELS // (width * height)):
        raise BadPhotograph(f"{scans} scans of {width}x{height} pixels, more than any camera writes")


def _refuse_zero_filled(data: bytes, beside: int) -> None:
    """Refuses a file whose pixels end in zeros: an interrupted download into a preallocated file."""
    if data.endswith(b"\0\0") and not _is_whole(data, beside):
        zeros = len(data) - len(data.rstrip(b"\0"))
        raise BadPhotograph(f"truncated: the last {zeros} bytes are zeros")


def _is_whole(data: bytes, beside: int) -> bool:
    """Whether a file that ends in zeros has all its pixels; other formats than JPEG, PNG and WebP do not tell."""
    if data.startswith(b"\xff\xd8"):
        return jpeg_is_whole(data)
    if data.startswith(b"\x89PNG"):
        return png_is_whole(data)
    fits_twice = 2 * len(data) + beside < _MOST_BYTES
    if data[8:12] == b"WEBP" and fits_twice and (cut := webp_without_end(data, _WEBP_PADDING)):
        # The flat end of a picture may be coded as many zeros, but it needs them.
        with contextlib.suppress(Exception), Image.open(io.BytesIO(cut), formats=["WEBP"]) as image:
            _refuse_huge(image, 1, 1, len(data) + len(cut) + beside)
            image.load()
            return False
    return True


def _rgb(image: Image.Image, depth: int) -> Image.Image:
    """The picture in RGB on a white background.

    Args:
        depth: bits per sample in its file.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.format == "PNG" and image.mode in ("L", "RGB") and "transparency" in image.info:
        # The file gives the transparent colour at its own depth; the picture's samples are scaled to 8 bits.
        scaled = tuple(_to_8_bits(sample, depth) for sample in np.atleast_1d(image.info["transparency"]).tolist())
        image.info["transparency"] = scaled[0] if image.mode == "L" else scaled
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return _strip_to_rgb(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_strip_to_rgb(strip), (0, top))
    return rgb


def _to_8_bits(sample: int, depth: int) -> int:
    largest = 2**depth - 1
    return sample >> 8 if depth == 16 else (sample & largest) * 255 // largest


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Scales 16 bits to 8: convert("RGB") would clip everything above 255 to white.
        sixteen = np.asarray(image)
        eight = (sixteen.astype(np.float32) / 257 + 0.5).clip(0, 255).astype(np.uint8)
        if "transparency" in image.info:
            eight[sixteen == image.info["transparency"]] = 255
        return Image.fromarray(eight).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _WHITE), over).convert("RGB")
    return image.convert("RGB")
