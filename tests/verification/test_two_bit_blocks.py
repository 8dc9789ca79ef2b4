"""Two bits a weight in llama.cpp: right files pass every step of `verify`, damaged ones fail where they should."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks.faults.engine import Misled
from quantkit import registry
from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.publishing import publish
from quantkit.exporters.gguf.blocks import BlockType, pack, unpack
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.proof import verify
from quantkit.verification.report import Report
from quantkit.verification.steps import sequence
from tests.support.runs import quantized, read_through
from tests.support.wrong_models import signed

pytestmark = pytest.mark.engine("llama-cpp")

SCHEMES = {
    "tq2_0": AffineGroups(bits=2, group_size=-1, ternary=True),
    "tq1_0": AffineGroups(bits=2, group_size=256, ternary=True),
    "q2_0": AffineGroups(bits=2, group_size=64, ternary=True),
    "q2_0 of four levels": AffineGroups(bits=2, group_size=64),
}
TENSOR, NAME = "blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"
PROMPTS = 2
Damage = Callable[[BlockType, np.ndarray], None]
"""Changes the blocks (n, bytes) of a tensor in place."""


@pytest.fixture(scope="module")
def golden(golden_model: Path) -> Golden:
    return read_golden(golden_model.parent / "golden.bin")


@pytest.fixture(scope="module", params=SCHEMES)
def artifact(request: pytest.FixtureRequest, golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = registry.open_checkpoint(golden_model)
    run: Checkpoint = read_through(quantized(model, SCHEMES[request.param], "rtn"))
    planned = registry.exporter("gguf").prepare(run, ExportOptions(type=request.param.split()[0]))
    return publish(planned, tmp_path_factory.mktemp("artifact") / "m.gguf", inputs=model.inputs).path


def damaged(artifact: Path, folder: Path, damage: Damage) -> Path:
    """A copy with its manifest, in which the blocks of `TENSOR` are changed."""
    path = folder / artifact.name
    shutil.copy(artifact, path)
    shutil.copy(manifest_path(artifact), manifest_path(path))
    info = read_gguf(path).tensors[TENSOR]
    data = np.fromfile(path, np.uint8)
    damage(info.type, data[info.start : info.start + info.nbytes].reshape(-1, info.type.nbytes))
    data.tofile(path)
    return path


def negate_one_scale(block: BlockType, blocks: np.ndarray) -> None:
    blocks[5, block.fields][1] ^= 0x80


def move_one_code(block: BlockType, blocks: np.ndarray) -> None:
    codes, scale, _ = unpack(block, blocks[3:4])
    codes[0, 40] = (codes[0, 40] + 1) % block.levels
    blocks[3:4] = pack(block, codes, scale)


def fill_with_ones(block: BlockType, blocks: np.ndarray) -> None:
    """Code 3 of all in the two types that have it in their bytes; in TQ2_0 it stands for nothing."""
    blocks[7, block.packed][:2] = 0xFF


def turn_the_bytes_round(block: BlockType, blocks: np.ndarray) -> None:
    """Every block's codes from back to front, byte by byte."""
    blocks[:, block.packed] = blocks[:, block.packed][:, ::-1].copy()


def failed_at(report: Report) -> str:
    assert report.failed is not None
    return report.failed.name


def test_a_right_file_is_verified(artifact: Path, golden: Golden) -> None:
    report = verify(artifact, golden=golden, engine="llama-cpp", prompts=PROMPTS)
    assert report.passed, report.lines()
    assert report.verdict == "verified, run in llama-cpp"


@pytest.mark.parametrize("damage", [negate_one_scale, move_one_code, fill_with_ones])
def test_a_damaged_block_is_found(artifact: Path, golden: Golden, damage: Damage, tmp_path: Path) -> None:
    """By the file's digest, and where that was made right again, by the numbers of the one tensor."""
    path = damaged(artifact, tmp_path, damage)
    assert failed_at(verify(path, golden=golden, engine="none")) == "files"
    report = verify(signed(path), golden=golden, engine="none")
    assert failed_at(report) == "numbers"
    assert report.failed is not None
    assert NAME in report.failed.says or TENSOR in report.failed.says


def test_an_engine_that_takes_the_codes_of_one_matrix_in_another_order_is_found(
    artifact: Path, golden: Golden, tmp_path: Path
) -> None:
    wrong = damaged(artifact, tmp_path, turn_the_bytes_round)
    misled = Misled(registry.runtime("llama-cpp"), wrong)
    with patch.object(sequence, "engine_of", lambda name, checkpoint: misled):
        report = verify(artifact, golden=golden, engine="llama-cpp", prompts=PROMPTS)
    assert failed_at(report) == "engine"
    assert report.divergence is not None
    assert report.divergence.stage == "block 2"
    near = next(check for check in report.checks if check.name == "llama-cpp against reference")
    assert all(comparison.kl > 3 * comparison.limit for comparison in near.comparisons)
