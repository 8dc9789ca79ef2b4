"""Decoder graphs made with the package `onnx` alone: by its helper, from a checkpoint in memory.

Contrib operators (MatMulNBits, GroupQueryAttention, GatherBlockQuantized) or ONNX's own; weights inside the file or
beside it. Quantized weights are packed here by `packed`, which quantkit's exporter has no part in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import QuantizedView

NARROW = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}
CONTRIB = "com.microsoft"


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., n * bits / 8] of codes [..., n], the first in the lowest bits; the last byte is filled up."""
    each = 8 // bits
    padded = np.concatenate([codes, np.zeros((*codes.shape[:-1], -codes.shape[-1] % each), np.uint8)], -1)
    parts = padded.reshape(*padded.shape[:-1], -1, each)
    return sum(parts[..., i] << np.uint8(bits * i) for i in range(each)).astype(np.uint8)


class Graph:
    """Nodes and initializers; `node` gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(
        self, op: str, *inputs: str, name: str | None = None, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        names = list(outputs) or [name or f"v{len(self.nodes)}"]
        domain = CONTRIB if op in ("MatMulNBits", "GroupQueryAttention", "GatherBlockQuantized") else None
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def constant(self, values: np.ndarray | Sequence[int] | float, name: str | None = None) -> str:
        if not isinstance(values, np.ndarray):
            values = np.float32(values) if isinstance(values, float) else np.array(values, np.int64)
        name = name or f"c{len(self.initializers)}"
        self.initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


class Decoder(Graph):
    """See the module; `element` is the float dtype that it computes in."""

    def __init__(self, checkpoint: Checkpoint, *, contrib: bool, element: type, level: int) -> None:
        super().__init__()
        self.checkpoint, self.spec = checkpoint, checkpoint.spec
        self.contrib, self.element, self.level = contrib, element, level
        self.memo: dict[str, str] = {}

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, self.element))

    def dense(self, name: str, *, turned: bool = False) -> str:
        view = self.checkpoint.weights[name]
        values = view.read().dequantized() if isinstance(view, QuantizedView) else view.read()
        values = values.astype(self.element)
        return self.constant(np.ascontiguousarray(values.T) if turned else values, name + (".T" if turned else ""))

    def linear(self, x: str, name: str) -> str:
        view = self.checkpoint.weights[name]
        if not isinstance(view, QuantizedView):
            return self.node("MatMul", x, self.dense(name, turned=True))
        tensor = view.read()
        return self.contrib_linear(x, name, tensor) if self.contrib else self.standard_linear(x, name, tensor)

    def contrib_linear(self, x: str, name: str, tensor: QuantizedTensor) -> str:
        (N, K), bits = tensor.shape, tensor.scheme.bits
        block = K // tensor.scale.shape[1]
        B = packed(tensor.codes.reshape(N, -1, block), bits)
        inputs = [self.constant(B, f"{name}.codes"), self.constant(tensor.scale.astype(self.element), f"{name}.scales")]
        if not tensor.scheme.symmetric:
            inputs.append(self.constant(packed(tensor.zero, bits), f"{name}.zeros"))
        sizes = {"N": N, "K": K, "bits": bits, "block_size": block, "accuracy_level": self.level}
        return self.node("MatMulNBits", x, *inputs, **sizes)

    def standard_linear(self, x: str, name: str, tensor: QuantizedTensor) -> str:
        narrow = NARROW[tensor.scheme.bits]
        arrays = (tensor.codes.astype(narrow), tensor.scale.astype(self.element), tensor.zero.astype(narrow))
        parts = [
            self.constant(np.ascontiguousarray(values.T), f"{name}.{part}")
            for part, values in zip(("codes", "scales", "zeros"), arrays, strict=True)
        ]
        block = tensor.shape[1] // tensor.scale.shape[1]
        return self.node("MatMul", x, self.node("DequantizeLinear", *parts, axis=0, block_size=block))

    def norm(self, x: str, name: str, output: str | None = None) -> str:
        square = self.node("Pow", x, self.scalar(2.0))
        mean = self.node("ReduceMean", square, self.constant([-1]), keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.scalar(self.spec.rms_norm_eps)))
        return self.node("Mul", self.node("Div", x, root), self.dense(name), name=output)

    def embedding(self) -> str:
        view = self.checkpoint.weights["model.embed_tokens.weight"]
        if not isinstance(view, QuantizedView) or not self.contrib:
            rows = self.node("Gather", self.dense(view.name), "input_ids", axis=0)
        else:
            tensor, bits = view.read(), view.scheme.bits
            codes = self.constant(packed(tensor.codes, bits), "rows")
            scales = self.constant(tensor.scale.astype(self.element), "rows.scales")
            zeros = [] if tensor.scheme.symmetric else [self.constant(packed(tensor.zero, bits), "rows.zeros")]
            sizes = {"bits": bits, "block_size": tensor.shape[1] // tensor.scale.shape[1]}
            axes = {"gather_axis": 0, "quantize_axis": 1}
            rows = self.node("GatherBlockQuantized", codes, "input_ids", scales, *zeros, **sizes, **axes)
        return self.node("Mul", rows, self.scalar(self.spec.scale_emb), name="embedding")

    def tables(self) -> tuple[str, str]:
        """cos and sin [context, D / 2] of plain RoPE."""
        if not self.memo:
            spec = self.spec
            powers = np.arange(0, spec.head_dim, 2) / spec.head_dim
            angles = np.arange(spec.max_position_embeddings)[:, None] * spec.rope.theta**-powers
            self.memo["cos"] = self.constant(np.cos(angles).astype(self.element), "cos")
            self.memo["sin"] = self.constant(np.sin(angles).astype(self.element), "sin")
        return self.memo["cos"], self.memo["sin"]

    def group_query_attention(self, layer: int, q: str, k: str, v: str) -> str:
        if "last" not in self.memo:
            self.tables()
            lengths = self.node("ReduceSum", "attention_mask", self.constant([1]), keepdims=0)
            self.memo["last"] = self.node("Cast", self.node("Sub", lengths, self.constant([1])), to=TensorProto.INT32)
            total = self.node("Gather", self.node("Shape", "attention_mask"), self.constant(np.array(1)), axis=0)
            self.memo["total"] = self.node("Cast", total, to=TensorProto.INT32)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        outputs = [f"attention.{layer}", *(f"present.{layer}.{part}" for part in ("key", "value"))]
        counts = {"num_heads": self.spec.num_attention_heads, "kv_num_heads": self.spec.num_key_value_heads}
        rest = (self.memo["last"], self.memo["total"], self.memo["cos"], self.memo["sin"])
        return self.node("GroupQueryAttention", q, k, v, *past, *rest, outputs=outputs, do_rotary=1, **counts)

    def standard_attention(self, layer: int, q: str, k: str, v: str) -> str:
        spec = self.spec
        H, G, D = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        past = self.node("Shape", f"past_key_values.{layer}.key", start=2, end=3)
        total = self.node("Shape", "attention_mask", start=1, end=2)
        q, k = (self.turned(self.heads(x, count), past, total) for x, count in ((q, H), (k, G)))
        k = self.node("Concat", f"past_key_values.{layer}.key", k, axis=2, name=f"present.{layer}.key")
        v = self.node(
            "Concat", f"past_key_values.{layer}.value", self.heads(v, G), axis=2, name=f"present.{layer}.value"
        )
        k, v = (self.repeated(x, total) for x in (k, v))
        scores = self.node("MatMul", q, self.node("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.node("Mul", scores, self.scalar(D**-0.5))
        masked = self.node("Where", self.ahead(past, total), self.scalar(float("-inf")), scores)
        mixed = self.node("MatMul", self.node("Softmax", masked, axis=-1), v)
        return self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), self.constant([0, 0, H * D]))

    def heads(self, x: str, count: int) -> str:
        shaped = self.node("Reshape", x, self.constant([0, 0, count, self.spec.head_dim]))
        return self.node("Transpose", shaped, perm=[0, 2, 1, 3])

    def turned(self, x: str, past: str, total: str) -> str:
        half = self.spec.head_dim // 2
        cos, sin = (self.node("Slice", table, past, total) for table in self.tables())
        parts = [f"{x}.one", f"{x}.two"]
        self.node("Split", x, self.constant([half, half]), outputs=parts, axis=-1)
        one = self.node("Sub", self.node("Mul", parts[0], cos), self.node("Mul", parts[1], sin))
        two = self.node("Add", self.node("Mul", parts[1], cos), self.node("Mul", parts[0], sin))
        return self.node("Concat", one, two, axis=-1)

    def repeated(self, x: str, total: str) -> str:
        """Key/value heads once for every query head of theirs, by Expand."""
        H, G, D = self.spec.num_attention_heads, self.spec.num_key_value_heads, self.spec.head_dim
        shape = self.node("Concat", self.constant([1, G, H // G]), total, self.constant([D]), axis=0)
        wide = self.node("Expand", self.node("Unsqueeze", x, self.constant([2])), shape)
        return self.node("Reshape", wide, self.node("Concat", self.constant([1, H]), total, self.constant([D]), axis=0))

    def ahead(self, past: str, total: str) -> str:
        first, last = (self.node("Squeeze", x, self.constant([0])) for x in (past, total))
        zero, one = self.constant(np.array(0)), self.constant(np.array(1))
        rows = self.node("Unsqueeze", self.node("Range", first, last, one), self.constant([1]))
        return self.node("Less", rows, self.node("Range", zero, last, one))

    def block(self, x: str, layer: int) -> str:
        where, scale = f"model.layers.{layer}.", self.scalar(self.spec.residual_scale)
        h = self.norm(x, f"{where}input_layernorm.weight")
        q, k, v = (self.linear(h, f"{where}self_attn.{name}_proj.weight") for name in "qkv")
        attention = self.group_query_attention if self.contrib else self.standard_attention
        mixed = self.linear(attention(layer, q, k, v), f"{where}self_attn.o_proj.weight")
        x = self.node("Add", x, self.node("Mul", mixed, scale))
        h = self.norm(x, f"{where}post_attention_layernorm.weight")
        gate, up = (self.linear(h, f"{where}mlp.{name}_proj.weight") for name in ("gate", "up"))
        gated = self.node("Mul", self.node("Mul", gate, self.node("Sigmoid", gate)), up)
        down = self.linear(gated, f"{where}mlp.down_proj.weight")
        return self.node("Add", x, self.node("Mul", down, scale), name=f"block {layer}")

    def model(self) -> onnx.ModelProto:
        spec = self.spec
        x = self.embedding()
        for layer in range(spec.num_hidden_layers):
            x = self.block(x, layer)
        x = self.norm(x, "model.norm.weight", "final norm")
        logits = self.linear(self.node("Div", x, self.scalar(spec.logit_divisor)), spec.head_name)
        self.node("Cast", logits, name="logits", to=TensorProto.FLOAT)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.element))
        cache = [
            [
                helper.make_tensor_value_info(
                    f"{kind_of}.{n}.{part}", kind, ["B", spec.num_key_value_heads, axis, spec.head_dim]
                )
                for n in range(spec.num_hidden_layers)
                for part in ("key", "value")
            ]
            for kind_of, axis in (("past_key_values", "P"), ("present", "S"))
        ]
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])
        mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "S"])
        logits_info = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "T", spec.vocab_size])
        graph = helper.make_graph(
            self.nodes, "decoder", [ids, mask, *cache[0]], [logits_info, *cache[1]], list(self.initializers.values())
        )
        narrow = any(tensor.data_type == TensorProto.UINT2 for tensor in self.initializers.values())
        opsets = [helper.make_opsetid("", 25 if narrow else 21), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets[: 2 if self.contrib else 1], ir_version=13 if narrow else 10
        )


def decoder_model(
    checkpoint: Checkpoint, *, contrib: bool, element: type = np.float32, level: int = 0
) -> onnx.ModelProto:
    """The graph of a model with plain RoPE, all weights inside."""
    return Decoder(checkpoint, contrib=contrib, element=element, level=level).model()


def write_model(model: onnx.ModelProto, folder: Path, *, external: bool = True) -> Path:
    """`model.onnx` in a new folder, with its larger tensors in `model.onnx.data`."""
    folder.mkdir(parents=True)
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    beside = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 256} if external else {}
    onnx.save(kept, folder / "model.onnx", **beside)
    return folder


def write_folder(checkpoint: Checkpoint, folder: Path, *, contrib: bool, **choices: Any) -> Path:
    """A folder of a decoder that onnxruntime-genai takes, too."""
    write_model(decoder_model(checkpoint, contrib=contrib, **choices), folder)
    (folder / "genai_config.json").write_text(json.dumps(genai_config(checkpoint, shared=contrib)))
    return folder


def genai_config(checkpoint: Checkpoint, *, shared: bool) -> dict[str, Any]:
    """The least that it must say; shared: whether past and present lie in one buffer."""
    spec = checkpoint.spec
    decoder = {
        "filename": "model.onnx",
        "session_options": {"provider_options": [], "session.qdq_matmulnbits_accuracy_level": "0"},
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "num_hidden_layers": spec.num_hidden_layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {"type": "decoder", "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 2, "decoder": decoder}
    sizes = {"vocab_size": spec.vocab_size, "context_length": spec.max_position_embeddings}
    search = {"max_length": spec.max_position_embeddings, "past_present_share_buffer": shared}
    return {"model": {**model, **sizes}, "search": search}
