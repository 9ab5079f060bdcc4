"""Text in plots: names of files as they are."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

FONTS = ("Noto Sans CJK JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "Yu Gothic", "MS Gothic", "Hiragino Sans",
         "WenQuanYi Zen Hei", "Unifont")  # fmt: skip
"""Fonts with Japanese, Chinese and Korean signs; the first that is installed serves where DejaVu Sans has none."""


@contextmanager
def plain_text() -> Iterator[None]:
    """Draws every text literally: no formulas between dollars, and no warning for a sign that no font has."""
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    with rc_context({"text.parse_math": False, "font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
