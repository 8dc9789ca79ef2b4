"""Every type of RoPE reaches every container, and engines compute with it; what one cannot hold, it refuses by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.inspection import inspection
from quantkit.protocols import ExportOptions
from tests.exporters.test_attention_factor import CONTAINERS, log_probs, model, written

ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 64}
TYPES: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64},
    "yarn, no amplitude": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64, "attention_factor": 1.0},
    "dynamic": {"type": "dynamic", "factor": 4.0},
}
MINICPM = {
    "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4,
    "dim_model_base": 64,
}  # fmt: skip
MINICPM_2B_128K = {**MINICPM, "rope_scaling": TYPES["dynamic"], "rope_theta": 1e6, "num_key_value_heads": 4}


@pytest.mark.parametrize("scaling", TYPES.values(), ids=TYPES.keys())
@pytest.mark.parametrize(("name", "options"), CONTAINERS)
def test_every_container_gives_the_rope_back(
    name: str, options: dict[str, str], scaling: dict[str, Any], tmp_path: Path
) -> None:
    source = model({}, rope_scaling=scaling)
    assert registry.open_checkpoint(written(source, name, options, tmp_path)).spec == source.spec


@pytest.mark.parametrize("scaling", TYPES.values(), ids=TYPES.keys())
@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        pytest.param("transformers", "hf", marks=pytest.mark.engine("transformers")),
        pytest.param("llama-cpp", "gguf", marks=pytest.mark.engine("llama-cpp")),
    ],
)
def test_engines_compute_with_it(runtime: str, name: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    """To float32 rounding; with plain RoPE, which dynamic NTK is within the context, the same engine is far away."""
    path = written(model({}, quantized=False, rope_scaling=scaling), name, {"type": "f32"}, tmp_path)
    found, wanted = log_probs(runtime, path), log_probs("reference", path)
    (tmp_path / "plain").mkdir()
    plain = model({}, quantized=False, rope_scaling=None)
    usual = log_probs("reference", written(plain, name, {"type": "f32"}, tmp_path / "plain"))
    assert np.abs(found - wanted).max() < 2e-5
    if scaling["type" if "type" in scaling else "rope_type"] == "dynamic":
        assert np.array_equal(wanted, usual)
    else:
        assert np.abs(found - usual).max() > 100 * np.abs(found - wanted).max()


@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize(("name", "options"), CONTAINERS)
def test_a_minicpm_2b_128k_lies_in_every_container(
    name: str, options: dict[str, str], arch: str, tmp_path: Path
) -> None:
    source = model({}, **MINICPM_2B_128K)
    path = written(source, name, {**options, "arch": arch}, tmp_path)
    found = registry.open_checkpoint(path)
    assert found.spec == (source.spec if arch == "native" else source.spec.folded())
    assert found.spec.rope.kind == "dynamic"
    assert inspection(found).facts["rope"] == "theta 1e+06, dynamic NTK by 4 beyond 4096 tokens"
    if path.is_dir():
        config = json.loads((path / "config.json").read_text())
        assert config["rope_scaling"] == {"rope_type": "dynamic", "factor": 4.0}


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_runs_a_minicpm_2b_128k_within_its_context(tmp_path: Path) -> None:
    source = model({}, quantized=False, **MINICPM_2B_128K)
    planned = registry.exporter("gguf").prepare(source, ExportOptions(type="f32"))
    assert any("no dynamic NTK: the file is right up to 4096 tokens" in note for note in planned.notes)
    path = written(source, "gguf", {"type": "f32"}, tmp_path)
    assert read_gguf(path).metadata["minicpm.context_length"] == 4096
    assert not any("rope.scaling" in key for key in read_gguf(path).metadata)
    assert np.abs(log_probs("llama-cpp", path) - log_probs("reference", path)).max() < 2e-5


def test_cpm_cu_refuses_dynamic_ntk_by_name() -> None:
    with pytest.raises(UnsupportedSpec, match=r"CPM\.cu .* has no dynamic NTK") as refusal:
        registry.exporter("marlin").prepare(model({}, **MINICPM_2B_128K), ExportOptions())
    assert "context of 4096" in (refusal.value.hint or "")


def test_a_gguf_whose_keys_say_another_base_than_its_config_is_still_refused(tmp_path: Path) -> None:
    """Leniency towards what the keys cannot say must not hide what they say wrong."""
    path = written(model({}, quantized=False, **MINICPM_2B_128K), "gguf", {"type": "f32"}, tmp_path)
    data = path.read_bytes()
    spoilt = tmp_path / "spoilt.gguf"
    for old, new in (
        (b'"rope_theta":1000000.0', b'"rope_theta":1000001.5'),
        (b'"max_position_embeddings":4096', b'"max_position_embeddings":4097'),
    ):
        assert data.count(old) == 1
        spoilt.write_bytes(data.replace(old, new))
        with pytest.raises(InconsistentCheckpoint, match="the other keys say"):
            registry.open_checkpoint(spoilt)
