"""Faults of the weights: rows, heads, matrices and layers that are not where they were, or not what they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.faults.fault import SUBTLE_WEIGHT_TRIALS, WEIGHT_TRIALS, Fault, Level, NotApplicable
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import BLOCKS, EMBEDDING, FINAL_NORM, Role, architecture
from quantkit.tensors.views import TensorView, Weight

LAYER_NAMES = architecture("minicpm").layer_names
"""Those of the golden models."""
Change = Callable[[Checkpoint], Checkpoint]


def of_layer(layer: int, role: Role) -> str:
    """The name of a weight."""
    return f"{BLOCKS}{layer}.{LAYER_NAMES[role]}"


def with_arrays(model: Checkpoint, arrays: Mapping[str, np.ndarray]) -> Checkpoint:
    """`model` with some weights replaced, each in the dtype that it had."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, values in arrays.items():
        view = weights[name]
        assert isinstance(view, TensorView)
        weights[name] = _in_memory(view, values.astype(view.dtype))
    return replace(model, weights=weights)


def _in_memory(view: TensorView, values: np.ndarray) -> TensorView:
    return TensorView(view.name, view.dtype, view.shape, lambda start, stop: np.ascontiguousarray(values[start:stop]))


def read(model: Checkpoint, name: str) -> np.ndarray:
    """A dense weight in float32."""
    view = model.weights[name]
    assert isinstance(view, TensorView)
    return np.asarray(view.read(), np.float32)


def one(role: Role, change: Callable[[np.ndarray], np.ndarray], layer: int = 1) -> Change:
    """One matrix of one layer changed."""

    def changed(model: Checkpoint) -> Checkpoint:
        name = of_layer(layer, role)
        return with_arrays(model, {name: change(read(model, name))})

    return changed


