"""MiniCPM3 in GGUF: keys and tensors as gguf-py reads them, back again, refusals, and llama.cpp's own numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.errors import QuantkitError, UnsupportedModel, UnsupportedSpec
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.families.latent import FIXED_SCALARS
from quantkit.models.architectures.minicpm3 import with_shared_eps
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from tests.support.gguf_models import EXPORTER, theirs, write
from tests.support.latent_definition import FACTORS, TINY, latent_arrays, latent_logits, write_latent
from tests.support.memory import memory_checkpoint

IDS = [1, *(int(i) for i in np.random.default_rng(0).integers(3, 2000, 40))]


def latent(files: dict[str, bytes] | None = None, **changes: Any) -> Checkpoint:
    config = {**TINY, **changes}
    return memory_checkpoint(config, latent_arrays(config), files=files)


def test_keys_and_tensors_are_llama_cpps(tmp_path: Path) -> None:
    source = latent()
    keys, tensors = theirs(write(source, tmp_path / "m.gguf", "f32"))
    expected = {
        "general.architecture": "minicpm3",
        "minicpm3.block_count": 3,
        "minicpm3.attention.head_count": 8,
        "minicpm3.attention.head_count_kv": 8,
        "minicpm3.attention.q_lora_rank": 768,
        "minicpm3.attention.kv_lora_rank": 256,
        "minicpm3.attention.key_length": 96,
        "minicpm3.attention.value_length": 64,
        "minicpm3.rope.dimension_count": 32,
        "minicpm3.rope.scaling.type": "longrope",
        "minicpm3.rope.scaling.original_context_length": 1024,
    }
    assert {key: keys[key] for key in expected} == expected
    assert not [key for key in keys if key.endswith(("embedding_scale", "residual_scale", "logit_scale"))]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MINICPM3, 3)
    for name, weight in source.weights.items():
        mapped = known.get_name(name.removesuffix(".weight")) + ".weight"
        np.testing.assert_array_equal(tensors.pop(mapped), weight.read(), err_msg=name)
    assert sorted(tensors) == ["rope_factors_long.weight", "rope_factors_short.weight"]
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.float32(FACTORS))


@pytest.mark.parametrize("changes", [{}, {"v_head_dim": 32, "tie_word_embeddings": False}, {"rope_scaling": None}])
def test_what_was_written_is_read_with_the_norms_that_the_engine_computes(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    source = latent(**changes)
    back = EXPORTER.read(write(source, tmp_path / "m.gguf", "f32"))
    assert back.spec == with_shared_eps(source.spec)
    assert any("adds 1e-05 in the norms of latent attention" in note for note in back.notes)
    for name, weight in source.weights.items():
        np.testing.assert_array_equal(back.weights[name].read(), weight.read())


def stranger(
    path: Path, out: Path, drop: tuple[str, ...] = ("quantkit.config",), extra: str | None = None, **changes: int
) -> Path:
    """The same file by gguf-py, without some keys, with others changed, and one that it had not."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "minicpm3")
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.architecture")) or name in drop:
            continue
        kind = field.types[0]
        value = changes.get(name.removeprefix("minicpm3.").replace(".", "_"), field.contents())
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    if extra is not None:
        writer.add_float32(extra, 12.0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_file_of_another_writer_is_the_same_model(tmp_path: Path) -> None:
    source = latent()
    path = write(source, tmp_path / "m.gguf", "f16")
    drop = ("quantkit.config", "minicpm3.attention.value_length")  # llama.cpp's converter writes neither
    back = EXPORTER.read(stranger(path, tmp_path / "s.gguf", drop))
    unsaid = {"bos_token_id": back.spec.bos_token_id, "eos_token_ids": back.spec.eos_token_ids}
    rope = replace(source.spec.rope, short_factor=back.spec.rope.short_factor, long_factor=back.spec.rope.long_factor)
    assert back.spec == replace(
        with_shared_eps(source.spec),
        **unsaid,
        rope=rope,
        residual_scale=back.spec.residual_scale,  # type: ignore[arg-type]
    )
    assert back.spec.residual_scale == pytest.approx(source.spec.residual_scale, rel=1e-7)
    np.testing.assert_allclose(back.spec.rope.short_factor, FACTORS, rtol=1e-7)


@pytest.mark.parametrize(
    ("drop", "changes", "complaint"),
    [
        (("quantkit.config", "minicpm3.attention.kv_lora_rank"), {}, "kv_lora_rank' is missing"),
        (("quantkit.config", "minicpm3.attention.key_length"), {}, "key_length' is missing"),
        ((), {"attention_kv_lora_rank": 128}, "says latent"),
        (("quantkit.config",), {"attention_kv_lora_rank": 128}, "is .*the metadata makes it"),
        (("quantkit.config",), {"attention_q_lora_rank": 256}, "is .*the metadata makes it"),
        (("quantkit.config",), {"rope_dimension_count": 96}, "is no part of attention.key_length 96"),
        (("quantkit.config",), {"rope_dimension_count": 64}, "rope_factors_long"),
        (("quantkit.config",), {"attention_head_count_kv": 2}, "num_key_value_heads 2"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(
    drop: tuple[str, ...], changes: dict[str, int], complaint: str, tmp_path: Path
) -> None:
    path = write(latent(), tmp_path / "m.gguf", "f16")
    with pytest.raises(QuantkitError, match=complaint):
        EXPORTER.read(stranger(path, tmp_path / "s.gguf", drop, **changes))


@pytest.mark.parametrize("key", FIXED_SCALARS)
def test_scalars_that_the_graph_does_not_have_are_refused_by_name(key: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpec, match=f"{key} is .* whatever a file says") as refusal:
        write(latent(**{key: 2.0}), tmp_path / "m.gguf", "f16")
    assert "hf" in (refusal.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_no_llama_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="latent attention") as refusal:
        write(latent(), tmp_path / "m.gguf", "f16", arch="llama")
    assert "without --arch llama" in (refusal.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write(latent(), tmp_path / "m.gguf", "f16")
    with pytest.raises(UnsupportedModel, match=r"'minicpm3\.embedding_scale' is not understood"):
        EXPORTER.read(stranger(path, tmp_path / "s.gguf", extra="minicpm3.embedding_scale"))


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False, "v_head_dim": 32}, {"rope_scaling": None, "rope_theta": 5e4}]
)
def test_llama_cpp_computes_the_formulas_to_a_thousandth(
    changes: dict[str, Any], tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    source = latent(tokenizer_files, **changes)
    path = write(source, tmp_path / "m.gguf", "f32")
    with registry.runtime("reference").open(path) as session:
        ours = session.logits(IDS)
    with registry.runtime("llama-cpp").open(path) as session:
        found = session.logits(IDS)
    assert np.abs(found - ours).max() <= 1e-3
    assert np.abs(found - ours).max() <= 1e-5 * np.ptp(ours), "what float32 explains"
    config = {**TINY, **changes}
    wanted = latent_logits(config, latent_arrays(config), IDS[:12], norm_eps=1e-5)
    assert np.abs(found[:12] - wanted).max() <= 1e-5 * np.ptp(ours)


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_adds_the_epsilon_of_all_norms_in_those_of_latents(
    tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    """Measured: with small latents it lies at these formulas, and a hundred times as far from the original's."""
    arrays = {name: v * np.float32(0.03 if "_a_proj" in name else 1) for name, v in latent_arrays(TINY).items()}
    path = write(memory_checkpoint(TINY, arrays, files=tokenizer_files), tmp_path / "m.gguf", "f32")
    with registry.runtime("llama-cpp").open(path) as session:
        found = session.logits(IDS[:12])
    apart = {eps: np.abs(found - latent_logits(TINY, arrays, IDS[:12], norm_eps=eps)).max() for eps in (1e-5, 1e-6)}
    assert apart[1e-5] < 1e-5 * np.ptp(found)
    assert apart[1e-6] > 100 * apart[1e-5]


@pytest.mark.engine("llama-cpp")
def test_a_file_is_verified_in_llama_cpp(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    source = write_latent(tmp_path / "m", files=tokenizer_files)
    options = ExportOptions(type="q4_k_m", blocks=BlockOptions(algorithm="reference"))
    quantkit.export("gguf", source, tmp_path / "m.gguf", options)
    report = quantkit.verify(tmp_path / "m.gguf", against=source, engine="llama-cpp", prompts=4)
    assert report.passed, report
    assert any("norms of latent attention" in note for note in report.notes)


def test_types_of_q4_k_m_are_llama_quantizes(tmp_path: Path) -> None:
    """As `python -m benchmarks.gguf_files` has found them: kv_b counts as values, of which the third has more bits."""
    file = write(latent(), tmp_path / "m.gguf", "q4_k_m")
    kinds = {name: info.type.name for name, info in read_gguf(file).tensors.items() if ".attn" in name}
    assert [kinds[f"blk.{layer}.attn_kv_b.weight"] for layer in range(3)] == ["Q4_K", "Q4_K", "Q6_K"]
    others = {kind for name, kind in kinds.items() if "kv_b" not in name and "norm" not in name}
    assert others == {"Q4_K"}
