"""Depthwise convolutions in bf16 on a CPU: forward as autocast has them, backward in fp32, which is quicker there.

oneDNN has quick bf16 kernels for all of a MobileNet, an EfficientNet or a ConvNeXt but for the gradients of its
depthwise convolutions, which took three quarters of a step. tests/benchmarks/training.py has the figures.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def has_groups(model: nn.Module) -> bool:
    """Returns whether a model has convolutions in groups; a depthwise one has a group a channel."""
    return any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())


def quick_depthwise(grouped: bool, device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which a forward pass prepares the quicker backward pass; it may change nothing.

    Args:
        grouped: What `has_groups` says of the model.
        device: Where the images are.
        precision: "bf16" or "fp32".
    """
    return _Mode() if grouped and device.type == "cpu" and precision == "bf16" else contextlib.nullcontext()


class _Mode(TorchFunctionMode):
    """Replaces each call of `conv2d` that is depthwise and needs a gradient, whatever module makes it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is functional.conv2d and torch.is_grad_enabled():
            call: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            call |= dict(zip(_ARGUMENTS, args, strict=False)) | given
            if 1 < call["groups"] == call["input"].shape[1] and not isinstance(call["padding"], str):
                how = (_pair(call["stride"]), _pair(call["padding"]), _pair(call["dilation"]), call["groups"])
                return _Depthwise.apply(call["input"], call["weight"], call["bias"], how)
        return func(*args, **given)


class _Depthwise(torch.autograd.Function):
    """A convolution of bf16 images (N, C, H, W) whose gradients are computed in fp32."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        """Returns it in bf16."""
        images = images.bfloat16()
        ctx.save_for_backward(images, weight)
        ctx.how, ctx.bias_sizes = how, None if bias is None else list(bias.shape)
        return torch.conv2d(images, weight.bfloat16(), None if bias is None else bias.bfloat16(), *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients by images, weight and bias, in fp32."""
        images, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        wanted = list(ctx.needs_input_grad[:3])
        convolution_backward = cast(Callable[..., Any], torch.ops.aten.convolution_backward)
        # What is not wanted is None, and autograd casts the others to the types of what they belong to.
        by = convolution_backward(
            gradients[0].float(), images.float(), weight.float(), ctx.bias_sizes, stride, padding, dilation, False,
            [0, 0], groups, wanted,
        )  # fmt: skip
        return (*by, None)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
