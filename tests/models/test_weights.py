"""Weights that a network takes on whatever its buffers have become."""

import pytest
import torch
from torch import nn

from tuning.models.weights import load_weights


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        for name in ("longer", "typed", "gone", "late", "hidden"):
            self.register_buffer(name, None if name == "late" else torch.zeros(2), persistent=name != "hidden")


def test_buffers_get_the_shape_and_type_that_they_had() -> None:
    trained, network = Own(), Own()
    trained.longer, trained.typed = torch.ones(3), torch.ones(2, dtype=torch.int64)
    trained.gone, trained.late, trained.hidden = None, torch.ones(4), torch.ones(2)
    load_weights(network, trained.state_dict())
    for name in ("longer", "typed", "late"):
        assert torch.equal(getattr(network, name), getattr(trained, name)), name
    assert network.typed.dtype == torch.int64 and network.gone is None  # type: ignore[union-attr]
    assert network.hidden.tolist() == [0.0, 0.0]  # type: ignore[union-attr, operator]


def test_weights_of_another_network_are_refused() -> None:
    state = Own().state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for norm\.weight"):
        load_weights(Own(), state | {"norm.weight": torch.ones(3)})
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.running_mean"):
        load_weights(Own(), {name: value for name, value in state.items() if name != "norm.running_mean"})
