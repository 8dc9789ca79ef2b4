"""vLLM on the CPU, in an environment of its own.

vLLM pins versions of torch and transformers that clash with everybody else's, so it is looked for in `.venv-vllm` at
the root of the checkout (`make conformance` builds it), then in the interpreter that runs quantkit. Either way it runs
in a child process (`_vllm_server.py`), which is started once per session: that takes 15 to 60 s.

It computes in float16 where weights are quantized, which is what its int4 kernel takes, and in float32 where they are
dense, so that what is left of a difference is the artifact's. Its W4A8 path, which rounds activations to 8 bits, is
switched off.

A native MiniCPM needs the config class that quantkit writes beside config.json, because transformers has none. Only
that very file is ever imported; a folder that brings any other code, or asks for it, is refused.

It is handed a folder with a config of ours (`_staged_folder.py`): a stranger's may name code that it then looks for.

LongRoPE: vLLM chooses the short or the long factors once, by the context it was started with. The session starts it
on the right side of the original context, and starts it anew when a sequence crosses over.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption, EngineFailed, MissingDependency, QuantkitError
from quantkit.files.member import open_member, read_member_json
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_length
from quantkit.models.layouts.small_files import CONFIG_NAME, MAX_CONFIG_BYTES, file_names
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS, CONFIG_CLASS_FILE
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import Allowance, EngineProcess, EngineSession
from quantkit.runtimes._kernels._rules import RENAMED
from quantkit.runtimes._kernels.vllm import CPU
from quantkit.runtimes._staged_folder import staged_folder
from quantkit.tensors.views import QuantizedView

ENVIRONMENT = Path(__file__).resolve().parent.parent / ".venv-vllm"
SERVER = Path(__file__).with_name("_vllm_server.py")
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine inside the child, not beside it
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # compiles for a minute what then runs once
}
"""The child's environment, on top of ours."""

CONTEXT = 4096
"""Tokens of context that the engine starts with, where the model has so many."""
LOAD_SECONDS = 1800.0
ANSWER_SECONDS = 3600.0
PROCESS = 8 << 30
"""Bytes that the engine may hold beside weights and answers: torch, its buffers, keys and values."""
WEIGHT_BYTES = 12
"""Bytes that it may hold for each weight: float32, and copies of it while it loads."""
LOG_PROB_BYTES = 200
"""Bytes that it may hold for each log-prob of an answer, which are Python objects in lists."""


