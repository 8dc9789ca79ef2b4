"""llama.cpp's C API in the shared library of `xllamacpp`, bound with ctypes.

Parameters pass by value in structs whose layout changes between releases. A layout is trusted only when every field of
what `llama_*_default_params` return is what the release is known to return, and when a context made with it reports
the sizes that were asked for; else `UnknownLayout` is raised, before anything is computed. The structs end in free
room: fields that a later release appends neither overflow it nor lose their defaults.

Source: `include/llama.h` and `ggml/include/ggml.h` of llama.cpp; layouts checked against xllamacpp 2026.10.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from ctypes import c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from typing import Any

import numpy as np

ROOM = 256
"""Free bytes behind the known fields of a struct."""
F32, F16 = 0, 1
"""Values of `enum ggml_type`."""
AUTO = -1
"""What several enums call "from the model" or "as the machine can"."""
DISABLED = 0
"""Of `enum llama_flash_attn_type`."""
LAYER = 1
"""Of `enum llama_split_mode`: whole layers on each GPU."""


class UnknownLayout(Exception):
    """The library is not one whose structs are known; the message says how that was noticed."""


class ModelParams(ctypes.Structure):
    """`llama_model_params`."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_uint8),
        ("check_tensors", c_uint8),
        ("use_extra_bufts", c_uint8),
        ("no_host", c_uint8),
        ("no_alloc", c_uint8),
        ("load_mtp", c_uint8),
        ("room", c_uint8 * ROOM),
    )


class ContextParams(ctypes.Structure):
    """`llama_context_params`."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        # The abort callback, its data, and one pointer whose name is not known; all are left null.
        ("pointer_0", c_void_p),
        ("pointer_1", c_void_p),
        ("pointer_2", c_void_p),
        ("embeddings", c_uint8),
        ("offload_kqv", c_uint8),
        ("no_perf", c_uint8),
        ("op_offload", c_uint8),
        ("swa_full", c_uint8),
        ("kv_unified", c_uint8),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("room", c_uint8 * ROOM),
    )


class Batch(ctypes.Structure):
    """`llama_batch`: tokens of one sequence where `seq_id` is null, in order where `pos` is null."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


MODEL_DEFAULTS: Mapping[str, float] = {
    "n_gpu_layers": AUTO,
    "split_mode": LAYER,
    "load_mode": AUTO,
    "lazy_mode": 1,
    "use_extra_bufts": 1,
}
"""Fields of `ModelParams` whose default is not zero."""

CONTEXT_DEFAULTS: Mapping[str, float] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "rope_scaling_type": AUTO,
    "pooling_type": AUTO,
    "attention_type": AUTO,
    "flash_attn_type": AUTO,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": F16,
    "type_v": F16,
    "offload_kqv": 1,
    "no_perf": 1,
    "op_offload": 1,
    "swa_full": 1,
}
"""Fields of `ContextParams` whose default is not zero."""

EvalCallback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
"""bool (tensor, ask, user_data): with `ask` whether the node is wanted, without it that its values are there."""
LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
"""void (level, text, user_data)."""

FUNCTIONS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_get_name": (c_char_p, (c_void_p,)),
    "ggml_nelements": (ctypes.c_int64, (c_void_p,)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_is_contiguous": (c_bool, (c_void_p,)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "llama_log_set": (None, (LogCallback, c_void_p)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_n_layer": (c_int32, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_n_batch": (c_uint32, (c_void_p,)),
    "llama_n_ubatch": (c_uint32, (c_void_p,)),
    "llama_n_threads": (c_int32, (c_void_p,)),
    "llama_n_threads_batch": (c_int32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_batch_get_one": (Batch, (c_void_p, c_int32)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (ctypes.POINTER(c_float), (c_void_p,)),
}
"""Result and arguments of every function that is called."""


def load_library() -> ctypes.CDLL:
    """The library, its functions typed and its layouts checked.

    Raises:
        UnknownLayout: there is none, it lacks a function, or its structs are not those above.
    """
    path = library_path()
    if path is None:
        raise UnknownLayout("xllamacpp has no shared library")
    try:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (AttributeError, OSError) as error:
        raise UnknownLayout(f"the C API cannot be reached: {error}") from None
    check_defaults(library.llama_model_default_params(), MODEL_DEFAULTS)
    check_defaults(library.llama_context_default_params(), CONTEXT_DEFAULTS)
    check_batch(library.llama_batch_get_one)
    return library


def library_path() -> str | None:
    """Where the extension module of xllamacpp lies, which is the library too."""
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    return spec.origin if spec is not None else None


def check_defaults(params: ctypes.Structure, defaults: Mapping[str, float]) -> None:
    """Raise `UnknownLayout` unless every field of `params` has its default: `defaults`, or zero."""
    for field in params._fields_:
        name = field[0]
        value, expected = getattr(params, name) or 0, defaults.get(name, 0)  # ctypes reads a null pointer as None
        if name != "room" and value != expected:
            said = f"{type(params).__name__}.{name} is {value} by default, not {expected}"
            raise UnknownLayout(f"another layout than that of the release that is known: {said}")


def check_batch(get_one: Callable[[int, int], Batch]) -> None:
    """Raise `UnknownLayout` unless `llama_batch_get_one` puts its two arguments where `Batch` has them."""
    tokens = (c_int32 * 3)()
    batch = get_one(ctypes.addressof(tokens), 3)
    rest = [getattr(batch, name) for name in ("embd", "pos", "n_seq_id", "seq_id", "logits")]
    if batch.n_tokens != len(tokens) or batch.token != ctypes.addressof(tokens) or any(rest):
        raise UnknownLayout("another layout of llama_batch than that of the release that is known")


def decode(library: ctypes.CDLL, context: int, token_ids: list[int], *, every_row: bool) -> int:
    """Evaluate the next tokens of the sequence; logits come of `every_row` or of the last. Returns llama.cpp's code."""
    tokens = (c_int32 * len(token_ids))(*token_ids)
    flags = (c_int8 * len(token_ids))(*([int(every_row)] * (len(token_ids) - 1)), 1)
    batch = Batch(n_tokens=len(token_ids), token=ctypes.addressof(tokens), logits=ctypes.addressof(flags))
    code: int = library.llama_decode(context, batch)
    return code


def values_of(library: ctypes.CDLL, tensor: int) -> np.ndarray:
    """The values of a float32 tensor of the graph, flat, copied.

    Raises:
        RuntimeError: it is not float32, or its rows do not lie one behind the other.
    """
    values = np.empty(library.ggml_nelements(tensor), np.float32)
    if library.ggml_nbytes(tensor) != values.nbytes or not library.ggml_is_contiguous(tensor):
        raise RuntimeError(f"the node {library.ggml_get_name(tensor).decode()} is not plain float32")
    library.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
    return values
