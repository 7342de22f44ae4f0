"""`DATASETS`: name -> a data set's classes, its files and where these may be had. Nothing is read or fetched here.

To add one, add an entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tuning.base.registries import Entry, Registry


@dataclass(frozen=True)
class FileSet:
    """The files of a data set and where they may be had.

    Attributes:
        sha256: File name without .gz -> SHA-256 of the uncompressed content.
        mirrors: URL prefixes, ending with "/", under which the gzipped files lie.
        system_dir: Where the Debian package puts the files when it is installed.
    """

    name: str
    sha256: Mapping[str, str]
    mirrors: tuple[str, ...] = ()
    debian_package: str | None = None
    system_dir: Path | None = None


@dataclass(frozen=True)
class Dataset(Entry):
    """A data set of four IDX files: its classes and where its images and labels are.

    Attributes:
        class_names: By label.
        files: Names, hashes and sources.
        train: Names of the image and the label file of the training images.
        test: The same for the test images.
        licence: Whose it is and how it may be used, for the model card.
    """

    class_names: tuple[str, ...] = field(kw_only=True)
    files: FileSet = field(kw_only=True)
    train: tuple[str, str] = field(kw_only=True)
    test: tuple[str, str] = field(kw_only=True)
    licence: str = field(kw_only=True)


DATASETS = Registry(
    "Data set",
    {
        "fashion-mnist": Dataset(
            "28 x 28 grey images of ten kinds of clothes, 60,000 to train on and 10,000 to test (Xiao et al. 2017)",
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            files=FileSet(
                name="fashion-mnist",
                sha256={
                    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                },
                mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
                debian_package="dataset-fashion-mnist",
                system_dir=Path("/usr/share/datasets/fashion-mnist"),
            ),
            train=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            test=("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
            licence="Fashion-MNIST: Xiao, Rasul and Vollgraf 2017, Zalando SE, MIT licence.",
        ),
    },
)
