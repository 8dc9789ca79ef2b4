"""The forward pass of MiniCPM-SALA: everything is the reference's, but for what is between two residual streams.

    softmax attention:    x = x + s * (attention(q, k, v) * sigmoid(h W_gate^T)) W_o^T              no RoPE
    lightning attention:  x = x + s * (rms_norm(lightning(q, k, v)) * sigmoid(h W_z^T)) W_o^T,
                          q and k = rotate(rms_norm(...)) of each head

with h = rms_norm(x) and q, k, v = h W^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from quantkit.models.architectures._lightning import LightningSpec
from quantkit.models.spec import ModelSpec
from quantkit.runtimes.reference.formulas import rotate
from quantkit.runtimes.reference.forward import Batch, Span, Work
from quantkit.runtimes.reference.sala.lightning import Lightning
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.session import Attending, SparseForwardPass
from quantkit.runtimes.reference.weights import Weights


@dataclass(slots=True)
class Layers:
    """What each layer remembers of the one prompt that is read, by its number."""

    attention: dict[int, SparseAttention] = field(default_factory=dict)
    lightning: dict[int, Lightning] = field(default_factory=dict)


class SalaForwardPass(SparseForwardPass):
    """`SparseForwardPass` with both kinds of layers. layers: None where every prompt begins anew."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        work: Work,
        *,
        keep: bool,
        attending: Attending,
        layers: Layers | None,
    ) -> None:
        attention = None if layers is None else layers.attention
        super().__init__(spec, weights, work, keep=keep, attending=attending, layers=attention, last_only=False)
        assert spec.lightning is not None
        self._kind: LightningSpec = spec.lightning
        self._states = None if layers is None else layers.lightning

    def _add_attention(self, batches: Sequence[Batch], layer: int) -> None:
        """`ForwardPass._add_attention` by the kind of the layer."""
        linear = layer in self._kind.layers
        names = [f"self_attn.{name}_proj" for name in "qkvo"] + ["self_attn.z_proj" if linear else "self_attn.o_gate"]
        weight, W_q, W_k, W_v, W_o, W_gate = self._read(f"model.layers.{layer}", "input_layernorm", *names)
        norms = self._read(f"model.layers.{layer}.self_attn", "q_norm", "k_norm", "o_norm") if linear else []
        for batch in batches:
            h = batch.inputs(self._norm(batch.x, weight))
            qkv = [self._multiply(h, W) for W in (W_q, W_k, W_v)]
            mixed = []
            for span in batch.spans:
                own = [x[span.rows] for x in qkv]
                mixed.append(self._lightning(span, layer, own, norms) if linear else self._softmax(span, layer, own))
            gated = np.concatenate(mixed) * sigmoid(self._multiply(h, W_gate))
            batch.x = batch.x + self._s * self._multiply(batch.inputs(gated), W_o)

    def _softmax(self, span: Span, layer: int, qkv: Sequence[np.ndarray]) -> np.ndarray:
        """Sparse attention of one prompt to keys that are not turned, (T, H * D)."""
        unturned = replace(span, cos=np.ones_like(span.cos), sin=np.zeros_like(span.sin))
        return self._attention(unturned, layer, *qkv)

    def _lightning(self, span: Span, layer: int, qkv: Sequence[np.ndarray], norms: Sequence[np.ndarray]) -> np.ndarray:
        """Lightning attention of one prompt, normed, (T, H * D)."""
        q_norm, k_norm, o_norm = norms
        q, k, v = (x.reshape(len(x), self._kind.heads, -1).swapaxes(0, 1) for x in qkv)  # (H, T, D)
        q, k = (rotate(self._norm(x, norm), span.cos, span.sin) for x, norm in ((q, q_norm), (k, k_norm)))
        self._work.advance(0)
        return self._norm(self._state(layer).attend(q, k, v), o_norm)

    def _state(self, layer: int) -> Lightning:
        if self._states is None:
            return Lightning(self._kind.heads, self._kind.head_dim)
        return self._states.setdefault(layer, Lightning(self._kind.heads, self._kind.head_dim))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    shares: np.ndarray = np.float32(0.5) * (np.float32(1) + np.tanh(x * np.float32(0.5)))
    return shares
