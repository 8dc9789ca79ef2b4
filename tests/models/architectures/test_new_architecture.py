"""A new family is one new file: found by its name, opened, inspected, quantized, exported and run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.calibration.samples import make_samples
from quantkit.errors import BadConfig, UnsupportedModel, UnsupportedSpec
from quantkit.models import architectures
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.inspection import inspection
from quantkit.models.recognition import parse_config
from quantkit.models.spec import architecture
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import random_arrays, tiny_config
from tests.support.runs import quantized

TOY = '''
"""Toys: dense decoders with three scalars under names of their own."""

from quantkit.models.architectures._dense_decoder import DenseDecoder, Scalars


def scalars(reader, hidden, layers):
    return Scalars(
        scale_emb=reader.number("toy_gain"),
        residual_scale=reader.number("toy_branch"),
        logit_divisor=reader.number("toy_chill"),
    )


ARCHITECTURE = DenseDecoder(
    name="toy",
    summary="ToyForCausalLM (a toy)",
    classes=("ToyForCausalLM",),
    model_types=("toy",),
    scalars=scalars,
    scalar_keys=("toy_gain", "toy_branch", "toy_chill"),
)
'''
CONFIG = tiny_config(
    architectures=["ToyForCausalLM"], model_type="toy", toy_gain=5.0, toy_branch=0.3, toy_chill=2.0,
    scale_emb=None, scale_depth=None, dim_model_base=None, intermediate_size=128,
)  # fmt: skip
IDS = [1, 7, 42, 5, 90, 33, 2, 64]
INT4 = AffineGroups(bits=4, group_size=32)


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[None]:
    """The file of the family in a folder of its own, which the package is told to look into as well."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY, encoding="utf-8")
    architectures.__path__.append(str(folder))
    importlib.invalidate_caches()
    yield
    architectures.__path__.remove(str(folder))
    sys.modules.pop(f"{architectures.__name__}.toy", None)
    architecture.cache_clear()


@pytest.fixture
def toy(tmp_path: Path, toys: None) -> Checkpoint:
    """A random toy in a Hugging Face folder."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save_file(random_arrays(parse_config(CONFIG)), folder / "model.safetensors")
    return registry.open_checkpoint(folder)


def exported(checkpoint: Checkpoint, name: str, out: Path, **options: str) -> Checkpoint:
    publish(registry.exporter(name).prepare(checkpoint, ExportOptions(**options)), out, inputs=checkpoint.inputs)
    return registry.open_checkpoint(out)


def reference(path: Path) -> np.ndarray:
    with registry.runtime("reference").open(path) as session:
        return session.logits(IDS)


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for float32 rounding."""
    return bool(np.abs(found - wanted).max() < 32 * np.finfo(np.float32).eps * np.abs(wanted).max())


def test_without_its_file_the_family_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'ToyForCausalLM' is not supported") as refusal:
        parse_config(CONFIG)
    assert "LlamaForCausalLM" in (refusal.value.hint or "")


def test_with_its_file_it_is_opened_and_inspected(toy: Checkpoint) -> None:
    assert (toy.spec.architecture, toy.spec.scale_emb, toy.spec.residual_scale) == ("toy", 5.0, 0.3)
    assert inspection(toy).facts["architecture"] == "toy"
    assert toy.notes == ()


def test_its_config_is_held_to_the_same_rules(toys: None) -> None:
    with pytest.raises(BadConfig, match="toy_gain must be a positive finite number"):
        parse_config({**CONFIG, "toy_gain": None})
    with pytest.raises(UnsupportedModel, match="num_local_experts"):
        parse_config({**CONFIG, "num_local_experts": 8})


def test_a_dense_export_runs_in_the_reference_as_in_torch(toy: Checkpoint, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from quantkit.models.loading import load_model  # noqa: PLC0415 - imports torch

    wanted = load_model(toy)(torch.tensor([IDS]))[0].numpy()
    back = exported(toy, "hf", tmp_path / "out", type="f32")
    assert back.spec == toy.spec
    assert close(reference(back.path), wanted)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_it_is_quantized_by_every_kind_of_method(toy: Checkpoint, method: str, tmp_path: Path) -> None:
    rows = list(np.random.default_rng(0).integers(0, 97, (8, 32)))
    run = quantized(toy, INT4, method, calibration=make_samples(rows, source="random", digest=""))
    back = exported(run.checkpoint, "compressed-tensors", tmp_path / "out")
    assert back.spec == toy.spec
    packed = [name for name, weight in back.weights.items() if isinstance(weight, QuantizedView)]
    assert len(packed) == 7 * toy.spec.num_hidden_layers
    error = np.abs(reference(back.path) - reference(toy.path)).max()
    assert 0 < error < np.ptp(reference(toy.path)) / 2


def test_it_folds_into_the_llama_that_computes_the_same(toy: Checkpoint, tmp_path: Path) -> None:
    back = exported(toy, "hf", tmp_path / "out", arch="llama", type="f32")
    assert back.spec.architecture == "llama"
    assert close(reference(back.path), reference(toy.path))
    assert exported(toy, "gguf", tmp_path / "m.gguf", arch="llama").spec.architecture == "llama"


def test_containers_of_engines_that_do_not_know_it_refuse_it_by_name(toy: Checkpoint) -> None:
    with pytest.raises(UnsupportedModel, match="gguf has no architecture 'toy'") as refusal:
        registry.exporter("gguf").prepare(toy, ExportOptions())
    assert "--arch llama" in (refusal.value.hint or "")
    int4 = quantized(toy, AffineGroups(bits=4, group_size=-1), "rtn").checkpoint
    with pytest.raises(UnsupportedSpec, match=r"CPM\.cu knows no toy"):
        registry.exporter("marlin").prepare(int4, ExportOptions())
