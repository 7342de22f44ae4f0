"""The plain loop to compare with: torchvision's data set, `ToTensor`, `DataLoader`, fp32, as tutorials have it."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import VisionDataset
from torchvision.transforms import ToTensor

from tuning.base.config import TrainConfig
from tuning.images.datasets import Labelled
from tuning.models.architectures import build_model


class ItemByItem(VisionDataset):
    """Labelled images as torchvision's `FashionMNIST` hands them out: each through PIL, then through `ToTensor`."""

    def __init__(self, part: Labelled) -> None:
        super().__init__("", transform=ToTensor())
        self._images, self._labels = torch.tensor(part.images[:, 0]), torch.tensor(part.labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self._images[index].numpy())), int(self._labels[index])


def plain_model(config: TrainConfig) -> torch.nn.Module:
    """Returns the configuration's network in torch's own memory format."""
    return build_model(config, channels=1, n_classes=10).to(memory_format=torch.contiguous_format)


def plain_epoch(model: torch.nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> Iterator[int]:
    """Trains an epoch as tutorials do, in fp32, counting loss and hits at each step; yields the size of each batch."""
    model.train()
    total_loss, n_right = 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad()
        logits, _ = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(labels)
        n_right += (logits.argmax(1) == labels).sum().item()
        yield len(labels)
