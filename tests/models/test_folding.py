"""Folding: the plain Llama computes the same logits, and what cannot be folded without loss is said or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantkit.errors import BadOption, NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded, with_architecture, with_source_dtypes
from quantkit.models.recognition import parse_config
from quantkit.models.spec import Role
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.codebook import Codebook
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.schemes.super_blocks import SuperBlocks
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.quantized_models import BF16, linears, quantized_model

TIED, UNTIED = tiny_config(), tiny_config(tie_word_embeddings=False)
Q, O = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight"  # noqa: E741
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def quantized(config: dict[str, object]) -> Checkpoint:
    """A model whose linear layers are random int4."""
    return quantized_model(config, linears(AffineGroups(bits=4, group_size=32)))


def with_dense(checkpoint: Checkpoint, name: str, values: np.ndarray) -> Checkpoint:
    view = TensorView(name, values.dtype, values.shape, lambda start, stop: values[start:stop])
    return replace(checkpoint, weights={**checkpoint.weights, name: view})


def with_scale(checkpoint: Checkpoint, name: str, value: float) -> Checkpoint:
    """`checkpoint` with `value` as the scale of row 2, group 1 of a quantized weight."""
    view = checkpoint.weights[name]
    assert isinstance(view, QuantizedView)
    tensor = view.read()
    scale = tensor.scale.copy()
    scale[2, 1] = value
    other = replace(tensor, arrays={**tensor.arrays, "scale": scale})
    return replace(checkpoint, weights={**checkpoint.weights, name: replace(view, read=lambda: other)})


def logits(checkpoint: Checkpoint) -> np.ndarray:
    """Float32 logits [T, V] by the torch module over float32 weights."""
    torch = pytest.importorskip("torch")
    from quantkit.models.torch_model import MiniCPM  # noqa: PLC0415 - imports torch

    module = MiniCPM(checkpoint.spec).eval()
    weights = {
        name: view.read().dequantized() if isinstance(view, QuantizedView) else view.read().astype(np.float32)
        for name, view in checkpoint.weights.items()
    }
    module.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    with torch.no_grad():
        found: np.ndarray = module(torch.tensor([[1, 7, 42, 5, 90, 33, 2, 64]]))[0].numpy()
    return found


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_the_folded_llama_computes_the_same_logits_to_float32_rounding(config: dict[str, object]) -> None:
    checkpoint = memory_checkpoint(config)
    wanted, found = logits(checkpoint), logits(folded(checkpoint))
    assert np.abs(found - wanted).max() < 32 * np.finfo(np.float32).eps * np.abs(wanted).max()
    ranks = np.argsort(wanted[-1])
    assert wanted[-1][ranks[-1]] - wanted[-1][ranks[0]] > 1, "flat logits would prove nothing"


def test_a_folded_quantized_model_computes_the_same_logits_to_float32_rounding() -> None:
    checkpoint = quantized(TIED)
    wanted, found = logits(checkpoint), logits(folded(checkpoint))
    assert np.abs(found - wanted).max() < 32 * np.finfo(np.float32).eps * np.abs(wanted).max()


def test_a_folded_checkpoint_is_a_llama_that_its_own_config_describes() -> None:
    llama = folded(memory_checkpoint(TIED))
    assert parse_config(llama.config) == llama.spec == memory_checkpoint(TIED).spec.folded()
    assert list(llama.weights) == [slot.name for slot in llama.spec.slots()]
    assert all(view.name == name for name, view in llama.weights.items())
    assert not {"scale_emb", "scale_depth", "dim_model_base", "auto_map"} & set(llama.config)


def test_dense_weights_are_multiplied_in_float32_and_the_others_left_alone() -> None:
    checkpoint = memory_checkpoint(TIED, random_arrays(parse_config(TIED), dtype=BF16))
    llama = folded(checkpoint)
    wide = {name: view.read().astype(np.float32) for name, view in checkpoint.weights.items()}
    stream = 1 / (1.4 / np.sqrt(3))  # 1.4 / sqrt(3) = 0.81 is nearest to 1
    for name, factor in {EMBEDDING: np.float32(12 * stream), HEAD: np.float32(0.25)}.items():
        found = llama.weights[name].read()
        assert found.dtype == np.float32
        assert np.array_equal(found, wide[EMBEDDING if name == HEAD else name] * factor)
    for name in (Q, O):
        assert llama.weights[name].dtype == BF16
        assert np.array_equal(llama.weights[name].read(), checkpoint.weights[name].read())
    part = llama.weights[EMBEDDING].fetch(3, 5)
    assert np.array_equal(part, llama.weights[EMBEDDING].read()[3:5])


def test_the_tie_stays_where_both_ends_need_the_same_factor() -> None:
    llama = folded(memory_checkpoint(tiny_config(scale_emb=0.25, scale_depth=np.sqrt(3))))
    assert llama.spec.tie_word_embeddings
    assert HEAD not in llama.weights


@pytest.mark.parametrize("depth", [0.7, 1.0, 1.4, 3.0])
def test_quantized_layers_keep_codes_and_every_bit_of_their_scales(depth: float) -> None:
    checkpoint = quantized(tiny_config(scale_depth=depth))
    llama = folded(checkpoint)
    assert llama.notes == ()
    factor = 2.0 ** round(np.log2(depth / np.sqrt(3)))
    before, after = checkpoint.weights[O].read(), llama.weights[O].read()
    assert np.array_equal(after.codes, before.codes)
    assert np.array_equal(after.zero, before.zero)
    assert np.array_equal(after.scale.astype(np.float64), before.scale.astype(np.float64) * factor)
    assert np.array_equal(llama.weights[Q].read().scale, checkpoint.weights[Q].read().scale)


SCHEMES: list[Scheme] = [
    OffsetGroups(bits=4, group_size=32),
    SuperBlocks(bits=4, group_size=32, scale_bits=6, minima=True),
    SuperBlocks(bits=6, group_size=16, scale_bits=8, minima=False),
    Codebook(table="fp4", powers=True, scale_dtype="float32"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme_folds_with_all_that_its_weights_grow_with(scheme: Scheme) -> None:
    """A stored offset or minimum is multiplied as the scale is."""
    checkpoint = memory_checkpoint(tiny_config(hidden_size=256, dim_model_base=64, scale_depth=3.0))
    view = checkpoint.weights[O]
    rng = np.random.default_rng(0)
    tensor = round_to_nearest((rng.standard_normal(view.shape) + 0.5).astype(np.float32), scheme)
    source = QuantizedView(O, tensor.shape, scheme, lambda: tensor)
    llama = folded(replace(checkpoint, weights={**checkpoint.weights, O: source}))
    factor = checkpoint.spec.fold_factor(Role.O)
    assert factor != 1
    after = llama.weights[O].read()
    assert np.array_equal(after.dequantized(), np.float32(factor) * tensor.dequantized())


def test_powers_of_two_are_not_multiplied_by_what_is_none() -> None:
    checkpoint = memory_checkpoint(tiny_config(scale_emb=12))
    scheme = Codebook(table="fp4", powers=True, scale_dtype="float32")
    tensor = round_to_nearest(checkpoint.weights[EMBEDDING].read().astype(np.float32), scheme)
    source = QuantizedView(EMBEDDING, tensor.shape, scheme, lambda: tensor)
    llama = folded(replace(checkpoint, weights={**checkpoint.weights, EMBEDDING: source}))
    with pytest.raises(UnsupportedSpec, match=rf"^{EMBEDDING}: times .* no power of two"):
        llama.weights[EMBEDDING].read()


def test_a_quantized_embedding_folds_into_its_scales_rounded_once_and_says_so() -> None:
    checkpoint = quantized_model(
        TIED, lambda slot: AffineGroups(bits=4, group_size=32) if slot.name == EMBEDDING else None
    )
    llama = folded(checkpoint)
    before, after = checkpoint.weights[EMBEDDING].read(), llama.weights[EMBEDDING].read()
    assert np.array_equal(after.codes, before.codes)
    exact = before.scale.astype(np.float64) * (12 / (1.4 / np.sqrt(3)))
    half_ulp = np.spacing(after.scale).astype(np.float64) / 2
    assert (np.abs(after.scale.astype(np.float64) - exact) <= half_ulp * (1 + 1e-6)).all()
    (note,) = llama.notes
    assert "1 quantized tensor" in note
    assert "--arch llama" in note


@pytest.mark.parametrize(("value", "depth"), [(60000.0, 3.0), (6e-8, 0.5)], ids=["overflow", "underflow"])
def test_a_scale_that_leaves_float16_is_refused_by_tensor_and_place(value: float, depth: float) -> None:
    llama = folded(with_scale(quantized(tiny_config(scale_depth=depth)), O, value))
    with pytest.raises(
        ValueOutOfRange, match=rf"^{O}: scale .* of row 2, group 1 times .* does not fit float16"
    ) as error:
        llama.weights[O].read()
    assert "--arch llama" in str(error.value.hint)


def test_a_scale_of_zero_stays_zero() -> None:
    llama = folded(with_scale(quantized(TIED), O, 0.0))
    assert llama.weights[O].read().scale[2, 1] == 0


def test_a_weight_that_is_not_finite_or_grows_beyond_float32_is_refused_by_name() -> None:
    values = memory_checkpoint(UNTIED).weights[EMBEDDING].read()
    for value, error in ((np.nan, NonFiniteValues), (np.inf, NonFiniteValues), (3e38, ValueOutOfRange)):
        values[5, 5] = value
        llama = folded(with_dense(memory_checkpoint(UNTIED), EMBEDDING, values))
        with pytest.raises(error, match=EMBEDDING):
            llama.weights[EMBEDDING].read()


def test_dense_weights_go_back_to_the_dtypes_that_the_source_has_them_in() -> None:
    checkpoint = memory_checkpoint(TIED, random_arrays(parse_config(TIED), dtype=BF16))
    narrow = with_source_dtypes(folded(checkpoint), checkpoint)
    wide = folded(checkpoint)
    assert {view.dtype for view in narrow.weights.values()} == {BF16}
    for name, view in narrow.weights.items():
        assert np.array_equal(view.read(), wide.weights[name].read().astype(BF16))
    assert np.array_equal(narrow.weights[HEAD].fetch(90, 97), narrow.weights[HEAD].read()[90:97])


def test_a_folded_weight_beyond_the_dtype_of_the_source_is_refused_by_name_and_index() -> None:
    values = np.zeros((97, 64), np.float16)
    values[90, 3] = 60000
    checkpoint = with_dense(memory_checkpoint(UNTIED), EMBEDDING, values)
    narrow = with_source_dtypes(folded(checkpoint), checkpoint)
    with pytest.raises(ValueOutOfRange, match=rf"{EMBEDDING}.* at flat index {90 * 64 + 3:,}"):
        narrow.weights[EMBEDDING].fetch(80, 97)


def test_folding_reads_no_tensor() -> None:
    def unreadable(*_: int) -> np.ndarray:
        raise AssertionError("a tensor was read")

    checkpoint = memory_checkpoint(TIED)
    views = {name: replace(view, fetch=unreadable) for name, view in checkpoint.weights.items()}
    llama = folded(replace(checkpoint, weights=views))
    with pytest.raises(AssertionError, match="was read"):
        llama.weights[EMBEDDING].read()


def test_a_llama_folds_to_itself_and_an_unknown_architecture_is_refused() -> None:
    llama = folded(memory_checkpoint(TIED))
    assert folded(llama) is llama
    assert with_architecture(llama, "llama") is llama
    checkpoint = memory_checkpoint(TIED)
    assert with_architecture(checkpoint, "native") is checkpoint
    assert with_architecture(checkpoint, "llama").spec.architecture == "llama"
    with pytest.raises(BadOption, match="unknown architecture 'qwen'"):
        with_architecture(checkpoint, "qwen")
