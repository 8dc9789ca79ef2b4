"""The laws that every plug-in must pass. A plug-in's own test file holds only what is peculiar to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit import registry
from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.publishing import check_files, publish
from quantkit.calibration.statistics import LayerStatistics
from quantkit.errors import UnsupportedSpec, VerificationFailed
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture
from quantkit.protocols import Exporter, ExportOptions, Method, Runtime, TensorReport
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from tests.support.runs import one_layer

# ---------------------------------------------------------------------------------------------------------- exporters


def check_exporter(exporter: Exporter, checkpoint: Checkpoint, options: ExportOptions, folder: Path) -> bool:
    """Hold the exporter laws for `checkpoint`, writing into the empty `folder`.

    Either the container takes the model: it is written twice alike, by one name, in the planned size, and reads back
    as it was. Or it refuses with a reason and leaves nothing behind. Returns whether it was taken.
    """
    one = two = folder
    try:
        planned = exporter.prepare(checkpoint, options)
        one, two = (folder / place / output_name("made", planned) for place in ("one", "two"))
        one.parent.mkdir()
        done = publish(planned, one, inputs=checkpoint.inputs)
    except UnsupportedSpec as refusal:
        check_refusal(exporter, checkpoint, refusal)
        assert list(folder.rglob("*/*")) == []
        return False
    check_sizes(planned, one)
    two.parent.mkdir()
    publish(exporter.prepare(checkpoint, options), two, inputs=checkpoint.inputs)
    assert contents(one) == contents(two), "writing twice gives different bytes"
    assert registry.recognize(one).name == exporter.name
    arch = planned.options.get("arch", options.arch)
    assert arch == options.arch or any("folded" in note for note in planned.notes), (
        "another architecture, without a note"
    )
    given = with_architecture(checkpoint, arch)
    moved = done.manifest["figures"].get("largest_move_in_steps", {})
    check_inverse(given, exporter.read(one), planned, exact_codes=options.type is None, moved=moved)
    return True


def output_name(name: str, planned: PlannedArtifact) -> str:
    """`name`, with a word in it that the artifact's name must hold."""
    return "-".join((name, *planned.name_keywords[:1]))


def check_refusal(exporter: Exporter, checkpoint: Checkpoint, refusal: UnsupportedSpec) -> None:
    """A refusal says which tensor (or that it is the whole model), which container or type, and what to do instead."""
    message = str(refusal)
    containers = [exporter.name, *exporter.types]
    assert any(name in message.lower() for name in containers), message
    assert any(name in message for name in [*checkpoint.weights, "lm_head.weight", str(checkpoint.path)]), message
    assert refusal.hint, f"{message}: no hint"


def check_sizes(planned: PlannedArtifact, artifact: Path) -> None:
    """What was planned is what lies there, byte for byte; and every weight was planned."""
    sizes = {file.name: file.size for file in planned.files}
    if planned.folder:
        found = {path.name: path.stat().st_size for path in artifact.iterdir() if path != manifest_path(artifact)}
        assert found == sizes
    else:
        assert [artifact.stat().st_size] == list(sizes.values())
    assert sum(sizes.values()) == planned.size
    assert sum(tensor.nbytes for tensor in planned.tensors) <= planned.size
    assert len({tensor.name for tensor in planned.tensors}) == len(planned.tensors)


def check_inverse(
    given: Checkpoint, back: Checkpoint, planned: PlannedArtifact, *, exact_codes: bool, moved: Mapping[str, float]
) -> None:
    """read(write(q)) == q. With `exact_codes`, down to codes and zero points, otherwise to what they stand for.

    moved: by how many steps the container says that it moved weights at most, by name.
    """
    assert back.spec == given.spec
    assert list(back.weights) == [slot.name for slot in given.spec.slots()]
    for name, weight in given.weights.items():
        found = back.weights[name]
        assert found.name == name
        assert found.shape == weight.shape
        if isinstance(weight, QuantizedView) and isinstance(found, QuantizedView):
            check_same_codes(name, weight.read(), found.read(), exact=exact_codes, moved=moved.get(name, 0.0))
        elif isinstance(found, QuantizedView) or (isinstance(weight, TensorView) and is_narrow(weight, planned)):
            check_requantized(name, weight, found)
        else:
            check_same_values(name, weight, found)


