"""What makes a training step quick on a device: its precision and, on a GPU, a CUDA graph.

`accelerate` does not trust it: a step that cannot be captured, or that gives other gradients than the model itself, is
left as it is, with a warning. (On a CPU `torch.compile` gave less than `tuning.models.kernels` do, after a minute.)
"""

import functools
import time
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuning.training.depthwise import has_groups, quick_depthwise

# Of the gradient's norm. In bf16, computed another way, ResNet-8's differs by 0.011; on mirrored images by 0.46.
GREATEST_DEVIATION = 0.1


class Logits(nn.Module):
    """The logits of a model in a precision, as a step needs them: (N, C, H, W) -> float32 (N, n_classes)."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self._is_grouped = has_groups(model)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of normalised images."""
        device = images.device
        with autocast(device, self.precision), quick_depthwise(self._is_grouped, device, self.precision):
            logits: Tensor = self.model(images)[0]
        return logits.float()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the context in which a precision is used; a CUDA graph cannot have its cache of weights."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def accelerate(logits: Logits, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns what gives the same logits and gradients as `logits` in training, sooner, for batches of this size.

    On a GPU a small network waits for its kernels to be launched, so forward and backward pass are each captured as one
    CUDA graph, which takes a moment; each call writes its logits where those of the call before were. Weights, buffers
    and torch's random state are as before.

    Args:
        logits: In training mode, on a GPU.
        images: Normalised, (N, C, H, W), and not all alike.
    """
    before = {name: value.clone() for name, value in logits.state_dict().items()}
    buffers = [*logits.buffers()]
    try:
        forward = _captured(logits, images)
        if any(now is not then for now, then in zip(logits.buffers(), buffers, strict=True)):
            raise RuntimeError("the network assigns a buffer anew, and a graph always reads the first one")
        theirs, own = _gradient(logits, forward, images), _gradient(logits, logits, images)
        if not (deviation := float((theirs - own).norm() / own.norm())) <= GREATEST_DEVIATION:
            raise RuntimeError(f"its gradient differs by {deviation:.2g} of its norm")
    except Exception as error:  # Whatever the driver raises: it runs as well without.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"The step could not be captured and runs as it is: {reason}", stacklevel=2)
        forward = logits
    finally:
        logits.load_state_dict(before)
        logits.zero_grad(set_to_none=True)
    return forward


def _captured(logits: Logits, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the forward pass as a CUDA graph, with another one for its backward pass."""
    # The nodes that add up gradients are made while it captures, on a stream of its own, and torch warns of that.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    # Of the module that it is given torch replaces the forward method; other batch sizes still need that of `logits`.
    forward = Logits(logits.model, logits.precision)
    return cast(Callable[[Tensor], Tensor], torch.cuda.make_graphed_callables(forward, (images.clone(),)))


def _gradient(logits: Logits, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns the gradient of some loss by all weights, in one row, as a forward pass has it."""
    logits.zero_grad(set_to_none=True)
    scores = forward(images)
    functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device) % scores.shape[1]).backward()
    return torch.cat([p.grad.flatten() for p in logits.parameters() if p.grad is not None])


@functools.cache
def faster_precision(device_type: str) -> str:
    """Returns "bf16" where it is the faster one, else "fp32".

    A GPU is only asked whether it has bf16: timed beside other trials, an H200 said fp32 for a ResNet-18, at 0.6 times
    the speed. On a CPU a small convolution must run at least 1.15 times as fast in bf16; that is measured once a
    process, about 0.1 s. Where the instruction set has bf16 the ratio is well above (1.6 for ResNet-8 on two
    AVX512-bf16 cores), and where it has not well below 1: the answer does not change from run to run.
    """
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    device = torch.device(device_type)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        images = torch.rand(32, 32, 14, 14).to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)

        def seconds(precision: str) -> float:
            times = []
            for _ in range(8):
                start = time.process_time()
                with autocast(device, precision):
                    model(images).float().sum().backward()
                times.append(time.process_time() - start)
            return min(times)

        return "bf16" if seconds("fp32") / seconds("bf16") > 1.15 else "fp32"