def embedding(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The embedding changed, which is the head as well where they are tied."""
    return lambda model: with_arrays(model, {EMBEDDING: change(read(model, EMBEDDING))})


def zero_attention(model: Checkpoint) -> Checkpoint:
    """One layer's attention adds nothing."""
    return one(Role.O, np.zeros_like, layer=1)(model)


def swap_query_heads(model: Checkpoint) -> Checkpoint:
    """Two query heads change places; the columns of o that read them do not."""
    width = model.spec.head_dim
    return one(Role.Q, lambda q: _swapped(q, width, 0, 1))(model)


def swap_key_heads(model: Checkpoint) -> Checkpoint:
    """Two key and value heads change places: every query reads what others should."""
    if model.spec.num_key_value_heads < 2:
        raise NotApplicable("one key head only")
    width = model.spec.head_dim
    names = [of_layer(1, role) for role in (Role.K, Role.V)]
    return with_arrays(model, {name: _swapped(read(model, name), width, 0, 1) for name in names})


def _swapped(rows: np.ndarray, width: int, first: int, second: int) -> np.ndarray:
    grid = rows.reshape(-1, width, rows.shape[1]).copy()
    grid[[first, second]] = grid[[second, first]]
    return grid.reshape(rows.shape)


def interleave(model: Checkpoint) -> Checkpoint:
    """Queries and keys of all layers in pairs, as ggml has them, where halves are meant."""
    half = model.spec.head_dim // 2
    arrays = {}
    for layer in range(model.spec.num_hidden_layers):
        for role in (Role.Q, Role.K):
            rows = read(model, of_layer(layer, role))
            grid = rows.reshape(-1, 2, half, rows.shape[1]).swapaxes(1, 2)
            arrays[of_layer(layer, role)] = grid.reshape(rows.shape)
    return with_arrays(model, arrays)


def exchange(first: tuple[int, Role], second: tuple[int, Role]) -> Change:
    """Two matrices of the same shape change places."""

    def changed(model: Checkpoint) -> Checkpoint:
        names = of_layer(*first), of_layer(*second)
        return with_arrays(model, {names[0]: read(model, names[1]), names[1]: read(model, names[0])})

    return changed


def exchange_layers(model: Checkpoint) -> Checkpoint:
    """Two layers change places."""
    pairs = [(of_layer(0, role), of_layer(1, role)) for role in LAYER_NAMES]
    return with_arrays(model, {a: read(model, b) for pair in pairs for a, b in (pair, pair[::-1])})


def repeat_layer(model: Checkpoint) -> Checkpoint:
    """One layer twice, the next one lost."""
    return with_arrays(model, {of_layer(1, role): read(model, of_layer(0, role)) for role in LAYER_NAMES})


def noisy(share: float) -> Change:
    """Every matrix of the layers with noise of `share` of its own spread."""

    def changed(model: Checkpoint) -> Checkpoint:
        random, arrays = np.random.default_rng(11), {}
        for layer in range(model.spec.num_hidden_layers):
            for role in model.spec.linear_roles:
                values = read(model, of_layer(layer, role))
                arrays[of_layer(layer, role)] = values + share * values.std() * random.standard_normal(values.shape)
        return with_arrays(model, arrays)

    return changed


def flip_column(values: np.ndarray) -> np.ndarray:
    """One input with the opposite sign."""
    changed = values.copy()
    changed[:, np.abs(values).sum(axis=0).argmax()] *= -1
    return changed


def flip_row(values: np.ndarray) -> np.ndarray:
    """One output with the opposite sign."""
    changed = values.copy()
    changed[np.abs(values).sum(axis=1).argmax()] *= -1
    return changed


def cut_tail(values: np.ndarray) -> np.ndarray:
    """The last eighth of the rows lost."""
    changed = values.copy()
    changed[len(values) * 7 // 8 :] = 0
    return changed


def clip_outliers(values: np.ndarray) -> np.ndarray:
    """No value beyond twice the spread."""
    return values.clip(-2 * values.std(), 2 * values.std())


def rounded_to_float8(values: np.ndarray) -> np.ndarray:
    """Three bits of mantissa are left."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 16) / 16, exponent)


def rows_rotated(values: np.ndarray) -> np.ndarray:
    """Every row one further."""
    return np.roll(values, 1, axis=0)


GROSS: Mapping[str, Change] = {
    "attention of one layer zeroed": zero_attention,
    "two query heads swapped": swap_query_heads,
    "two key-value heads swapped": swap_key_heads,
    "q and k in pairs instead of halves": interleave,
    "rows of q rotated by one": one(Role.Q, rows_rotated),
    "rows of v rotated by one": one(Role.V, rows_rotated),
    "columns of down rotated by one": one(Role.DOWN, lambda values: np.roll(values, 1, axis=1)),
    "o transposed": one(Role.O, np.transpose),
    "gate and up exchanged": exchange((1, Role.GATE), (1, Role.UP)),
    "k and v exchanged": exchange((1, Role.K), (1, Role.V)),
    "two layers exchanged": exchange_layers,
    "one layer repeated": repeat_layer,
    "a norm set to 1": one(Role.MLP_NORM, np.ones_like),
    "the final norm x 1.02": lambda model: with_arrays(model, {FINAL_NORM: read(model, FINAL_NORM) * 1.02}),
    "embedding rows shifted by one": embedding(rows_rotated),
    "embedding x 1.02": embedding(lambda values: values * 1.02),
    "the last eighth of up lost": one(Role.UP, cut_tail),
    "every matrix with 5 % noise": noisy(0.05),
}
SUBTLE: Mapping[str, Change] = {
    "one column of o negated": one(Role.O, flip_column),
    "one row of gate negated": one(Role.GATE, flip_row),
    "outliers of down clipped": one(Role.DOWN, clip_outliers),
    "v rounded to 3 bits of mantissa": one(Role.V, rounded_to_float8),
    "every matrix with 1 % noise": noisy(0.01),
    "two norms exchanged": exchange((1, Role.ATTN_NORM), (1, Role.MLP_NORM)),
    "two rows of the embedding swapped": embedding(lambda values: _swapped(values, 1, 100, 101)),
    "o x 1.01": one(Role.O, lambda values: values * 1.01),
}

FAULTS = tuple(
    Fault(name=name, kind="weights", level=Level.SOURCE, change=change, trials=trials)
    for changes, trials in ((GROSS, WEIGHT_TRIALS), (SUBTLE, SUBTLE_WEIGHT_TRIALS))
    for name, change in changes.items()
)
