"""`tuning.models.kernels`: they are compiled once, and used only where they give what torch gives."""

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tuning.base.config import TrainConfig
from tuning.models import kernels, norm, shortcut
from tuning.models.architectures import build_model
from tuning.models.kernels import trusted
from tuning.models.norm import Norm

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    trusted.cache_clear()
    yield
    trusted.cache_clear()
    torch.set_num_threads(n)


def test_without_a_compiler_torch_does_it_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert trusted(torch.float32, norm.deviation) is None
    x = torch.randn(4, 16, 6, 6).to(memory_format=torch.channels_last)
    y = Norm(16)(x, relu=True)
    assert type(y.grad_fn).__name__ == "ReluBackward0"


@needs_compiler
@pytest.mark.parametrize(
    ("deviation", "text", "other", "message"),
    [
        (norm.deviation, "void norm_forward(", "void (", "says .*kernels.c:"),
        (norm.deviation, "void norm_forward(", "void another(", "undefined symbol: norm_forward"),
        (norm.deviation, "second[c] * inverse[c];", "second[c];", r"its results differ by \d"),
        (norm.deviation, "grad_bias[c] = first[c];", "grad_bias[c] = NAN;", "its results differ by nan"),
        (norm.deviation, "value < 0 ? 0", "value < 0 ? 1", r"its results differ by \d"),
        (norm.deviation, "mean[c] = running_mean[c];", "mean[c] = 0;", r"its results differ by \d"),
        (shortcut.deviation, " + wide(half[j])", "", r"its results differ by \d"),
    ],
    ids=["does not compile", "lacks a function", "gradient", "nan", "value", "evaluation", "shortcut"],
)
def test_what_cannot_be_compiled_or_gives_other_numbers_is_not_used(
    deviation: Callable[..., float],
    text: str,
    other: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = kernels.SOURCE.read_text()
    assert text in source
    (tmp_path / "kernels.c").write_text(source.replace(text, other))
    monkeypatch.setattr(kernels, "SOURCE", tmp_path / "kernels.c")
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match=f"^kernels.c could not be used, and training is slower for it: .*{message}"):
        assert trusted(torch.float32, deviation) is None


@needs_compiler
@pytest.mark.parametrize("dtype", list(kernels.DEFINES))
@pytest.mark.parametrize("deviation", [norm.deviation, shortcut.deviation])
def test_they_can_be_asked_for_first_where_nothing_is_differentiated(
    deviation: Callable[..., float], dtype: torch.dtype
) -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert trusted(dtype, deviation) is not None


@needs_compiler
def test_it_is_compiled_once_a_source_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path))
    times = []
    for _ in range(2):
        assert isinstance(trusted(torch.bfloat16, norm.deviation), ctypes.CDLL)
        trusted.cache_clear()
        [made] = (tmp_path / "kernels").iterdir()
        times.append(made.stat().st_mtime_ns)
    assert times[0] == times[1]
    monkeypatch.setattr(kernels.machine, "instruction_set", lambda: "another")
    assert trusted(torch.bfloat16, norm.deviation) is not None
    assert {path.name for path in (tmp_path / "kernels").iterdir()} > {made.name}


@needs_compiler
@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_model_is_exported_in_torchs_own_operations(with_gradients: bool) -> None:
    model = build_model(TrainConfig(architecture="resnet8"), channels=1, n_classes=4)
    images = torch.randn(4, 1, 12, 12)
    with torch.set_grad_enabled(with_gradients):
        exported = torch.export.export(model.train(with_gradients), (images,), strict=False)
        torch.testing.assert_close(exported.module()(images)[0], model(images)[0])
    assert trusted(torch.float32, norm.deviation) is not None
    assert trusted(torch.float32, shortcut.deviation) is not None