def is_narrow(weight: TensorView, planned: PlannedArtifact) -> bool:
    """Whether the plan gives a dense weight fewer than 16 bits per value, and so quantizes it.

    Containers with names of their own are asked for tensors of that shape.
    """
    named = [tensor for tensor in planned.tensors if tensor.name == weight.name]
    alike = named or [tensor for tensor in planned.tensors if tensor.shape == weight.shape]
    return any(tensor.nbytes < 2 * math.prod(tensor.shape) for tensor in alike)


def check_same_codes(name: str, given: QuantizedTensor, back: QuantizedTensor, *, exact: bool, moved: float) -> None:
    """Equal scales, and equal weights but for what the container says; it may repeat a scale in smaller groups.

    exact: where the scheme is the same, codes and parameters are equal too. A zero point whose scale is 0 need not come
    back. moved: by how many steps a weight may differ; some weight does, by just so much.
    """
    cols = given.shape[1]
    (scale, wanted), (other, found) = (
        [spread(x, cols) for x in tensor.scheme.effective(tensor.arrays)] for tensor in (given, back)
    )
    assert same_values(other, scale), f"{name}: scales differ"
    matters = scale != 0
    if is_symmetric(given) and is_symmetric(back):
        assert back.numbers_digest() == given.numbers_digest(), f"{name}: the digest depends on the container"
    if exact and back.scheme == given.scheme:
        assert np.array_equal(back.codes, given.codes), f"{name}: codes differ"
        assert np.array_equal(found[matters], wanted[matters]), f"{name}: zero points differ"
    if isinstance(back.scheme, AffineGroups):
        steps = [np.rint(tensor.dequantized()[matters] / scale[matters]) for tensor in (given, back)]
        assert np.array_equal(*steps), f"{name}: weights differ"
        assert moved == 0
        return
    assert np.array_equal(back.codes, given.codes), f"{name}: codes differ"
    distance = np.abs(found.astype(np.float64) - wanted)[matters] / np.abs(scale[matters])
    assert distance.max(initial=0.0) == pytest.approx(moved, rel=1e-6), f"{name}: weights moved otherwise than said"


def is_symmetric(tensor: QuantizedTensor) -> bool:
    """Whether one code stands for zero in all groups by the scheme."""
    return isinstance(tensor.scheme, AffineGroups) and tensor.scheme.symmetric


def check_same_values(name: str, given: Weight, back: TensorView) -> None:
    """The values that were given, rounded once to the dtype that came back."""
    values = given.read().dequantized() if isinstance(given, QuantizedView) else given.read()
    assert same_values(values.astype(back.dtype), back.read()), f"{name} differs"


def check_requantized(name: str, given: TensorView, back: Weight) -> None:
    """A dense weight that the container quantized: its error is that of a grid of at least four bits, and not nothing.

    One step is about 4 standard deviations / 15; rounding gives a root mean square of step / sqrt(12) = 0.08, and twice
    that with every bit less. Types that take weights only as they stand make no error.
    """
    wanted = given.read().astype(np.float64)
    values = back.read().dequantized() if isinstance(back, QuantizedView) else back.read().astype(np.float64)
    bits = 4.5
    if isinstance(back, QuantizedView):
        if back.stored_as in ("tq1_0", "tq2_0", "q2_0"):
            assert np.array_equal(values, wanted), f"{name} differs"
            return
        bits = back.scheme.stored_bits(*back.shape) / back.size
    limit = 0.15 * 2 ** max(0.0, 4.5 - bits)
    assert 0 < np.linalg.norm(values - wanted) < limit * np.linalg.norm(wanted), f"{name} was damaged"


