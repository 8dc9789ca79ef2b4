"""A plug-in of every kind is one new file: no list is edited, and the laws and the command line find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCHEME = '''
from dataclasses import dataclass
from typing import ClassVar

from quantkit.tensors.schemes.affine_groups import AffineGroups


@dataclass(frozen=True, slots=True, kw_only=True)
class Sixths(AffineGroups):
    """Six levels of 3 bits."""

    kind: ClassVar[str] = "toy"

    @property
    def levels(self) -> int:
        return 6

    def to_json(self):
        return {"kind": self.kind, **super(Sixths, self).to_json()}

    def __str__(self) -> str:
        return f"toy g{self.group_size}"


SCHEME = Sixths
'''
METHOD = """
from quantkit.methods.rtn import RoundToNearest


class Toy(RoundToNearest):
    name = "toy"
    summary = "round to nearest under another name"


METHOD = Toy()
"""
EXPORTER = '''
from dataclasses import replace
from pathlib import Path

from quantkit.exporters._hf_config import config_files, native_config
from quantkit.files.member import read_member_json
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, PlannedTensor, Unit, blob
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.tensors.views import QuantizedView, TensorView

import numpy as np


class Toy:
    """Float32 values, one tensor behind the other."""

    name = "toy"
    summary = "float32 values, one tensor behind the other"
    types = ()
    targets = ()
    widths = ()
    engines = ("toy", "reference")

    def recognizes(self, path: Path) -> bool:
        return (path / "values.toy").is_file()

    def prepare(self, checkpoint, options):
        def produce(weight):
            chunks = weight.dequantized_chunks() if isinstance(weight, QuantizedView) else weight.chunks()
            return lambda: (chunk.astype("<f4") for chunk in chunks)

        weights = checkpoint.weights
        units = tuple(Unit(name, 4 * weight.size, produce(weight)) for name, weight in weights.items())
        return PlannedArtifact(
            format="toy",
            folder=True,
            files=(
                *config_files(checkpoint.spec, native_config(checkpoint)),
                PlannedFile("values.toy", units),
                *(blob(name, read()) for name, read in sorted(checkpoint.files.items())),
            ),
            tensors=tuple(PlannedTensor(name, "f32", w.shape, 4 * w.size) for name, w in weights.items()),
        )

    def read(self, path: Path) -> Checkpoint:
        config = read_member_json(path, "config.json", limit=1 << 20)
        spec = parse_config(config)
        weights, start = {}, 0
        for slot in spec.slots():
            rows, width = slot.shape[0], int(np.prod(slot.shape[1:]))

            def fetch(first, last, start=start, width=width, shape=slot.shape):
                raw = SourceFile.open(path / "values.toy").read(start + 4 * first * width, 4 * (last - first) * width)
                return np.frombuffer(raw.tobytes(), "<f4").reshape(last - first, *shape[1:])

            weights[slot.name] = TensorView(slot.name, np.dtype("<f4"), slot.shape, fetch)
            start += 4 * rows * width
        files = {one.name: one.read_bytes for one in path.iterdir() if "token" in one.name}
        return Checkpoint(
            path=path, format="toy", config=config, spec=spec, weights=weights, files=files,
            inputs=(path / "values.toy",),
        )


EXPORTER = Toy()
'''
RUNTIME = '''
from quantkit import registry


class Toy:
    """The reference under another name."""

    name = "toy"
    summary = "the reference under another name"
    formats = ("toy",)
    architectures = ("minicpm", "llama")

    def missing(self):
        return None

    def arithmetic(self, checkpoint):
        return "float32"

    def refuses(self, checkpoint):
        return None

    def open(self, path):
        return registry.runtime("reference").open(path)


RUNTIME = Toy()
'''
FILES: Mapping[str, str] = {
    "quantkit/tensors/schemes/toy.py": SCHEME,
    "quantkit/methods/toy.py": METHOD,
    "exporters/toy.py": EXPORTER,
    "runtimes/toy.py": RUNTIME,
}
JOB = """
import sys
from quantkit import Checkpoint, QuantizeOptions, export, open_checkpoint, quantize, registry
from quantkit.pipeline.quantization import Quantization
from quantkit.artifacts.publishing import publish
from quantkit.protocols import ExportOptions
from quantkit.tensors.scheme import scheme_from_json

model, out = sys.argv[1:]
for room in ("exporters", "runtimes", "methods"):
    assert "toy" in registry.names(room), room
scheme = scheme_from_json({"kind": "toy", "bits": 3, "group_size": 64})
run = Quantization(open_checkpoint(model), QuantizeOptions(method="toy", scheme=scheme))
publish(registry.exporter("toy").prepare(run.checkpoint, ExportOptions()), __import__("pathlib").Path(out))
back = open_checkpoint(out)
assert back.format == "toy"
with registry.runtime("toy").open(__import__("pathlib").Path(out)) as session:
    print(session.logits([1, 5, 9]).shape[0], len(run.report()["tensors"]))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the house with one new file of every kind."""
    tree = tmp_path_factory.mktemp("house")
    for room in ("quantkit", "exporters", "runtimes"):
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name, text in FILES.items():
        assert not (tree / name).exists()
        (tree / name).write_text(text.lstrip(), encoding="utf-8")
    return tree


def run(house: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(house)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=house, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_new_plugins_do_a_whole_job(house: Path, golden_model: Path, tmp_path: Path) -> None:
    shown = run(house, "-c", JOB, str(golden_model), str(tmp_path / "artifact"))
    assert shown.split() == ["3", str(7 * 5)], "3 positions, 7 linear layers in each of 5 blocks"


def test_the_command_line_finds_new_plugins(house: Path, golden_model: Path, tmp_path: Path) -> None:
    assert "float32 values, one tensor behind the other" in " ".join(run(house, "-m", "quantkit", "formats").split())
    out = str(tmp_path / "artifact")
    run(house, "-m", "quantkit", "quantize", str(golden_model), "--method", "toy", "--out", out)
    run(house, "-m", "quantkit", "export", "toy", out, "--out", f"{out}.toy")
    assert "toy" in run(house, "-m", "quantkit", "inspect", f"{out}.toy")
