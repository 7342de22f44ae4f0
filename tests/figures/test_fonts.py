"""Letters that matplotlib's own font lacks are drawn with an installed one, or said to be boxes."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from tuning.figures import fonts, style

# Matplotlib comes with STIXGeneral, too, which has the first letter; its own fonts have none of the others.
HOOKED, KOREAN = "\u1d81", "\ud55c\uad6d"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    fonts._said.clear()
    fonts._font_with.cache_clear()
    yield
    fonts._font_with.cache_clear()


def labelled(name: str) -> Figure:
    """Returns a figure with a name on an axis, in a title and in a legend."""
    figure, ax = style.single(3, 2)
    ax.set_title(name)
    ax.plot([0, 1], label=name)
    ax.legend()
    ax.set_xticks([0, 1], labels=["plain", name])
    return figure


def test_a_letter_is_drawn_with_the_font_that_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = labelled(f"a {HOOKED}")
    assert fonts.fit(figure) == set()
    title, (plain, named) = figure.axes[0].title, figure.axes[0].get_xticklabels()
    assert title.get_fontfamily() == named.get_fontfamily() == [fonts.OWN, fonts._font_with(HOOKED)]
    assert plain.get_fontfamily() == ["sans-serif"]  # Has all it needs.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(figure, tmp_path / "one.png")
    assert capsys.readouterr().err == ""


def test_letters_that_no_font_has_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [font for font in font_manager.fontManager.ttflist if font.name == fonts.OWN]
    monkeypatch.setattr(fonts, "_installed", lambda: own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("one.png", "two.pdf", "three.svg"):
            style.save(labelled(KOREAN), tmp_path / name)
    said = capsys.readouterr().err
    assert said.startswith(f"No font on this machine has {KOREAN[1]}, {KOREAN[0]}: pictures show boxes")
    assert said.count("\n") == 1
    assert fonts.fit(labelled("plain\nof two lines")) == set()


def test_a_font_that_was_installed_later_or_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    known = font_manager.fontManager.ttflist
    # Matplotlib's font of boxes has the letter, too, and the list may begin with it.
    stix = next(f.fname for f in known if f.name == "STIXGeneral" and HOOKED in fonts._letters(f.fname))
    rest = [font for font in font_manager.fontManager.ttflist if HOOKED not in fonts._letters(font.fname)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", rest)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "damaged.ttf"), stix])
    monkeypatch.setattr(fonts, "_installed", fonts._installed.__wrapped__)
    assert fonts._font_with(HOOKED) is not None
    assert fonts._letters(str(tmp_path / "damaged.ttf")) == frozenset()
