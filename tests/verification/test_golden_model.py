"""The golden models in real engines: the figures that first light is judged by, asserted.

`benchmarks/first_light.py` prints them; here they must hold, at every position of every prompt. The calm model must
stay within fixed limits. The untuned one is as sensitive as other people's models, so the limits of half precision are
what its original shows with rounded inputs; its golden file is recorded by the tests.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.first_light import DTYPES, LIMITS, with_rounded_inputs
from golden.recipes import CALM, UNTUNED, Recipe
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.protocols import ExportOptions
from quantkit.registry import open_checkpoint
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.metrics import kl_divergence, max_abs_log_prob_difference, perplexity, top1_agreement
from quantkit.verification.prompts import default_prompts
from quantkit.verification.recording import record
from tests.support.runs import quantized
from tests.support.strings import STRINGS

RECIPES: dict[str, Recipe] = {"model": CALM, "untuned": UNTUNED}
ARCHITECTURES = ("native", "llama")
FACTOR = 2.0
"""How many times what rounded inputs do to the original an engine may do to the untuned model."""
SHORT, LONG = "code", "long"
"""Prompts on either side of the untuned model's original context."""


@pytest.fixture(scope="module", params=RECIPES)
def model(request: pytest.FixtureRequest, golden_model: Path) -> Path:
    return golden_model.parent / str(request.param)


