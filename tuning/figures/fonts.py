"""Letters that matplotlib's own font lacks, as in Chinese class names: drawn with a font that is installed."""

import functools
import logging
import sys
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

OWN = "DejaVu Sans"
_BOXES = "Last Resort"  # matplotlib's font of boxes: it has every letter, and shows none.
_said: set[str] = set()
# That a font has no regular weight is no news: any is better than boxes.
logging.getLogger("matplotlib.font_manager").addFilter(lambda record: "font weight" not in record.getMessage())


def fit(figure: Figure) -> set[str]:
    """Has a figure's texts use installed fonts for letters that matplotlib's own lacks; returns those that none has."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # They are made when they are asked for.
    without: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if lacking := frozenset(text.get_text()) - _letters(font_manager.findfont(OWN)):
            found = {letter: _font_with(letter) for letter in sorted(lacking) if letter.isprintable()}
            without |= {letter for letter, font in found.items() if font is None}
            text.set_fontfamily([OWN, *dict.fromkeys(font for font in found.values() if font is not None)])
    return without


def say(without: Iterable[str]) -> None:
    """Says, once a process, which letters no installed font has, and what to do."""
    new = sorted(set(without) - _said)
    if new:
        _said.update(new)
        print(
            f"No font on this machine has {', '.join(new[:5])}{' and others' if len(new) > 5 else ''}: pictures show "
            "boxes in their place. Install one that has them, such as Noto Sans CJK, and they are drawn with it.",
            file=sys.stderr,
        )


@functools.cache
def _letters(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):  # Damaged, or of a kind that is no outline.
        return frozenset()


@functools.cache
def _font_with(letter: str) -> str | None:
    """Returns the family of an installed font that has a letter, upright and of normal weight where there is one."""
    fonts = [font for font in _installed() if letter in _letters(font.fname)]
    fonts.sort(key=lambda font: (font.style != "normal", abs(_weight(font.weight) - 400), "Sans" not in font.name))
    return fonts[0].name if fonts else None


@functools.cache
def _installed() -> list[font_manager.FontEntry]:
    """Returns the fonts of this machine, those that were installed after matplotlib had made its list, too."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(file)
        except (OSError, RuntimeError):
            continue
    return [font for font in font_manager.fontManager.ttflist if not font.name.startswith(_BOXES)]


def _weight(weight: int | str) -> int:
    return weight if isinstance(weight, int) else font_manager.weight_dict.get(weight, 400)
