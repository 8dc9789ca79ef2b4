"""A LongRoPE attention factor that the config names reaches every container, and the engine computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import InconsistentCheckpoint, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model

PAIRS = 16
INT4 = AffineGroups(bits=4, group_size=-1)
CONTAINERS: list[tuple[str, dict[str, str]]] = [
    ("hf", {"type": "f32"}), ("gguf", {"type": "f32"}), ("gguf", {}), ("compressed-tensors", {}), ("gptq", {}),
    ("awq", {}),
]  # fmt: skip
PROMPT = [1, 300, 400, 2041, 77, 1000, 5, 5, 90]


def model(more: dict[str, Any], *, quantized: bool = True, **changes: Any) -> Checkpoint:
    """A Llama whose context was extended fourfold, with the golden model's tokenizer."""
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1 + 0.1 * i for i in range(PAIRS)],
        "long_factor": [1 + 0.1 * i for i in range(PAIRS)],
        "original_max_position_embeddings": 1024,
        **more,
    }
    llama = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "scale_emb": None, "scale_depth": None,
        "dim_model_base": None, "tie_word_embeddings": False, "rope_scaling": scaling,
    }  # fmt: skip
    config = tiny_config(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=2, eos_token_id=[2, 2040],
        max_position_embeddings=4096, **{**llama, **changes},
    )  # fmt: skip
    golden = Path(__file__).resolve().parents[2] / "golden" / "model"
    files = {path.name: path.read_bytes() for path in golden.glob("*token*")}
    return quantized_model(config, linears(INT4) if quantized else lambda slot: None, files=files)


def written(checkpoint: Checkpoint, name: str, options: dict[str, str], out: Path) -> Path:
    planned = registry.exporter(name).prepare(checkpoint, ExportOptions(**options))
    return publish(planned, out / ("m" if planned.folder else "m.gguf")).path


def log_probs(runtime: str, path: Path) -> np.ndarray:
    with registry.runtime(runtime).open(path) as session:
        rows = session.logits(PROMPT).astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("more", [{"attention_factor": 1.0}, {"factor": 2.0}, {"factor": 32, "attention_factor": 1.3}])
@pytest.mark.parametrize(("name", "options"), CONTAINERS)
def test_every_container_reads_back_the_factor(
    name: str, options: dict[str, str], more: dict[str, Any], tmp_path: Path
) -> None:
    source = model(more)
    assert source.spec.explicit_attention_factor is not None
    found = registry.open_checkpoint(written(source, name, options, tmp_path)).spec.rope
    assert found.attention_factor == source.spec.rope.attention_factor


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        pytest.param("transformers", "hf", marks=pytest.mark.engine("transformers")),
        pytest.param("llama-cpp", "gguf", marks=pytest.mark.engine("llama-cpp")),
    ],
)
def test_engines_compute_with_the_factor(runtime: str, name: str, tmp_path: Path) -> None:
    """To float32 rounding; with the factor that the contexts make, the same engine is far away."""
    path = written(model({"attention_factor": 1.0}, quantized=False), name, {"type": "f32"}, tmp_path)
    found, wanted = log_probs(runtime, path), log_probs("reference", path)
    other = tmp_path / "other"
    other.mkdir()
    usual = log_probs("reference", written(model({}, quantized=False), name, {"type": "f32"}, other))
    assert np.abs(found - wanted).max() < 2e-5
    assert np.abs(found - usual).max() > 100 * np.abs(found - wanted).max()


def test_engines_that_ignore_it_refuse_it_by_name(tmp_path: Path) -> None:
    explicit = model({"attention_factor": 1.0})
    with pytest.raises(UnsupportedSpec, match=r"CPM\.cu ignores the attention factor 1 that the config names"):
        registry.exporter("marlin").prepare(explicit, ExportOptions())
    opened = registry.open_checkpoint(written(explicit, "hf", {}, tmp_path))
    assert "no attention factor, and the config says 1" in (registry.runtime("vllm").refuses(opened) or "")


def test_a_gguf_that_names_no_factor_is_read_as_the_engine_computes_it(tmp_path: Path) -> None:
    """llama.cpp multiplies by 1 then; a MiniCPM's config cannot say so, and such a file is refused."""
    llama = written(model({}, quantized=False), "gguf", {"type": "f32"}, tmp_path)
    unnamed = tmp_path / "unnamed.gguf"
    unnamed.write_bytes(renamed(llama.read_bytes(), b"llama"))
    assert registry.open_checkpoint(unnamed).spec.rope.attention_factor == 1.0
    native = model({}, quantized=False, architectures=["MiniCPMForCausalLM"], model_type="minicpm", scale_emb=12)
    (tmp_path / "native").mkdir()
    path = written(native, "gguf", {"type": "f32"}, tmp_path / "native")
    unnamed.write_bytes(renamed(path.read_bytes(), b"minicpm"))
    with pytest.raises(InconsistentCheckpoint, match="attn_factor is not there, which makes it 1"):
        registry.open_checkpoint(unnamed)


def renamed(data: bytes, arch: bytes) -> bytes:
    """A file without `rope.scaling.attn_factor` and `quantkit.config`: under other names, of no meaning to anybody."""
    for key in (arch + b".rope.scaling.attn_factor", b"quantkit.config"):
        assert data.count(key) == 1
        data = data.replace(key, b"x" * len(key))
    return data
