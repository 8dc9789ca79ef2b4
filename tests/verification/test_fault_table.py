"""The table of seeded faults: what it must hold, that its faults do what they say, and a part of it, tried.

`python -m benchmarks.fault_table` tries every fault in every kind of weights and container.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.faults import scalars
from benchmarks.faults.catalog import FAULTS
from benchmarks.faults.fault import Fault, Level, NotApplicable, Way
from benchmarks.faults.gguf_bytes import read_raw
from benchmarks.faults.trials import alarms, cell
from benchmarks.faults.workbench import GRIDS, Variant, Workbench, content, grid, unchanged
from quantkit.artifacts.manifest import check_files
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.quantized_models import random_quantized

KINDS = {"files": 10, "provenance": 6, "scalars": 15, "tokens": 8, "template": 3, "tokenizer": 8, "weights": 20}
KINDS |= {"container": 15, "codes": 12, "engine": 10}
EQUAL_FACTORS = {"long and short factors swapped", "long factors = short factors"}
"""What changes nothing where long and short LongRoPE factors are equal."""
F16_FOLDER, F16_FILE = Variant("f16", None, "folder"), Variant("f16", None, "gguf")
INT8_FILE, INT4_FOLDER = Variant("int8", grid(8), "gguf"), Variant("int4", grid(4), "folder")
INT4_FILE = Variant("int4", grid(4), "gguf")
TERNARY_FILE = Variant("ternary", GRIDS["ternary"], "gguf")
CODES = [fault for fault in FAULTS if fault.level is Level.CODES]


def named(name: str) -> Fault:
    return next(fault for fault in FAULTS if fault.name == name)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, golden_model) -> Workbench:
    return Workbench(golden_model, golden_model.parent / "golden.bin", tmp_path_factory.mktemp("faults"))


def test_the_table_has_every_kind_of_fault():
    names = Counter(fault.name for fault in FAULTS)
    assert max(names.values()) == 1
    assert len(names) >= 60
    found = Counter(fault.kind for fault in FAULTS)
    assert set(found) == set(KINDS)
    assert all(found[kind] >= least for kind, least in KINDS.items()), found
    assert all(fault.trials and all(trial.steps for trial in fault.trials) for fault in FAULTS)


def differences(one: Checkpoint, other: Checkpoint) -> set[str]:
    """What differs between two dense checkpoints: "spec", names of files, names of weights."""
    found = {"spec"} if one.spec != other.spec else set()
    names = set(one.files) | set(other.files)
    found |= {n for n in names if n not in one.files or n not in other.files or one.files[n]() != other.files[n]()}
    weights = set(one.weights) ^ set(other.weights)
    for name in set(one.weights) & set(other.weights):
        if not np.array_equal(one.weights[name].read(), other.weights[name].read()):
            weights.add(name)
    return found | weights


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.level is Level.SOURCE], ids=lambda fault: fault.name)
def test_a_fault_of_the_source_changes_what_its_kind_says_and_nothing_else(bench, fault):
    source = bench.source()
    changed = differences(source, fault.change(source))
    if fault.name in EQUAL_FACTORS:
        assert not changed
        return
    assert changed
    weights = {name for name in changed if name in source.weights or name == scalars.HEAD}
    if fault.kind == "weights":
        assert changed == weights
    elif fault.kind == "scalars":
        assert "spec" in changed
        assert weights <= {scalars.HEAD}
    else:
        assert not weights


@pytest.mark.parametrize("fault", CODES, ids=lambda fault: fault.name)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_fault_of_codes_makes_another_valid_tensor_of_the_same_grid(fault, bits, symmetric):
    tensor = random_quantized((64, 128), AffineGroups(bits=bits, group_size=32, symmetric=symmetric), 0)
    try:
        changed = fault.change(tensor)
    except NotApplicable:
        assert symmetric
        return
    assert (changed.scheme, changed.shape) == (tensor.scheme, tensor.shape)
    assert not np.array_equal(changed.dequantized(), tensor.dequantized())


def test_a_gguf_file_taken_apart_and_put_together_is_the_same_file(bench):
    path = bench.honest(INT4_FILE).path
    raw = read_raw(path)
    assert raw.to_bytes() == path.read_bytes()
    assert raw.value("general.architecture") == b"minicpm"
    assert set(raw.entries) == set(read_gguf(path).metadata)


@pytest.mark.parametrize("variant", [F16_FILE, INT4_FOLDER], ids=str)
def test_signed_anew_means_that_the_files_are_those_of_the_manifest(bench, variant, tmp_path):
    honest = bench.honest(variant)
    for name in ("rope_theta doubled", "attention of one layer zeroed"):
        for trial, inputs in bench.wrong(named(name), variant):
            if trial.way is Way.SIGNED:
                assert inputs is not None
                assert check_files(inputs.path) == []
                assert content(inputs.path).keys() == content(honest.path).keys()
                assert not unchanged(named(name), inputs.path, honest.path)


def test_what_changes_nothing_is_not_counted_as_caught(bench):
    for name in EQUAL_FACTORS:
        tried = cell(bench, named(name), F16_FILE)
        assert [outcome.step for outcome in tried.outcomes] == [None] * len(tried.outcomes)
        assert str(tried) == "no change"


def test_what_makes_no_sense_is_left_out_with_its_reason(bench):
    tried = cell(bench, named("one code by one step"), F16_FOLDER)
    assert (str(tried), tried.reason) == ("-", "no codes")
    assert cell(bench, named("tokenizer renamed"), F16_FILE).reason == "folder only"


@pytest.mark.parametrize("variant", [F16_FOLDER, F16_FILE, INT8_FILE, INT4_FOLDER, INT4_FILE, TERNARY_FILE], ids=str)
def test_the_honest_artifact_is_not_accused(bench, variant):
    for name, alarm in alarms(bench, bench.against_all(str(variant), bench.honest(variant))):
        assert not alarm, name


CHOSEN = (
    *(
        (name, INT8_FILE)
        for name in ("attention of one layer zeroed", "two query heads swapped", "one code by one step")
    ),
    *((name, INT8_FILE) for name in ("rope_theta doubled", "scale_emb 12 -> 11", "scale_depth 1.4 -> 1.5")),
    *((name, INT8_FILE) for name in ("dim_model_base 64 -> 66", "rms_norm_eps x 100", "another stop id instead")),
    *((name, INT4_FILE) for name in ("2 % of codes shifted by 2", "GGUF: embedding_scale 12 -> 11", "another bos")),
    *((name, TERNARY_FILE) for name in ("2 % of codes shifted by 2", "one group's scale negated", "codes off by one")),
    *((name, INT4_FOLDER) for name in ("golden file of the artifact itself", "--against the artifact itself")),
    *((name, INT4_FOLDER) for name in ("manifest missing", "one group's scale doubled", "chat template dropped")),
    *((name, INT4_FOLDER) for name in ("gate and up exchanged", "artifact of another model", "config.json edited")),
    *((name, F16_FILE) for name in ("1,700 vocabulary entries rotated", "one bit flipped", "o x 1.01")),
    *((name, F16_FOLDER) for name in ("tokenizer.json alone rotated", "two norms exchanged", "tie flag flipped")),
)


@pytest.mark.parametrize(("name", "variant"), CHOSEN, ids=str)
def test_a_fault_is_caught_in_the_step_that_is_meant_for_it(bench, name, variant):
    tried = cell(bench, named(name), variant)
    assert tried.outcomes
    assert not list(tried.problems())
