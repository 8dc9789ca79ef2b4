"""What a killed quantization needs to go on: what its numbers depend on, and its samples and blocks as bytes.

The bytes are for quantkit alone and for one run: `quantkit.artifacts.journal` vouches for them, so they are not
checked here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import quantkit
from quantkit import discovery
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import Coverage, Samples
from quantkit.files.digest import source_digest
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import Method, TensorReport
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme, scheme_from_json

LENGTH_BYTES = 8
TOKEN = np.dtype("<i8")
SMOOTHING_SCALE = np.dtype("<f4")
LIBRARIES = ("numpy", "torch")
"""Packages whose arithmetic the last bits depend on."""
PLUGINS = ("quantkit.exporters", "quantkit.runtimes")
"""Exporters read what is quantized."""
CODE = ("*.py", "*.txt")
"""Texts are what calibration begins with."""


def run_key(
    source: Checkpoint,
    wanted: Mapping[str, tuple[Scheme, Method]],
    options: QuantizeOptions,
    compute: Compute,
    *,
    given: Samples | None,
) -> bytes:
    """SHA-256 of all that decides the codes, except sequences that are given, and what is in calibration files.

    Reads every file of the model once. The weights of `source` must lie in its `inputs`.

    Args:
        source: the dense model.
        wanted: scheme and method of every weight to quantize, by name. A method counts by its name, and by its settings
            where it is a dataclass.
        options: every field counts; of calibration, where sequences are given, how many positions are skipped.
        compute: all but the number of threads counts.
        given: sequences that were given.

    Raises:
        What `source_digest` raises.
    """
    choices = {one.name: getattr(options, one.name) for one in fields(options)}
    calibration = choices.pop("calibration")
    facts = {
        "code": _code_digest(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "model": repr(source.spec),
        "config": source.config,
        "inputs": source_digest(source.inputs),
        "files": {name: hashlib.sha256(read()).hexdigest() for name, read in source.files.items()},
        "wanted": {name: [scheme.to_json(), _settings(method)] for name, (scheme, method) in wanted.items()},
        "calibration": repr(calibration if given is None else calibration.skip_positions),
        "options": {name: repr(choice) for name, choice in choices.items() if name != "method"},
        "compute": {"device": compute.device, "bfloat16": compute.in_bfloat16()},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def _settings(method: Method) -> dict[str, Any]:
    settings: dict[str, Any] = asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}
    return {**settings, "name": method.name}


def _code_digest() -> str:
    """SHA-256 of quantkit's version and of all its files: in a working copy the version tells little."""
    sha256 = hashlib.sha256(quantkit.__version__.encode())
    for path in _code_files():
        sha256.update(hashlib.sha256(path.read_bytes()).digest())
    return sha256.hexdigest()


def _code_files() -> list[Path]:
    """Modules and texts of quantkit and of its plug-ins, which in a working copy lie beside it."""
    folders = [Path(quantkit.__file__).parent]
    for room in PLUGINS:
        folders += discovery.folders(room)
    return sorted({path for folder in folders for kind in CODE for path in folder.rglob(kind)})


def encoded_samples(samples: Samples) -> bytes:
    """Coverage, origins and lengths as JSON behind its length, then all token ids."""
    head = {
        "coverage": samples.coverage.to_json(),
        "origins": samples.origins,
        "lengths": [len(x) for x in samples.sequences],
    }
    return _headed(head, *(x.astype(TOKEN) for x in samples.sequences))


def decoded_samples(data: memoryview) -> Samples:
    """Inverse of `encoded_samples`."""
    head, parts = _Parts.behind_head(data)
    sequences = tuple(parts.take(TOKEN, length).astype(np.int64) for length in head["lengths"])
    return Samples(sequences, tuple(head["origins"]), Coverage.from_json(head["coverage"]))


def encoded_block(
    tensors: Mapping[str, QuantizedTensor], reports: Mapping[str, TensorReport], scales: Mapping[Role, np.ndarray]
) -> bytes:
    """A block as bytes.

    Reports, grids and shapes as JSON behind its length; then each tensor's codes as bitstreams, scales and zeros; then
    the scales that the block was smoothed with.
    """
    head = {
        "tensors": {
            name: {"report": asdict(reports[name]), "scheme": tensor.scheme.to_json(), "shape": tensor.shape}
            for name, tensor in tensors.items()
        },
        "smoothed": {role.value: len(scale) for role, scale in scales.items()},
    }
    buffers = [(pack_bitstream(x.codes, x.scheme.bits), *x.arrays.values()) for x in tensors.values()]
    smoothed = (scale.astype(SMOOTHING_SCALE) for scale in scales.values())
    return _headed(head, *(buffer for parts in buffers for buffer in parts), *smoothed)


def decoded_block(
    data: memoryview,
) -> tuple[dict[str, QuantizedTensor], dict[str, TensorReport], dict[Role, np.ndarray]]:
    """Inverse of `encoded_block`."""
    head, parts = _Parts.behind_head(data)
    tensors = {}
    for name, entry in head["tensors"].items():
        scheme = scheme_from_json(entry["scheme"])
        rows, cols = entry["shape"]
        words = parts.take(np.dtype(np.uint32), rows, -(-cols * scheme.bits // 32))
        arrays = {part: parts.take(dtype, *shape) for part, (dtype, shape) in scheme.parameters(rows, cols).items()}
        tensors[name] = QuantizedTensor(scheme, unpack_bitstream(words, scheme.bits, cols), arrays)
    reports = {name: TensorReport(**entry["report"]) for name, entry in head["tensors"].items()}
    return tensors, reports, {Role(role): parts.take(SMOOTHING_SCALE, size) for role, size in head["smoothed"].items()}


def kept_bytes(shape: tuple[int, int], scheme: Scheme) -> int:
    """Bytes that a tensor of a kept block takes, its report aside."""
    rows, cols = shape
    parameters = scheme.parameters(rows, cols).values()
    return rows * -(-cols * scheme.bits // 32) * 4 + sum(d.itemsize * math.prod(s) for d, s in parameters)


def _headed(head: Mapping[str, Any], *buffers: np.ndarray) -> bytes:
    line = json.dumps(head).encode()
    return b"".join((len(line).to_bytes(LENGTH_BYTES, "little"), line, *(buffer.tobytes() for buffer in buffers)))


class _Parts:
    """Arrays that lie one behind the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    @classmethod
    def behind_head(cls, data: memoryview) -> tuple[dict[str, Any], _Parts]:
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        data = data[LENGTH_BYTES:]
        return json.loads(data[:length].tobytes()), cls(data[length:])

    def take(self, dtype: np.dtype, *shape: int) -> np.ndarray:
        """The next array, in memory of its own."""
        array: np.ndarray = np.frombuffer(self._data, dtype, math.prod(shape), self._place).reshape(shape).copy()
        self._place += array.nbytes
        return array
