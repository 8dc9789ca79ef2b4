"""The golden model in real engines: the figures that first light is judged by, asserted.

`benchmarks/first_light.py` prints them; here they must hold, at every position of every prompt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.folding import folded
from quantkit.protocols import ExportOptions
from quantkit.registry import open_checkpoint
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.metrics import max_abs_log_prob_difference, top1_agreement
from tests.support.runs import quantized
from tests.support.strings import STRINGS

LIMITS = {"f32": 1e-3, "f16": 5e-3, "bf16": 2e-2}


@pytest.fixture(scope="module")
def golden(golden_model: Path) -> Golden:
    return read_golden(golden_model.parent / "golden.bin")


def exported(golden_model: Path, folder: Path, name: str, options: ExportOptions) -> Path:
    out = folder / ("model.gguf" if name == "gguf" else "model")
    publish(registry.exporter(name).prepare(open_checkpoint(golden_model), options), out)
    return out


def differences(engine: str, path: Path, golden: Golden) -> list[tuple[float, float]]:
    """max |Δ log-prob| and top-1 agreement of every golden prompt."""
    with registry.runtime(engine).open(path) as session:
        pairs = [(wanted, session.logits(p.token_ids)) for p, wanted in zip(golden.prompts, golden.logits, strict=True)]
    return [(max_abs_log_prob_difference(p, q), top1_agreement(p, q)) for p, q in pairs]


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("kind", LIMITS)
def test_dense_gguf_in_llama_cpp_predicts_what_the_original_predicts(golden_model, golden, tmp_path, kind, arch):
    path = exported(golden_model, tmp_path, "gguf", ExportOptions(type=kind, arch=arch))
    for difference, top1 in differences("llama-cpp", path, golden):
        assert difference <= LIMITS[kind]
        assert top1 == 1.0 or kind == "bf16"  # it rounds so much that near ties fall either way


@pytest.mark.engine("transformers")
def test_the_folded_folder_in_transformers_predicts_what_the_original_predicts(golden_model, golden, tmp_path):
    path = exported(golden_model, tmp_path, "hf", ExportOptions(type="f32", arch="llama"))
    for difference, top1 in differences("transformers", path, golden):
        assert difference <= 1e-3
        assert top1 == 1.0


def test_the_reference_on_the_checkpoint_gives_the_golden_logits(golden_model, golden):
    assert max(difference for difference, _ in differences("reference", golden_model, golden)) <= 1e-4


@pytest.mark.engine("llama-cpp")
def test_the_tokenizer_inside_the_gguf_gives_the_ids_of_the_hugging_face_tokenizer(golden_model, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the Hugging Face tokenizer is what is compared with")
    fast = tokenizers.Tokenizer.from_file(str(golden_model / "tokenizer.json"))
    path = exported(golden_model, tmp_path, "gguf", ExportOptions(type="q8_0"))
    assert len(STRINGS) >= 200
    with registry.runtime("llama-cpp").open(path) as session:
        for text in STRINGS:
            wanted = fast.encode(text, add_special_tokens=True).ids
            assert session.tokenize(text, add_special=True, parse_special=True) == wanted, repr(text)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gguf_carries_the_codes_of_a_quantized_golden_model(golden_model, tmp_path, symmetric):
    spec = AffineGroups(bits=4, group_size=128, symmetric=symmetric)
    run = quantized(open_checkpoint(golden_model), spec, "rtn")
    kind = "q4_0" if symmetric else "q4_1"
    out = tmp_path / "model.gguf"
    publish(registry.exporter("gguf").prepare(run.checkpoint, ExportOptions(type=kind)), out)
    back = open_checkpoint(out)
    checked = 0
    for name, view in run.checkpoint.weights.items():
        if not isinstance(view, QuantizedView):
            continue
        ours = view.read()
        read = back.weights[name]
        assert isinstance(read, QuantizedView)
        theirs = read.read()
        assert np.array_equal(theirs.codes, ours.codes)
        assert theirs.scale.tobytes() == ours.scale.tobytes()
        assert np.array_equal(theirs.zero, ours.zero)
        if symmetric:
            product = np.repeat(ours.scale.astype(np.float32), 128, axis=1) * (ours.codes.astype(np.float32) - 8)
            assert np.array_equal(theirs.dequantized(), product)
        checked += 1
    assert checked == 35


def test_folding_keeps_every_weight_but_the_scaled_ones(golden_model):
    source = open_checkpoint(golden_model)
    plain = folded(source)
    for slot in plain.spec.slots():
        factor = source.spec.fold_factor(slot.role)
        name = slot.name if slot.name in source.weights else "model.embed_tokens.weight"
        view, original = plain.weights[slot.name], source.weights[name]
        assert isinstance(view, TensorView)
        assert isinstance(original, TensorView)
        expected = original.read().astype(np.float32) * np.float32(factor)
        assert np.array_equal(view.read().astype(np.float32), expected), slot.name
