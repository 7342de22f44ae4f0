"""`DATASETS`: name -> a data set's classes, its files and where these may be had. Nothing is read or fetched here.

To add one, add an entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuning.base.registries import Entry, Registry


@dataclass(frozen=True)
class FileSet:
    """The IDX files of a data set and where they may be had.

    Attributes:
        sha256: File name without .gz -> SHA-256 of the uncompressed content.
        train: Names of the image and the label file of the training images.
        test: The same for the test images.
        mirrors: URL prefixes, ending with "/", under which the gzipped files lie.
        system_dir: Where the Debian package puts the files when it is installed.
    """

    name: str
    sha256: Mapping[str, str]
    train: tuple[str, str] = ("", "")
    test: tuple[str, str] = ("", "")
    mirrors: tuple[str, ...] = ()
    debian_package: str | None = None
    system_dir: Path | None = None


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set that a class of `torchvision.datasets` reads; it knows the URLs and the checksums.

    Attributes:
        name: Of the class.
        train: Its arguments for the training images.
        test: The same for the test images.
        members: The files of its archive that are read, as a pattern; "" unpacks all.
        is_transposed: The class returns images with rows and columns exchanged.
    """

    name: str
    train: Mapping[str, Any] = field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = field(default_factory=lambda: {"train": False})
    members: str = ""
    is_transposed: bool = False


@dataclass(frozen=True)
class Dataset(Entry):
    """A data set with a name: its classes and where its images and labels are.

    Attributes:
        class_names: By label.
        files: Names, hashes and sources, or the class of torchvision that has these.
        licence: Whose it is and how it may be used, for the model card.
    """

    class_names: tuple[str, ...] = field(kw_only=True)
    files: FileSet | TorchvisionSet = field(kw_only=True)
    licence: str = field(kw_only=True)


DIGITS = tuple("0123456789")
CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


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
                train=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
                test=("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
                mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
                debian_package="dataset-fashion-mnist",
                system_dir=Path("/usr/share/datasets/fashion-mnist"),
            ),
            licence="Fashion-MNIST: Xiao, Rasul and Vollgraf 2017, Zalando SE, MIT licence.",
        ),
        "mnist": Dataset(
            "28 x 28 grey images of handwritten digits, 60,000 to train on and 10,000 to test (LeCun et al. 1998)",
            class_names=DIGITS,
            files=TorchvisionSet("MNIST"),
            licence="MNIST: LeCun, Cortes and Burges 1998, from NIST's databases, CC BY-SA 3.0.",
        ),
        "kmnist": Dataset(
            "28 x 28 grey images of ten cursive Japanese characters, 60,000 and 10,000 (Clanuwat et al. 2018)",
            class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            files=TorchvisionSet("KMNIST"),
            licence="KMNIST: Clanuwat et al. 2018, adapted from the Kuzushiji dataset of NIJL and CODH, CC BY-SA 4.0.",
        ),
        "emnist-balanced": Dataset(
            "28 x 28 grey images of handwritten digits and letters, 47 classes, 112,800 and 18,800 (Cohen et al. 2017)",
            class_names=(*DIGITS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abdefghnqrt"),
            files=TorchvisionSet(
                "EMNIST",
                train={"split": "balanced", "train": True},
                test={"split": "balanced", "train": False},
                members="emnist-balanced-*.gz",
                is_transposed=True,
            ),
            licence="EMNIST: Cohen, Afshar, Tapson and van Schaik 2017, from NIST Special Database 19; see its source.",
        ),
        "cifar10": Dataset(
            "32 x 32 colour photos of ten kinds of things, 50,000 to train on and 10,000 to test (Krizhevsky 2009)",
            class_names=(
                *("airplane", "automobile", "bird", "cat", "deer"),
                *("dog", "frog", "horse", "ship", "truck"),
            ),
            files=TorchvisionSet("CIFAR10"),
            licence="CIFAR-10: Krizhevsky 2009, University of Toronto; it names no licence, and asks to be cited.",
        ),
        "cifar100": Dataset(
            "the same of a hundred kinds of things, 50,000 and 10,000 (Krizhevsky 2009)",
            class_names=tuple(CIFAR100.split()),
            files=TorchvisionSet("CIFAR100"),
            licence="CIFAR-100: Krizhevsky 2009, University of Toronto; it names no licence, and asks to be cited.",
        ),
        "svhn": Dataset(
            "32 x 32 colour photos of house numbers, a digit each, 73,257 and 26,032 (Netzer et al. 2011)",
            class_names=DIGITS,
            files=TorchvisionSet("SVHN", train={"split": "train"}, test={"split": "test"}),
            licence="SVHN: Netzer et al. 2011, Stanford University and Google, for non-commercial use only.",
        ),
    },
)
