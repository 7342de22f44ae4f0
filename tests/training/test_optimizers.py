"""`tuning.training.optimizers`: the contract of every optimizer by name, and what each one takes."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import OPTIMIZERS
from tuning.models.architectures import build_model, head_of
from tuning.models.frozen import freeze_body
from tuning.training.muon import SCALE, groups_of, orthogonal
from tuning.training.optimizers import make_optimizer

# Hyperparameters that only some optimizers use, and a value that is not the default.
OTHER: dict[str, object] = {"momentum": 0.0}


def steps(**values: object) -> list[float]:
    """Returns a weight after each of three steps along the same gradient."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.0)
    optimizer = make_optimizer(model, TrainConfig(**{"learning_rate": 0.1, **values}))  # type: ignore[arg-type]
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        model.weight.sum().backward()
        optimizer.step()
        found.append(model.weight.item())
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_down_the_gradient_by_the_learning_rate(name: str) -> None:
    first, second, third = steps(optimizer=name, weight_decay=0.0)
    assert 1 > first > second > third
    half, *_ = steps(optimizer=name, weight_decay=0.0, learning_rate=0.05)
    assert 1 - half == pytest.approx((1 - first) / 2, rel=1e-3)


@pytest.mark.parametrize("hyperparameter", OTHER)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_hyperparameter_changes_the_optimizers_that_use_it_and_no_others(name: str, hyperparameter: str) -> None:
    changes = steps(optimizer=name) != steps(optimizer=name, **{hyperparameter: OTHER[hyperparameter]})
    assert changes == (hyperparameter in OPTIMIZERS[name].uses)


def test_all_hyperparameters_that_only_some_optimizers_use_are_tried() -> None:
    assert {used for known in OPTIMIZERS.values() for used in known.uses} <= set(OTHER)


def test_an_optimizer_that_is_in_no_registry_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer must be one of .*sgd, but got 'adam'\. Did you mean 'adamw'\?"):
        make_optimizer(nn.Linear(1, 1), TrainConfig().model_copy(update={"optimizer": "adam"}))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("architecture", ["resnet8", "resnet18"])
