"""`walk`: which files below a folder are images. Hidden ones, and what is no image, are passed over and counted."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tuning.base.errors import UserError
from tuning.base.files import MODEL_DIR, RESULTS

Above = tuple[tuple[int, int], ...]  # Device and number of each folder above.
HIDDEN = "hidden files and folders"
NO_IMAGES = "files that are no images"
OURS = "folders of this project's runs and models"
_MODEL_FILES = ("model.pth", "test_log.jsonl")
# In lower case; beside these, every name that begins with a dot.
_HIDDEN_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
# Files so called must be images, so that a damaged one is named, and one of a kind that is not read, too.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".psd", ".svg", ".dng", ".dcm"),
}


@dataclass
class Walk:
    """What is below a folder.

    Attributes:
        images: Paths of image files relative to the folder, with "/".
        folders: Relative paths of all folders that are not hidden.
        passed_over: Reason -> how many.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def walk(folder: Path) -> Walk:
    """Returns what is below a folder, links followed.

    Raises:
        UserError: A folder may not be read, or a link leads back to a folder that it lies in.
    """
    found = Walk()
    waiting: list[tuple[Path, str, Above]] = [(folder, "", ())]
    while waiting:
        waiting += reversed(_visit(*waiting.pop(), found))
    return found


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is one that systems and tools leave behind."""
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES


def is_ours(folder: Path) -> bool:
    """Returns whether commands write their runs into a folder, or wrote a model: the images may lie beside it.

    A folder that may not be looked into is taken for none: whoever reads it names it.
    """
    try:
        for ours in (RESULTS, MODEL_DIR):  # These are there, and empty, before images are read.
            if folder.name == ours.name and ours.exists() and folder.samefile(ours):
                return True
        if folder.name == RESULTS.name and any(folder.glob("*/meta.json")):
            return True
        return any((folder / name).exists() for name in _MODEL_FILES)
    except PermissionError:
        return False


def looks_like_image(path: str) -> bool:
    """Returns whether a file's name or, where that says nothing, its first bytes are those of an image."""
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return starts_like_image(start)


def starts_like_image(start: bytes) -> bool:
    """Returns whether the first 16 bytes of a file are those of an image."""
    return (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
    )


def _visit(folder: Path, relative: str, above: Above, found: Walk) -> list[tuple[Path, str, Above]]:
    """Adds what is in a folder, and returns the folders in it with the same of them."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}). Change its permissions.") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise UserError(f"{folder} is a link to a folder that it lies in, an endless loop. Remove the link.")
    deeper = []
    for entry in entries:
        name = f"{relative}{entry.name}"
        if is_hidden(entry.name):
            found.passed_over[HIDDEN] += 1
            continue
        try:
            is_folder = entry.is_dir()
            if entry.is_symlink() and not is_folder:
                os.stat(entry.path)
        except FileNotFoundError:
            is_folder = False  # A link that leads nowhere is named as a broken image, if it is called like one.
        except OSError as error:
            raise UserError(f"{entry.path} cannot be read ({error.strerror}). Remove the link.") from error
        if is_folder and is_ours(Path(entry.path)):
            found.passed_over[OURS] += 1
        elif is_folder:
            found.folders.append(name)
            deeper.append((Path(entry.path), f"{name}/", (*above, identity)))
        elif (entry.is_symlink() or entry.is_file()) and looks_like_image(entry.path):  # A pipe has no end.
            found.images.append(name)
        else:
            found.passed_over[NO_IMAGES] += 1
    return deeper


def stem(path: str) -> str:
    """Returns a relative path's file name without its extension."""
    return os.path.splitext(path.rpartition("/")[2])[0]
