"""Antialiased bicubic scaling: Pillow's filter, seven times as fast if cykooz_resizer is installed."""

from PIL import Image

try:
    import cykooz_resizer
except ModuleNotFoundError:  # no wheel for this processor: pyproject.toml requires it only on x86-64
    cykooz_resizer = None


def packages() -> list[str]:
    """The packages besides Pillow that the result of `bicubic` depends on."""
    return ["cykooz-resizer"] if cykooz_resizer else []


def bicubic(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """The box (left, top, right, bottom, in pixels) of an RGB picture as a size x size picture.

    The same as `image.resize((size, size), BICUBIC, box)` to one level of 255, except for single values where the cubic
    overshoots black or white: both libraries clip after each of their two passes, which they make in opposite order.
    """
    if cykooz_resizer is None:
        return image.resize((size, size), Image.Resampling.BICUBIC, box)
    left, top, right, bottom = box
    options = cykooz_resizer.ResizeOptions(
        # The Catmull-Rom filter is the cubic with a = -1/2, which Pillow calls BICUBIC.
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
    )
    scaled = Image.new("RGB", (size, size))
    cykooz_resizer.Resizer().resize_pil(image, scaled, options)
    return scaled
