"""Hugging Face transformers: its own classes only, float32, no remote code, no network.

What it takes is told by `_kernels/transformers.py`. A native MiniCPM is refused with the way out: `export hf
--arch llama` folds the family's three scalars into the weights, and the result runs in its Llama class.

It is handed a folder with a config of ours (`_staged_folder.py`): a stranger's may name code that it then looks for.

transformers fills a tensor that it does not find with random numbers and says so in a log; here that is an error.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption, EngineFailed, MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_length
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._kernels._rules import RENAMED
from quantkit.runtimes._kernels.transformers import DENSE, must_dequantize
from quantkit.runtimes._staged_folder import staged_folder
from quantkit.tensors.views import QuantizedView

if TYPE_CHECKING:
    from typing_extensions import Self

PACKAGES = {"bitnet": "accelerate", "compressed-tensors": "compressed-tensors"}
"""Container to the package that transformers loads it with. BitNet's layers want a C++ compiler as well."""
FOLD_HINT = "fold the family's scalars into a Llama: quantkit export hf SOURCE --arch llama --out DIR"


class TransformersSession:
    """A folder in transformers, on the CPU. `spec` tells when RoPE turns keys otherwise than it did."""

    def __init__(self, path: Path, spec: ModelSpec, model: Any) -> None:  # noqa: ANN401 - chosen by config.json
        self._path = path
        self._spec = spec
        self._model = model
        # transformers 5.24 renamed it and will drop the old name
        self._keyword = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._ids: list[int] = []
        self._cache: object | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ids, self._cache, self._model = [], None, None

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V] of one forward pass; row t predicts token t + 1."""
        return self._forward(token_ids, None)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only what follows the ids of the call before is evaluated."""
        known, ids, turns_alike = len(self._ids), list(token_ids), self._spec.rope.turns_alike
        if self._cache is None or ids[:known] != self._ids or known >= len(ids) or not turns_alike(known, len(ids)):
            self._start()
        rows = self._forward(ids[len(self._ids) :], self._cache)
        self._ids = ids
        row: np.ndarray = rows[-1]
        return row

    def _start(self) -> None:
        from transformers import DynamicCache  # noqa: PLC0415 - heavy, wanted only here

        self._ids, self._cache = [], DynamicCache(config=self._model.config)

    def _forward(self, token_ids: Sequence[int], cache: object | None) -> np.ndarray:
        """Logits of `token_ids`, which follow those that `cache` holds; it holds them, too, afterwards."""
        import torch  # noqa: PLC0415 - heavy, wanted only here

        ids = [int(token) for token in token_ids]
        if not ids or not all(0 <= token < self._spec.vocab_size for token in ids):
            raise BadOption(f"token ids must be one or more numbers below {self._spec.vocab_size}")
        check_length(self._spec, len(ids) + (len(self._ids) if cache is not None else 0))
        try:
            with torch.no_grad():
                given = {self._keyword: cache, "use_cache": cache is not None}
                output = self._model(input_ids=torch.tensor([ids]), **given)
        except Exception as error:
            raise EngineFailed(f"{self._path}: transformers: {_first_line(error)}") from error
        logits: np.ndarray = output.logits[0].float().numpy()
        return logits


class TransformersRuntime:
    """Loads folded exports and quantized folders."""

    name = "transformers"
    summary = "Hugging Face transformers, stock classes, float32 on the CPU"
    formats = DENSE.containers
    architectures = DENSE.architectures

    def missing(self) -> str | None:
        """None when transformers and torch are installed."""
        found = importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
        return None if found else "pip install 'quantkit[transformers]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Float32; weights that it dequantizes while loading are rounded to the dtype of their scales first, and layers
        of BitNet round each token's inputs to int8."""
        if checkpoint.format == "bitnet":
            return "int8 tokens"
        if not must_dequantize(checkpoint):
            return "float32"
        dtypes = {view.scheme.scale_dtype for view in checkpoint.weights.values() if isinstance(view, QuantizedView)}
        return "bfloat16 inputs" if "bfloat16" in dtypes else "float16 inputs" if "float16" in dtypes else "float32"

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why transformers cannot load this folder, or None."""
        refusal = RENAMED if checkpoint.renamed else DENSE.verdict(checkpoint).refusal
        package = PACKAGES.get(checkpoint.format)
        if refusal is not None or package is None or importlib.util.find_spec(package.replace("-", "_")):
            return refusal
        return f"it loads such quantized folders with the package {package}, not installed"

    def open(self, path: Path) -> TransformersSession:
        """Read the folder strictly, then load it in transformers; raises `EngineFailed` if it knows no such model."""
        install = self.missing()
        if install is not None:
            raise MissingDependency("transformers needs the packages transformers and torch", hint=install)
        checkpoint = registry.open_checkpoint(path)
        refusal = self.refuses(checkpoint)
        if refusal is not None:
            hint = FOLD_HINT if checkpoint.spec.architecture not in self.architectures else None
            raise EngineFailed(f"{path}: transformers cannot run this: {refusal}", hint=hint)
        session = TransformersSession(path, checkpoint.spec, _load(path, checkpoint))
        with _quiet():
            session.logits([0])  # compressed-tensors decompresses at the first call, and shows a bar
        return session


def _load(path: Path, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - the package is not typed
    import torch  # noqa: PLC0415 - heavy, wanted only here
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig  # noqa: PLC0415

    loading = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if must_dequantize(checkpoint) else {}
    try:
        with _quiet(), staged_folder(checkpoint) as folder:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder),
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager",
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                **loading,
            )
    except Exception as error:
        raise EngineFailed(f"{path}: transformers: {_first_line(error)}") from error
    _refuse_strays(path, report)
    if checkpoint.format == "bitnet":
        torch.nn.Module.float(model)  # dense weights keep the file's dtype there; the model's own method refuses
    return model.eval()


def _refuse_strays(path: Path, report: Mapping[str, Iterable[object]]) -> None:
    """Raise `EngineFailed` for a tensor that transformers would have made up or left out."""
    for problem in ("missing", "mismatched", "unexpected"):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in report[f"{problem}_keys"])
        if names:
            raise EngineFailed(
                f"{path}: transformers finds {len(names)} {problem} tensors, first {names[0]!r}",
                hint="verify with --engine reference to see whether the artifact itself is right",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and progress bars, some of which are kept in globals of the package, and put them back."""
    from transformers.utils import logging  # noqa: PLC0415 - heavy, wanted only here

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        # compressed-tensors shows bars that cannot be turned off.
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


RUNTIME = TransformersRuntime()