class VLLMSession(EngineSession):
    """A folder in vLLM. `spec` tells its vocabulary and when LongRoPE changes its factors.

    staged: makes the folder that the engine is handed, whenever it starts.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        *,
        command: Sequence[str],
        dtype: str,
        staged: Callable[[], AbstractContextManager[Path]],
    ) -> None:
        self._path = path
        self._staged = staged
        self._spec = spec
        self._command = command
        self._dtype = dtype
        self._max_length = self._context(1)
        self._start()

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probs in float32 [T, V]; row t predicts token t + 1. vLLM hands them over as Python lists: seconds."""
        return self._ask("logits", token_ids).reshape(len(token_ids), -1)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; the engine evaluates only what follows a prefix that it knows."""
        return self._ask("next", token_ids)

    def _ask(self, do: str, token_ids: Sequence[int]) -> np.ndarray:
        ids, vocabulary = [int(token) for token in token_ids], self._spec.vocab_size
        if not ids or not all(0 <= token < vocabulary for token in ids):
            raise BadOption(f"token ids must be one or more numbers below {vocabulary}")
        check_length(self._spec, len(ids), to_come=1)
        self._fit(len(ids))
        allowance = self._allowance(f"evaluating {len(ids)} tokens", ANSWER_SECONDS, len(ids))
        _, data = self._child.ask(allowance, do=do, token_ids=ids)
        values = np.frombuffer(data, np.float32)
        wanted = vocabulary * (len(ids) if do == "logits" else 1)
        if values.size != wanted:
            raise EngineFailed(f"{self._path}: vLLM gave {values.size} log-probs in place of {wanted}")
        if np.isnan(values).any():
            raise EngineFailed(
                f"{self._path}: vLLM computed NaN in {self._dtype}",
                hint="verify with --engine reference to see whether the artifact itself is right",
            )
        return values

    def _start(self) -> None:
        self._child = EngineProcess(self._command, engine="vLLM", path=self._path)
        try:
            with self._staged() as folder:
                self._child.ask(
                    self._allowance("loading the model", LOAD_SECONDS, 0),
                    do="load",
                    path=str(folder),
                    dtype=self._dtype,
                    max_model_len=self._max_length,
                    code=self._spec.architecture == "minicpm",
                )
        except BaseException:
            self._child.close()
            raise

    def _allowance(self, doing: str, seconds: float, tokens: int) -> Allowance:
        weights = sum(math.prod(slot.shape) for slot in self._spec.slots())
        memory = PROCESS + WEIGHT_BYTES * weights + LOG_PROB_BYTES * tokens * self._spec.vocab_size
        return Allowance(doing, seconds, memory)

    def _context(self, length: int) -> int:
        """Context to start the engine with for sequences of `length` tokens: one more, for the token it samples."""
        rope = self._spec.rope
        limit = self._spec.max_position_embeddings
        if rope.short_factor != rope.long_factor and length <= rope.original_max_position_embeddings:
            limit = min(limit, rope.original_max_position_embeddings)
        context = CONTEXT
        while context <= length:
            context *= 2
        return min(context, limit)

    def _fit(self, length: int) -> None:
        """Start the engine anew if `length` tokens need more context, or other LongRoPE factors, than it has."""
        rope = self._spec.rope
        if length < self._max_length and rope.turns_alike(length, self._max_length):
            return
        wanted = self._context(length)
        if wanted <= length or not rope.turns_alike(length, wanted):
            raise EngineFailed(f"{self._path}: vLLM cannot run {length} tokens with a context of {wanted}")
        self._child.close()
        self._max_length = wanted
        self._start()


class VLLMRuntime:
    """Loads dense, GPTQ, AWQ and compressed-tensors folders."""

    name = "vllm"
    summary = "vLLM on this machine's CPU, in an environment of its own (.venv-vllm)"
    formats = CPU.containers
    architectures = CPU.architectures

    def missing(self) -> str | None:
        """None when vLLM is there; its environment is not looked into."""
        if interpreter() is not None:
            return None
        return "run `make conformance` in a clone, which puts vLLM into .venv-vllm"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Float16 where weights are quantized, else float32."""
        quantized = any(isinstance(view, QuantizedView) for view in checkpoint.weights.values())
        return "float16" if quantized else "float32"

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why vLLM's kernels for the CPU, or its loader, cannot take this artifact; None when they can."""
        renamed = RENAMED if checkpoint.renamed else None
        return renamed or _refused_code(checkpoint) or CPU.verdict(checkpoint).refusal

    def open(self, path: Path) -> VLLMSession:
        """Read the folder strictly, then start vLLM on it; raises `EngineFailed` for what it cannot take."""
        return self.open_in(path, None)

    def open_in(self, path: Path, dtype: str | None) -> VLLMSession:
        """As `open`, computing in `dtype` ("float16", "float32"); None = what suits the weights."""
        python = interpreter()
        if python is None:
            raise MissingDependency("vLLM is not installed", hint=self.missing())
        checkpoint = registry.open_checkpoint(path)
        refusal = self.refuses(checkpoint)
        if refusal is not None:
            raise EngineFailed(f"{path}: vLLM cannot run this: {refusal}")
        settings = [f"{name}={value}" for name, value in SETTINGS.items()]
        command = ["env", *settings, str(python), "-I", str(SERVER)]
        quantized = any(isinstance(view, QuantizedView) for view in checkpoint.weights.values())
        suitable = "float16" if quantized else "float32"
        staged = partial(staged_folder, checkpoint)
        return VLLMSession(path, checkpoint.spec, command=command, dtype=dtype or suitable, staged=staged)


def interpreter() -> Path | None:
    """The Python that has vLLM: of its own environment, else this one; None where neither is there."""
    own = ENVIRONMENT / "bin" / "python"
    if own.exists():
        return own
    return Path(sys.executable) if importlib.util.find_spec("vllm") else None


def _refused_code(checkpoint: Checkpoint) -> str | None:
    """A native model needs our config class, and no other code beside it or asked for by any of the JSON files."""
    if checkpoint.spec.architecture != "minicpm":
        return None
    path = checkpoint.path
    names = file_names(path)
    code = [name for name in names if name.endswith(".py")]
    if code != [CONFIG_CLASS_FILE] or checkpoint.config.get("auto_map") != AUTO_MAP:
        return f"a native MiniCPM needs the {CONFIG_CLASS_FILE} that quantkit writes, and no other code"
    source = open_member(path, CONFIG_CLASS_FILE)
    if source.read(0, source.size).tobytes() != CONFIG_CLASS.encode():
        return f"{CONFIG_CLASS_FILE} is not the one that quantkit writes, and other code is not run"
    configs = [name for name in names if name.endswith("config.json") and name != CONFIG_NAME]
    asking = [name for name in configs if _may_ask_for_code(path, name)]
    return f"{asking[0]} asks for code, which is not run" if asking else None


def _may_ask_for_code(path: Path, name: str) -> bool:
    """Whether a JSON file names classes to import, or cannot be read."""
    try:
        return "auto_map" in read_member_json(path, name, limit=MAX_CONFIG_BYTES)
    except QuantkitError:
        return True


RUNTIME = VLLMRuntime()
