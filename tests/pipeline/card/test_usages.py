"""What a card says of engines is run as it stands there, where the engine is here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import quantkit
from quantkit import registry


@pytest.fixture(scope="module")
def quantized(golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "int4"
    scheme = quantkit.AffineGroups(bits=4, group_size=128)
    quantkit.quantize(golden_model, out, quantkit.QuantizeOptions(method="rtn", scheme=scheme), arch="llama")
    return out


@pytest.mark.parametrize(
    ("container", "title"),
    [
        pytest.param("compressed-tensors", "transformers", marks=pytest.mark.engine("transformers")),
        pytest.param("onnx", "onnxruntime-genai", marks=pytest.mark.engine("onnxruntime-genai")),
        pytest.param("openvino", "OpenVINO GenAI", marks=pytest.mark.engine("openvino")),
    ],
)
def test_lines_of_python_run(
    container: str, title: str, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if container == "openvino":
        pytest.importorskip("openvino_genai")
    folder = tmp_path / "out"
    quantkit.export(container, quantized, folder)
    lines = re.search(rf"\n{title}[^\n]*:\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    exec(lines[1].replace("FOLDER", str(folder)), {})
    assert len(capsys.readouterr().out.strip()) > 20


def test_every_engine_has_a_title_and_says_how_it_is_started_or_is_no_program() -> None:
    """Kernels that belong to a library for programmers have nothing to type."""
    kernels = {kernel.name: kernel for name in registry.names("exporters") for kernel in registry.kernels(name)}
    model = registry.open_checkpoint(Path(__file__).resolve().parents[3] / "golden" / "model")
    silent = {name for name, kernel in kernels.items() if not kernel.usage(model)}  # type: ignore[attr-defined]
    assert silent == {"onnxruntime", "cpm.cu", "ist-marlin"}