def test_weight_decay_spares_biases_and_normalisation(optimizer: str, architecture: str) -> None:
    config = TrainConfig(
        architecture=architecture,
        width=4,
        optimizer=optimizer,
        learning_rate=0.1,
        weight_decay=0.5,
        momentum=0.0,
    )
    model = build_model(config, 1, 4)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, config).step()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    spared = {id(parameter) for module in norms for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        [value] = parameter.unique().tolist()
        assert value == 2.0 if id(parameter) in spared or name.endswith("bias") else value < 2.0, name


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_is_multiplied_by_the_learning_rate(name: str) -> None:
    model = nn.Linear(1, 1)
    before = model.weight.item()
    model.weight.grad = torch.zeros_like(model.weight)
    make_optimizer(model, TrainConfig(optimizer=name, learning_rate=0.1, momentum=0.0, weight_decay=0.5)).step()
    assert model.weight.item() == pytest.approx(0.95 * before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_body_may_learn_slower_than_the_head(name: str) -> None:
    config = TrainConfig(width=4, optimizer=name, learning_rate=0.2, body_lr_factor=0.1)
    model = build_model(config, 1, 4)
    optimizer = make_optimizer(model, config)
    assert optimizer.param_groups[0]["lr"] == 0.2  # What an epoch's result says.
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    head = {id(p) for p in head_of(model).parameters()}
    assert len(rates) == len(list(model.parameters()))
    for some, rate in ((head, 0.2), (rates.keys() - head, 0.02)):
        assert sorted({rates[p] for p in some}) == pytest.approx([rate / 10] * (name == "muon") + [rate])
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all((decays[id(p)] > 0) == (p.ndim > 1) for p in model.parameters())


def test_frozen_weights_are_left_out() -> None:
    model = build_model(config := TrainConfig(width=4), 1, 4)
    freeze_body(model)
    given = [p for group in make_optimizer(model, config).param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in head_of(model).parameters()}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd_takes_its_options_from_the_configuration(momentum: float, nesterov: bool) -> None:
    config = TrainConfig(width=4, momentum=momentum, learning_rate=0.3)
    optimizer = make_optimizer(build_model(config, 1, 4), config)
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["lr"]) == (momentum, nesterov, 0.3)


@pytest.mark.parametrize(("name", "theirs"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_steps_are_torchs_own(name: str, theirs: type[torch.optim.Optimizer]) -> None:
    config = TrainConfig(optimizer=name, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.01, learning_rate=0.1)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = make_optimizer(models[0], config)
    groups = [{"params": [models[1].weight]}, {"params": [models[1].bias], "weight_decay": 0.0}]
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    other = theirs(groups, lr=0.1, weight_decay=0.01, fused=True, **options)
    assert isinstance(ours, theirs)
    for _ in range(3):
        for model, optimizer in zip(models, (ours, other), strict=True):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    other.load_state_dict(ours.state_dict())
    assert str(other.state_dict()["state"]) == str(ours.state_dict()["state"])


def test_training_does_not_import_torchs_compiler() -> None:
    script = """
import sys, torch
from tuning.base.config import TrainConfig
from tuning.training.head_first import fit_head
from tuning.training.optimizers import make_optimizer
for name in ("sgd", "adamw", "muon"):
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name))
    optimizer.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
fit_head(model, torch.eye(3), torch.tensor([0, 1, 1]), None, 0.0)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout == "False\n"


def test_the_step_of_a_convolution_is_torchs_muon_of_the_flattened_filters() -> None:
    """torch computes in bf16, in which singular values near 1 differ in the third digit."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 8, 3, bias=False)
    flat = nn.Parameter(convolution.weight.detach().reshape(8, -1).clone())
    config = TrainConfig(optimizer="muon", learning_rate=0.5, momentum=0.9, weight_decay=0.01)
    model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(8, 2))
    model.head = model[2]  # type: ignore[assignment]
    ours = make_optimizer(model, config)
    # Theirs takes the mean of momentum and gradient, which is ours times a number that the iteration takes out.
    theirs = torch.optim.Muon(
        [flat], lr=0.05, weight_decay=0.1, momentum=0.9, ns_steps=3, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        grad = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(seed))
        convolution.weight.grad, flat.grad = grad, grad.reshape(8, -1).clone()
        before = convolution.weight.detach().clone()
        ours.step()
        theirs.step()
        step = (convolution.weight.detach() - before).norm()
        assert (convolution.weight.detach().reshape(8, -1) - flat.detach()).norm() < 0.05 * step


def test_orthogonal_steps_have_singular_values_near_one_whichever_side_is_longer() -> None:
    draw = torch.Generator().manual_seed(0)
    updates = [torch.randn(shape, generator=draw) for shape in ((8, 4, 3, 3), (8, 4, 3, 3), (64, 2, 1, 1))]
    for update, found in zip(updates, orthogonal(updates, steps=8), strict=True):
        assert found.shape == update.shape
        values = torch.linalg.svdvals(found.flatten(1)) / (SCALE * max(found.flatten(1).shape) ** 0.5)
        assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    ("shape", "orthogonal"),
    [
        ((8, 1, 3, 3), False),
        ((8,), False),
        ((8, 2, 3, 3), True),
        ((8, 2, 1, 1), True),
        ((8, 4), True),
        ((8, 3, 5), True),
    ],
)
def test_matrices_have_muon_and_depthwise_filters_sgd(shape: tuple[int, ...], orthogonal: bool) -> None:
    groups = groups_of([{"params": [nn.Parameter(torch.ones(shape))], "weight_decay": 0.0}], 0.1)
    assert [len(group["params"]) for group in groups] == [1 - orthogonal, orthogonal]


def test_the_last_layer_takes_an_orthogonal_step() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, TrainConfig(optimizer="muon", learning_rate=0.5, momentum=0.0, weight_decay=0.0))
    layer.weight.grad = torch.randn(3, 6)
    optimizer.step()
    step = before - layer.weight.detach()
    torch.testing.assert_close(step, 0.05 * orthogonal([layer.weight.grad])[0])
