"""The model in training: which weights move, and that it computes with exactly what is exported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantkit.models.loading import CPU, load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.training.weights.optimizer import Optimizer
from quantkit.training.weights.student import Student, naive_model
from tests.support.quantized_models import BF16
from tests.support.trainings import OPTIONS, original, rounded


def student(dense: str = "norms", scales: str = "learned") -> Student:
    model = original()
    return Student(model, rounded(model), replace(OPTIONS, dense=dense, scales=scales), CPU)


def stepped(made: Student) -> Student:
    """One step from random gradients."""
    names = made.trained_names()
    random = torch.Generator().manual_seed(0)
    made.backward(names, [torch.randn(one.shape, generator=random) for one in made.weights(names)])
    Optimizer(made, names).step(5.0)
    made.refresh()
    return made


def test_a_student_begins_as_the_quantized_model() -> None:
    ids = torch.arange(20)[None]
    assert torch.equal(student().module(ids), load_model(rounded(original()))(ids))


@pytest.mark.parametrize(
    ("dense", "moving"),
    [
        ("frozen", ()),
        ("norms", ("layernorm",)),
        ("all", ("layernorm", "embed_tokens", "model.norm")),
    ],
)
def test_only_what_was_asked_for_is_trained(dense: str, moving: tuple[str, ...]) -> None:
    before, made = student().module, stepped(student(dense))
    for name, weight in made.module.named_parameters():
        moves = name.endswith("_proj.weight") or any(part in name for part in moving)
        assert torch.equal(weight, before.get_parameter(name)) != moves, name
    assert set(made.dense()) == {name for name, _ in before.named_parameters() if any(part in name for part in moving)}


@pytest.mark.parametrize("scales", ["learned", "derived"])
def test_what_is_exported_is_what_the_module_computes_with(scales: str) -> None:
    made = stepped(student("all", scales))
    found = {name: tensor.dequantized() for name, tensor in made.tensors().items()} | {
        name: values.astype(np.float32) for name, values in made.dense().items()
    }
    assert set(found) == {name for name, _ in made.module.named_parameters()}
    for name, values in found.items():
        np.testing.assert_array_equal(made.module.get_parameter(name).detach().numpy(), values)
    assert all(values.dtype == BF16 for values in made.dense().values())


def test_a_block_is_trained_by_itself() -> None:
    made = student()
    names = made.trained_names(1)
    assert len(names) == 9
    assert all(name.startswith("model.layers.1.") for name in names)


def test_learning_rates_are_relative_to_what_they_move() -> None:
    parameters = {one.name: one.rate for one in student("all", "derived").parameters(student("all").trained_names())}
    embedding = original().weights["model.embed_tokens.weight"].read().astype(np.float32)
    matrix = original().weights["model.layers.0.mlp.up_proj.weight"].read().astype(np.float32)
    assert parameters["model.embed_tokens.weight"] == pytest.approx(
        OPTIONS.dense_rate * np.sqrt(np.square(embedding).mean()), rel=1e-5
    )
    assert parameters["model.layers.0.mlp.up_proj.weight.latent"] == pytest.approx(
        OPTIONS.learning_rate * np.abs(matrix).mean(), rel=1e-5
    )


def test_a_naive_model_has_three_values_in_every_row() -> None:
    model: MiniCPM = naive_model(original(), rounded(original()), CPU)
    row = model.get_parameter("model.layers.0.mlp.up_proj.weight")[0].abs().unique()
    assert len(row) == 2
    assert row[0] == 0
    matrix = torch.from_numpy(original().weights["model.layers.0.mlp.up_proj.weight"].read().astype(np.float32))
    assert float(row[1]) == pytest.approx(float(matrix[0].abs().mean()), rel=2**-8)
