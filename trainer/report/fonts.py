"""A font for the names of the classes, which may be in any script."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from matplotlib import font_manager
from matplotlib.font_manager import FontProperties, get_font


def font_for(texts: Sequence[str]) -> FontProperties | None:
    """One that has every sign of the texts; None where none is installed."""
    signs = frozenset(map(ord, "".join(texts)))
    usual = FontProperties()
    if signs <= signs_of(font_manager.findfont(usual)):
        return usual
    for path in sorted({entry.fname for entry in font_manager.fontManager.ttflist}):
        # matplotlib's own "last resort" has a box for every sign there is.
        if "lastresort" not in path.lower() and signs <= signs_of(path):
            return FontProperties(fname=path)
    return None


@functools.cache
def signs_of(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that freetype can't read
        return frozenset()