@pytest.fixture(scope="module")
def golden(model: Path, golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    if model == golden_model:
        return read_golden(golden_model.parent / "golden.bin")
    checkpoint = open_checkpoint(model)
    prompts = default_prompts(open_tokenizer(checkpoint), max_tokens=checkpoint.spec.max_position_embeddings)
    return read_golden(publish(record(checkpoint, prompts), tmp_path_factory.mktemp("golden") / "golden.bin").path)


@pytest.fixture(scope="module")
def limits(model: Path, golden: Golden, golden_model: Path) -> dict[str, float]:
    """The largest move of a log-probability that an engine is allowed, by the type of the weights."""
    if model == golden_model:
        return LIMITS
    rounded = {kind: with_rounded_inputs(model, golden, dtype) for kind, dtype in DTYPES.items()}
    moved = {kind: max(map(max_abs_log_prob_difference, golden.logits, logits)) for kind, logits in rounded.items()}
    return LIMITS | {kind: FACTOR * move for kind, move in moved.items()}


def exported(model: Path, folder: Path, name: str, options: ExportOptions) -> Path:
    out = folder / ("model.gguf" if name == "gguf" else "model")
    publish(registry.exporter(name).prepare(open_checkpoint(model), options), out)
    return out


def differences(engine: str, path: Path, golden: Golden) -> list[tuple[float, float]]:
    """max |Δ log-prob| and top-1 agreement of every golden prompt."""
    with registry.runtime(engine).open(path) as session:
        pairs = [(wanted, session.logits(p.token_ids)) for p, wanted in zip(golden.prompts, golden.logits, strict=True)]
    return [(max_abs_log_prob_difference(p, q), top1_agreement(p, q)) for p, q in pairs]


def test_the_models_are_what_their_recipes_say(model):
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config == dict(RECIPES[model.name].config)
    assert len(list(model.glob("*.safetensors"))) == RECIPES[model.name].shards
    open_checkpoint(model)


def test_the_untuned_model_has_the_traps_that_the_calm_one_lacks(golden_model, untuned_model):
    calm, untuned = (open_checkpoint(path).spec for path in (golden_model, untuned_model))
    assert untuned.rope.short_factor != untuned.rope.long_factor
    assert untuned.rope.attention_factor > 1
    assert (untuned.rope.original_max_position_embeddings, untuned.max_position_embeddings) == (256, 1024)
    assert untuned.rope.theta != calm.rope.theta
    assert untuned.head_dim * untuned.num_attention_heads != untuned.hidden_size
    assert calm.tie_word_embeddings
    assert not untuned.tie_word_embeddings
    assert calm.eos_token_ids == untuned.eos_token_ids
    assert len(untuned.eos_token_ids) == 2
    assert sum(path.stat().st_size for path in untuned_model.glob("*.safetensors")) <= 5_000_000
    names = [path.name for path in golden_model.iterdir() if "token" in path.name]
    assert len(names) == 5
    for name in names:
        assert (untuned_model / name).read_bytes() == (golden_model / name).read_bytes()


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(
    "options",
    [ExportOptions(type=kind, arch=arch) for kind in LIMITS for arch in ARCHITECTURES],
    ids=lambda options: f"{options.type}-{options.arch}",
)
def test_dense_gguf_in_llama_cpp_predicts_what_the_original_predicts(model, golden, limits, tmp_path, options):
    path, kind = exported(model, tmp_path, "gguf", options), options.type
    for difference, top1 in differences("llama-cpp", path, golden):
        assert difference <= limits[kind]
        assert top1 == 1.0 or kind != "f32"  # half precision rounds so much that near ties fall either way


@pytest.mark.engine("transformers")
def test_the_folded_folder_in_transformers_predicts_what_the_original_predicts(model, golden, tmp_path):
    path = exported(model, tmp_path, "hf", ExportOptions(type="f32", arch="llama"))
    for difference, top1 in differences("transformers", path, golden):
        assert difference <= 1e-3
        assert top1 == 1.0


def test_the_reference_on_the_checkpoint_gives_the_golden_logits(model, golden):
    assert max(difference for difference, _ in differences("reference", model, golden)) <= 1e-4


def test_four_bits_hurt_the_model_as_they_hurt_others(model, golden):
    run = quantized(open_checkpoint(model), AffineGroups(bits=4, group_size=128), "rtn")
    logits = in_reference(run.checkpoint, golden)
    lost = kl_divergence(np.concatenate(golden.logits), np.concatenate(logits))
    assert 2e-3 < lost < 0.1


def in_reference(checkpoint: Checkpoint, golden: Golden) -> list[np.ndarray]:
    session = ReferenceSession(checkpoint)
    return [session.logits(prompt.token_ids) for prompt in golden.prompts]


@pytest.mark.parametrize(("prompt", "wrong"), [(SHORT, "long_factor"), (LONG, "short_factor")])
def test_the_untuned_model_learned_the_factors_of_both_sides(untuned_model, prompt, wrong):
    checkpoint = open_checkpoint(untuned_model)
    prompts = default_prompts(open_tokenizer(checkpoint), max_tokens=checkpoint.spec.max_position_embeddings)
    (ids,) = [given.token_ids for given in prompts if given.name == prompt]
    rope = checkpoint.spec.rope
    assert (len(ids) > rope.original_max_position_embeddings) == (prompt == LONG)
    factors = getattr(rope, wrong)
    swapped = replace(checkpoint.spec, rope=replace(rope, short_factor=factors, long_factor=factors))
    right, other = (ReferenceSession(replace(checkpoint, spec=spec)).logits(ids) for spec in (checkpoint.spec, swapped))
    assert max_abs_log_prob_difference(right, other) > 1
    assert perplexity(other, ids) > perplexity(right, ids)


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
def test_gguf_carries_the_codes_of_a_quantized_golden_model(model, tmp_path, symmetric):
    spec = AffineGroups(bits=4, group_size=128, symmetric=symmetric)
    run = quantized(open_checkpoint(model), spec, "rtn")
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
        scale = np.repeat(ours.scale.astype(np.float32), 128, axis=1)
        if symmetric:
            assert np.array_equal(theirs.dequantized(), scale * (ours.codes.astype(np.float32) - 8))
        else:  # the value of code 0 is stored, rounded to float16
            lowest = np.abs(scale * np.repeat(ours.zero.astype(np.float32), 128, axis=1))
            moved = np.abs(theirs.dequantized() - ours.dequantized())
            assert (moved <= 2.0**-11 * lowest + 2.0**-24).all()
        checked += 1
    assert checked == 7 * run.checkpoint.spec.num_hidden_layers


def test_folding_keeps_every_weight_but_the_scaled_ones(model):
    source = open_checkpoint(model)
    plain = folded(source)
    for slot in plain.spec.slots():
        factor = source.spec.fold_factor(slot.role)
        name = slot.name if slot.name in source.weights else "model.embed_tokens.weight"
        view, original = plain.weights[slot.name], source.weights[name]
        assert isinstance(view, TensorView)
        assert isinstance(original, TensorView)
        expected = original.read().astype(np.float32) * np.float32(factor)
        assert np.array_equal(view.read().astype(np.float32), expected), slot.name