def spread(groups: np.ndarray, cols: int) -> np.ndarray:
    """Group values (rows, groups) repeated to (rows, cols)."""
    return np.repeat(groups, cols // groups.shape[1], axis=1)


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two float arrays hold the same values; -0 equals 0, NaN equals nothing."""
    return one.dtype == other.dtype and np.array_equal(one.astype(np.float64), other.astype(np.float64))


def check_damage(artifact: Path) -> None:
    """An unharmed artifact passes `check_files` without a note; every harm to every file of some size fails it."""
    assert check_files(artifact) == []
    for path in members(artifact):
        original = path.read_bytes()
        for harmed in (
            original[:-1],
            b"",
            flipped(original, 0),
            flipped(original, len(original) // 2),
            original + b"\0",
        ):
            if harmed == original:
                continue
            path.write_bytes(harmed)
            with pytest.raises(VerificationFailed, match=path.name):
                check_files(artifact)
        path.write_bytes(original)
        away = path.with_name(f"renamed-{path.name}")
        path.rename(away)
        with pytest.raises(VerificationFailed, match="missing"):
            check_files(artifact)
        away.rename(path)
    assert check_files(artifact) == []


def flipped(data: bytes, position: int) -> bytes:
    """`data` with one bit of one byte flipped; empty data stays empty."""
    return data and data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def members(artifact: Path) -> list[Path]:
    """The files that the manifest answers for."""
    if not artifact.is_dir():
        return [artifact]
    return sorted(path for path in artifact.iterdir() if path != manifest_path(artifact))


def contents(artifact: Path) -> dict[str, bytes]:
    """Every byte of an artifact and its manifest, whatever the artifact is called."""
    if artifact.is_dir():
        return {path.name: path.read_bytes() for path in artifact.iterdir()}
    return {"": artifact.read_bytes(), "manifest": manifest_path(artifact).read_bytes()}


# ------------------------------------------------------------------------------------------------------------ methods

METHOD_SPECS = [
    AffineGroups(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (2, 3, 4, 8)
    for group_size in (32, 64, 128, -1)
    for symmetric in (True, False)
]


def check_method(method: Method) -> None:
    """Hold every method law on random weights whose inputs are correlated."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((600, 256)).astype(np.float32)
    weight[7] = 0
    original = weight.copy()
    statistics = correlated_statistics(256)
    for spec in METHOD_SPECS:
        tensor, report = one_layer(method, weight, spec, statistics if method.needs_calibration else None)
        again, same_report = one_layer(
            method, weight, spec, statistics if method.needs_calibration else None, threads=2
        )
        assert tensor.scheme == spec
        assert tensor.shape == weight.shape
        assert np.array_equal(weight, original), f"{spec}: the method changed its input"
        for one, two in ((tensor.codes, again.codes), (tensor.scale, again.scale), (tensor.zero, again.zero)):
            assert one.tobytes() == two.tobytes(), f"{spec}: two threads give other numbers than one"
        assert report == same_report
        assert report.fallback is None
        assert (tensor.dequantized()[7] == 0).all(), f"{spec}: a row of zeros is not zero"
        check_method_error(method, weight, statistics, tensor, report)


def check_exact_method(method: Method) -> None:
    """Weights that lie on a grid come back exactly, whatever the threads; grids that are not symmetric are refused."""
    weight = np.random.default_rng(0).standard_normal((600, 256)).astype(np.float32)
    weight[7] = 0
    for spec in METHOD_SPECS:
        given = round_to_nearest(weight, spec).dequantized()
        if not spec.symmetric:
            with pytest.raises(UnsupportedSpec, match="only symmetric"):
                one_layer(method, given, spec, None)
            continue
        tensor, report = one_layer(method, given, spec, None)
        again, _ = one_layer(method, given, spec, None, threads=2)
        assert np.array_equal(tensor.dequantized(), given), str(spec)
        assert tensor.numbers_digest() == again.numbers_digest()
        assert (report.error, report.fallback) == (0.0, None)


def check_method_error(
    method: Method, weight: np.ndarray, statistics: LayerStatistics, tensor: QuantizedTensor, report: TensorReport
) -> None:
    """The reported error is the true one and lies between two bounds: too small would mean that nothing was quantized.

    Without calibration: 0.6 to 1.7 times that of noise spread evenly over each step, step² / 12.
    With calibration: 0.05 to 0.7 times the output error of round to nearest; below 1 for a method that `scales_inputs`,
    most of whose gain lies in the scaling beforehand.
    """
    spec, hessian = tensor.scheme, statistics.hessian.numpy() if method.needs_calibration else np.eye(weight.shape[1])
    error = relative_output_error(weight, tensor.dequantized(), hessian)
    assert report.error == pytest.approx(error, rel=1e-6)
    if method.needs_calibration:
        baseline, _ = one_layer(registry.method("rtn"), weight, spec, None)
        reference = relative_output_error(weight, baseline.dequantized(), hessian)
        most = 1.0 if method.scales_inputs else 0.7
        assert 0.05 * reference < error < most * reference, f"{spec}: {error / reference:.3f} x round to nearest"
    else:
        steps = spread(tensor.scale, weight.shape[1])[weight.any(axis=1)].astype(np.float64)
        reference = (steps**2).sum() / 12 / (weight.astype(np.float64) ** 2).sum()
        assert 0.6 * reference < error < 1.7 * reference, f"{spec}: {error / reference:.3f} x even noise"


def correlated_statistics(cols: int, *, tokens: int = 4096, seed: int = 1) -> LayerStatistics:
    """Statistics of random inputs: some channels large, all of them mixed."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cols, cols)) * (rng.random(cols) ** 3)[:, None]
    inputs = rng.standard_normal((tokens, cols)) @ mixing
    return LayerStatistics(torch.from_numpy(inputs.T @ inputs), tokens)


def relative_output_error(weight: np.ndarray, quantized: np.ndarray, hessian: np.ndarray) -> float:
    """tr((W - Q) H (W - Q)ᵀ) / tr(W H Wᵀ) in float64."""
    exact = weight.astype(np.float64)
    damage = exact - quantized
    return float(np.sum((damage @ hessian) * damage) / np.sum((exact @ hessian) * exact))


# ----------------------------------------------------------------------------------------------------------- runtimes

ROUNDING: Mapping[str, float] = {
    "float32": 2.0**-20,  # sums of a few hundred products, each rounded by 2^-24
    "float16 inputs": 2.0**-12,
    "bfloat16 inputs": 2.0**-9,
    "float16": 2.0**-10,  # everything, not inputs alone
    "int8 inputs": 2.0**-7.5,  # 1 / 254 of the largest of 32
    "int8 tokens": 2.0**-7,  # of a few hundred
    "int8 inputs of 256": 2.0**-7.2,
}
"""Relative error of a product in an engine's arithmetic, root mean square."""


def check_runtime(runtime: Runtime, artifact: Path) -> None:
    """Hold the runtime laws on an artifact that it takes.

    Logits are float32, one row a token, the same when asked again. They equal the reference's within what the engine
    says of its arithmetic, roundings of one layer after the other adding up like independent ones. The last row is what
    `next_logits` gives, whatever was asked before.
    """
    checkpoint = registry.open_checkpoint(artifact)
    assert runtime.refuses(checkpoint) is None
    ids = [1, 372, 45, 1900, 7, 7, 230, 88]
    with registry.runtime("reference").open(artifact) as oracle:
        expected = centred(oracle.logits(ids))
    with runtime.open(artifact) as session:
        found, again = session.logits(ids), session.logits(ids)
        session.next_logits(ids[:3])
        last = session.next_logits(ids)
    assert found.dtype == np.float32
    assert found.shape == (len(ids), checkpoint.spec.vocab_size)
    assert np.array_equal(found, again)
    products = 7 * checkpoint.spec.num_hidden_layers + 1
    allowed = 4 * ROUNDING[runtime.arithmetic(checkpoint)] * math.sqrt(products)
    assert root_mean_square(centred(found) - expected) <= allowed * root_mean_square(expected)
    likely = np.isfinite(last)
    assert likely.sum() > 100
    rest = centred(found[-1:])[0][likely] - centred(last[None])[0][likely]
    assert root_mean_square(rest - rest.mean()) <= allowed * root_mean_square(expected)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits up to the constant per row that they are known up to; -inf stays."""
    wide = logits.astype(np.float64)
    return wide - np.where(np.isfinite(wide), wide, 0).sum(-1, keepdims=True) / np.isfinite(wide).sum(-1, keepdims=True)


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))
