"""Text in plots: file names are drawn literally."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

os.environ["MPLBACKEND"] = "agg"  # we only write files; a backend that is not there ends matplotlib's import
FONTS = ("Noto Sans CJK JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "Yu Gothic", "MS Gothic", "Hiragino Sans",
         "WenQuanYi Zen Hei", "Unifont")  # fmt: skip
"""Fonts with Japanese, Chinese and Korean; the first installed one draws characters that DejaVu Sans lacks."""


@contextmanager
def plain_text() -> Iterator[None]:
    """Draws all text literally: no formulas between dollars, and no warning for a character that no font has."""
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    with rc_context({"text.parse_math": False, "font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
