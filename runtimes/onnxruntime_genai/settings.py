"""What a genai_config.json may say before the engine is given it.

Some keys name libraries that it loads (`custom_ops_library`, those of execution providers), others files anywhere. So
only what cannot do that is let through. What it says of the model is held to config.json by the container's reader.
Source: onnxruntime-genai 0.18 `src/config.h`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.errors import MalformedFile, UnsafePath
from quantkit.files.member import read_member_json

CONFIG_NAME = "genai_config.json"
MOST_BYTES = 1 << 20
SECTIONS = {"model", "search"}
SESSION_KEYS = {
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "graph_optimization_level",
    "inter_op_num_threads",
    "intra_op_num_threads",
    "log_id",
    "log_severity_level",
    "log_verbosity_level",
    "provider_options",
    "session.qdq_matmulnbits_accuracy_level",
}
"""Of `session_options`. Among the providers there may be none: the CPU needs no name."""


def context_of(folder: Path) -> int:
    """The longest context that genai_config.json gives, once nothing in it can make the engine load something else.

    Raises:
        UnsafePath: something can. MalformedFile: a part is missing. Others: see `read_member_json`.
    """
    where = str(folder / CONFIG_NAME)
    config = read_member_json(folder, CONFIG_NAME, limit=MOST_BYTES)
    model = _part(config, "model", where)
    options = _part(_part(model, "decoder", where), "session_options", where)
    for found, known in ((config, SECTIONS), (options, SESSION_KEYS)):
        strange = sorted(set(found) - known)
        if strange:
            raise UnsafePath(f"{where} has the key {strange[0]!r}, by which the engine could load a library or a file")
    if options.get("provider_options"):
        raise UnsafePath(f"{where} names execution providers, whose libraries the engine would load")
    context = model.get("context_length")
    if type(context) is not int or context < 1:
        raise MalformedFile(f"{where} gives no context_length")
    return context


def _part(config: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    found = config.get(key)
    if not isinstance(found, dict):
        raise MalformedFile(f"{where} has no object {key!r}")
    return found
