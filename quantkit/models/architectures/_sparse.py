"""`sparse_config`: how a checkpoint may attend sparsely, read strictly.

Source: OpenBMB `modeling_minicpm.py` of MiniCPM4.1 (`MiniCPMInfLLMv2Attention`), its keys and defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.config_reader import ConfigReader, shown
from quantkit.models.spec import SparseSpec

KEY = "sparse_config"
MOST = 1 << 31
KEYS = tuple(field.name for field in fields(SparseSpec))


def read_sparse(config: Mapping[str, Any], where: str) -> SparseSpec | None:
    """What `sparse_config` says; None where there is none, which is dense attention.

    Raises:
        UnsupportedModel: a key that is not known, by name: it may change which tokens are seen.
        BadConfig: a value of the wrong type or range, or two that do not fit together.
    """
    given = config.get(KEY)
    if given is None:
        return None
    where = f"{where}: {KEY}"
    if not isinstance(given, Mapping):
        raise BadConfig(f"{where} must be an object, is {shown(given)}")
    for key in given:
        if key not in KEYS:
            raise UnsupportedModel(
                f"{where}: {shown(key)} is not understood, and may change which tokens are seen",
                hint=f"known are {', '.join(KEYS)}; without {KEY} the model attends densely",
            )
    reader = ConfigReader(given, where)
    default = SparseSpec()
    stride = reader.integer("kernel_stride", 1, MOST, default=default.kernel_stride)
    block = reader.integer("block_size", 1, MOST, default=default.block_size)
    if block % stride:
        raise BadConfig(f"{where}: kernel_stride {stride} does not divide block_size {block}")
    return SparseSpec(
        kernel_size=reader.integer("kernel_size", stride, MOST, default=default.kernel_size),
        kernel_stride=stride,
        init_blocks=reader.integer("init_blocks", 0, MOST, default=default.init_blocks),
        block_size=block,
        window_size=reader.integer("window_size", 0, MOST, default=default.window_size),
        topk=reader.integer("topk", 1, MOST, default=default.topk),
        dense_len=reader.integer("dense_len", -1, MOST, default=default.dense_len),
        use_nope=reader.boolean("use_nope", default=default.use_nope),
    )
