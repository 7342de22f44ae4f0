"""The exported models give the model's probabilities; what cannot be exported is said before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_predict import write_model

from tuning import export
from tuning.errors import UserError
from tuning.predict import load_best_model, probabilities

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 10, 8), dtype=np.uint8)
# What torch's exporters warn of in their own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.slow
@pytest.mark.parametrize("flip_averaging", [False, True])
@pytest.mark.parametrize("name", export.FORMATS)
def test_each_format_gives_the_models_probabilities(tmp_path: Path, name: str, flip_averaging: bool) -> None:
    folder = write_model(tmp_path, flip_averaging=flip_averaging)
    [line] = export.export(folder, [name], IMAGES)
    assert line.startswith(f"Exported: {folder}/model.{name}; run on 20 images")
    assert (folder / f"model.{name}").stat().st_size > 10_000


@pytest.mark.slow
def test_an_onnx_file_is_run_without_torch_or_this_project(tmp_path: Path) -> None:
    import onnxruntime

    folder = write_model(tmp_path)
    export.export(folder, ["onnx"], IMAGES)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(["probabilities"], {"images": IMAGES[:7]})
    assert found == pytest.approx(probabilities(load_best_model(folder), IMAGES[:7]), abs=1e-5)


def test_an_export_that_differs_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(best: Any, path: Path, example: Any) -> Any:
        path.write_text("a model")
        return lambda images: probabilities(best, images) + 0.01

    monkeypatch.setitem(export.FORMATS, "pt2", (wrong, ()))
    with pytest.raises(UserError, match=r"--export pt2 must give the model's probabilities to 0.0001, but got 0\.01"):
        export.export(write_model(tmp_path), ["pt2"], IMAGES)
    assert not (tmp_path / "model.pt2").exists()


def test_an_unknown_format_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--export must be one of onnx, pt2, safetensors, but got 'onx'. Did you mean"):
        export.check_formats(["onx"])
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    export.check_formats(["safetensors", "pt2"])
    with pytest.raises(
        UserError, match=r"--export onnx must have .* none of the name 'onnxruntime'\. Run `python -m pip"
    ):
        export.check_formats(["onnx"])
