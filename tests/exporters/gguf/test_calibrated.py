"""`export gguf --algorithm calibrated`: llama.cpp's types, and codes that the solver chooses for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.calibration.samples import CalibrationOptions
from quantkit.cli.app import main
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.gguf.types.values import LAYOUTS
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from quantkit.tensors.views import QuantizedView
from quantkit.verification.metrics import compared
from quantkit.verification.proof import verify

CALIBRATED, REFERENCE = (BlockOptions(algorithm=name) for name in ("calibrated", "reference"))
FEW = QuantizeOptions(calibration=CalibrationOptions(sequences=6, length=64), fisher=True)


@pytest.fixture(scope="module")
def made(golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden model in both ways."""
    folder = tmp_path_factory.mktemp("calibrated")
    found = {"calibrated": folder / "calibrated.gguf", "reference": folder / "reference.gguf"}
    options = ExportOptions(type="q3_k_m", blocks=CALIBRATED)
    quantkit.export_calibrated("gguf", golden_model, found["calibrated"], options, FEW)
    quantkit.export("gguf", golden_model, found["reference"], ExportOptions(type="q3_k_m", blocks=REFERENCE))
    return found


def test_the_file_has_llama_cpps_types_and_lies_nearer_to_the_original(made, golden_model) -> None:
    files = {name: registry.open_checkpoint(path) for name, path in made.items()}
    kinds = {
        name: {weight.name: getattr(weight, "stored_as", None) for weight in one.weights.values()}
        for name, one in files.items()
    }
    odd = {name for name, kind in kinds["reference"].items() if kinds["calibrated"][name] != kind}
    assert all("ffn" in name or "v_proj" in name or "down" in name for name in odd), (
        "rules with importance differ there"
    )
    assert {kind for kind in kinds["calibrated"].values() if kind} <= {block.name.lower() for block in LAYOUTS}
    ids = [1, *(int(i) for i in np.arange(200) * 31 % 2000 + 3)]
    logits = {}
    for name, path in {"original": golden_model, **made}.items():
        with registry.runtime("reference").open(path) as session:
            logits[name] = session.logits(ids)
    kl = {name: compared(logits["original"], logits[name])[0].kl for name in made}
    assert kl["calibrated"] < 0.7 * kl["reference"]


def test_codes_come_back_as_the_run_made_them(made, golden_model) -> None:
    artifact = registry.open_checkpoint(made["calibrated"])
    views = [weight for weight in artifact.weights.values() if len(weight.shape) == 2]
    assert all(isinstance(view, QuantizedView) for view in views)
    report = verify(made["calibrated"], against=golden_model, engine="reference")
    assert report.passed


def test_what_is_not_a_run_of_its_own_is_refused(golden_model, tmp_path) -> None:
    dense = registry.open_checkpoint(golden_model)
    with pytest.raises(BadOption, match="is not quantized to"):
        registry.exporter("gguf").prepare(dense, ExportOptions(type="q4_k_m", blocks=CALIBRATED))
    with pytest.raises(BadOption, match="no types of its own"):
        quantkit.export_calibrated("hf", dense, tmp_path / "x", ExportOptions())
    with pytest.raises(BadOption, match="types that dense weights become"):
        quantkit.export_calibrated("gguf", dense, tmp_path / "x.gguf", ExportOptions())
    with pytest.raises(UnsupportedSpec, match="tq2_0 is not calibrated here"):
        quantkit.export_calibrated("gguf", dense, tmp_path / "x.gguf", ExportOptions(type="tq2_0", blocks=CALIBRATED))
    assert list(tmp_path.iterdir()) == []


def test_text_without_calibration_is_refused(golden_model, tmp_path, capsys) -> None:
    arguments = ["export", "gguf", str(golden_model), "--type", "q4_k_m", "--out", str(tmp_path / "x.gguf")]
    assert main([*arguments, "--calibration", "text.txt"]) == 2
    assert "--calibration is for --algorithm calibrated" in capsys.readouterr().err
    assert main([*arguments, "--samples", "8"]) == 2
    assert "--samples is for --algorithm calibrated" in capsys.readouterr().err


def test_codes_recorded_for_another_type_are_refused(made, tmp_path) -> None:
    data = made["calibrated"].read_bytes()
    wrong = data.replace(b'"bits":3,"group_size":16', b'"bits":2,"group_size":16')
    assert wrong != data
    path = tmp_path / "wrong.gguf"
    path.write_bytes(wrong)
    with pytest.raises(quantkit.QuantkitError, match="holds no such codes"):
        registry.open_checkpoint(path)
