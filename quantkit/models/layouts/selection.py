"""Which tensors of the files are the model's: exactly those that its config asks for, with their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, UnsupportedModel, and_more
from quantkit.models.spec import BLOCKS, EMBEDDING, HEAD, ModelSpec, Role, TensorSlot
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.views import TensorView, Weight

_COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Tables that old checkpoints carry and that the config determines."""

AnyWeight = TypeVar("AnyWeight", bound=Weight)


def select_weights(tensors: Mapping[str, AnyWeight], spec: ModelSpec, where: str) -> dict[str, AnyWeight]:
    """Exactly the tensors of `spec.slots()`, in that order.

    Left out are tables that the config determines (`rotary_emb.*`), and a head that repeats the tied embedding byte
    for byte (the only case in which tensor data is read).

    Raises:
        IncompleteCheckpoint: a tensor is missing.
        InconsistentCheckpoint: a wrong shape, a tensor that the model does not have, or a tied head that differs.
        UnsupportedModel: a dense weight that is not F32, F16 or BF16.
    """
    slots = {slot.name: slot for slot in spec.slots()}
    missing = [name for name in slots if name not in tensors]
    if missing:
        head_only = '; config.json may lack "tie_word_embeddings": true' if missing == [HEAD] else ""
        raise IncompleteCheckpoint(
            f"{where}: tensor {missing[0]!r}{and_more(missing)} is missing", hint=f"download the whole model{head_only}"
        )
    for slot in slots.values():
        _check_weight(tensors[slot.name], slot, where)
    for name in tensors:
        if name not in slots and not name.endswith(_COMPUTED):
            _check_surplus(name, tensors, spec, where)
    return {name: tensors[name] for name in slots}


def _check_weight(weight: Weight, slot: TensorSlot, where: str) -> None:
    if weight.shape != slot.shape:
        raise InconsistentCheckpoint(
            f"{where}: tensor {slot.name!r} is {_spelled(weight.shape)}, config.json makes it {_spelled(slot.shape)}",
            hint="config.json and the weights are of different models" + _vocabulary_hint(slot),
        )
    if isinstance(weight, TensorView) and weight.dtype not in FLOATS.values():
        raise UnsupportedModel(
            f"{where}: tensor {slot.name!r} is {weight.dtype}; dense weights must be float32, float16 or bfloat16"
        )


def _vocabulary_hint(slot: TensorSlot) -> str:
    return " (vocab_size against the rows of the embedding)" if slot.role in (Role.EMBED, Role.LM_HEAD) else ""


def _spelled(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _check_surplus(name: str, tensors: Mapping[str, Weight], spec: ModelSpec, where: str) -> None:
    """A tensor that no slot asks for: fine only as the copy of a tied embedding."""
    if name == HEAD and spec.tie_word_embeddings:
        if not same_values(tensors[EMBEDDING], tensors[HEAD]):
            raise InconsistentCheckpoint(
                f"{where}: config.json ties the embeddings, but {HEAD!r} differs from {EMBEDDING!r}",
                hint='say "tie_word_embeddings": false in config.json if the head is meant to be its own',
            )
        return
    layer = name.removeprefix(BLOCKS).split(".")[0]
    if name.startswith(BLOCKS) and layer.isdecimal() and int(layer) >= spec.num_hidden_layers:
        raise InconsistentCheckpoint(
            f"{where}: tensor {name!r} belongs to layer {layer}, config.json has {spec.num_hidden_layers} layers",
            hint="mend num_hidden_layers in config.json",
        )
    raise InconsistentCheckpoint(
        f"{where}: tensor {name!r} is not part of such a model",
        hint="config.json and the weights are of different models",
    )


def same_values(one: Weight, other: Weight) -> bool:
    """Whether two dense tensors are equal byte for byte, read in chunks."""
    if not isinstance(one, TensorView) or not isinstance(other, TensorView):
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(one.chunks(), other.chunks(), strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)
