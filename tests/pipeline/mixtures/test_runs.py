"""Artifacts made to a size: never larger, refused in time, alike where engines want it, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import quantkit  # noqa: E402
from quantkit import registry  # noqa: E402
from quantkit.artifacts.manifest import CARD_NAME  # noqa: E402
from quantkit.artifacts.publishing import Published  # noqa: E402
from quantkit.calibration.samples import CalibrationOptions  # noqa: E402
from quantkit.cli.app import main  # noqa: E402
from quantkit.errors import BadOption, UnsupportedSpec  # noqa: E402
from quantkit.pipeline.mixtures.size import TargetSize  # noqa: E402
from quantkit.pipeline.options import QuantizeOptions  # noqa: E402
from quantkit.pipeline.planning.verdicts import verdicts  # noqa: E402
from quantkit.pipeline.recipe import Recipe, Rule  # noqa: E402
from quantkit.protocols import ExportOptions  # noqa: E402
from quantkit.tensors.block_options import BlockOptions  # noqa: E402
from quantkit.tensors.schemes.affine_groups import AffineGroups  # noqa: E402
from quantkit.tensors.views import QuantizedView, mixture  # noqa: E402
from quantkit.verification.proof import verify  # noqa: E402
from tests.support.tiny import write_tiny_checkpoint  # noqa: E402

FEW = QuantizeOptions(calibration=CalibrationOptions(sequences=3, length=16))
CALIBRATED, REFERENCE = (ExportOptions(blocks=BlockOptions(algorithm=name)) for name in ("calibrated", "reference"))
K = ("q3_k", "q4_k", "q6_k")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block whose rows are whole super-blocks, tied."""
    folder = tmp_path_factory.mktemp("mixtures") / "small"
    return write_tiny_checkpoint(folder, layers=1, intermediate=256, vocab=128)


def to_size(model: Path, out: Path, bits: float, options: ExportOptions = REFERENCE, **more) -> quantkit.Published:
    size = TargetSize(bits_per_weight=bits)
    return quantkit.export_to_size("gguf", model, out, size, options, **{"quantization": FEW, "types": K, **more})


def weights(model: Path) -> int:
    return sum(weight.size for weight in registry.open_checkpoint(model).weights.values())


def test_a_file_is_as_large_as_was_asked_and_no_larger(small, tmp_path) -> None:
    made = {bits: to_size(small, tmp_path / f"{bits}.gguf", bits) for bits in (5.5, 6.0, 6.5)}
    for bits, done in made.items():
        chosen = done.manifest["report"]["mixture"]
        assert chosen["planned_size"] == done.size == done.path.stat().st_size
        assert done.size * 8 <= bits * weights(small)
        assert done.size * 8 > (bits - 0.2) * weights(small)
        read = registry.open_checkpoint(done.path)
        assert {name: read.weights[name].stored_as for name in chosen["types"]} == chosen["types"]
    losses = [done.manifest["report"]["mixture"]["predicted_kl"] for done in made.values()]
    assert losses[0] > losses[1] > losses[2] > 0


def test_calibrated_files_are_the_same_every_time_and_verify(small, tmp_path) -> None:
    made = [
        to_size(small, tmp_path / f"{n}.gguf", 6.0, CALIBRATED, compute=quantkit.Compute(threads=1 + n))
        for n in range(2)
    ]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert made[0].manifest["report"]["weights"]["digests"]
    assert verify(made[0].path, against=small, engine="reference").passed


def test_a_tensor_that_is_given_a_type_has_it(small, tmp_path) -> None:
    blocks = BlockOptions(algorithm="reference", tensor_types=("ffn_down=q8_0",), embedding_type="q5_0")
    done = to_size(small, tmp_path / "x.gguf", 7.0, ExportOptions(blocks=blocks))
    types = done.manifest["report"]["mixture"]["types"]
    assert types["model.embed_tokens.weight"] == "q5_0"
    assert {kind for name, kind in types.items() if "down_proj" in name} == {"q8_0"}
    assert {kind for name, kind in types.items() if "_proj" in name and "down" not in name} <= set(K)


def test_a_size_that_none_has_is_refused_with_the_smallest(small, tmp_path) -> None:
    with pytest.raises(BadOption, match="no mixture of these types is as small as") as refused:
        to_size(small, tmp_path / "x.gguf", 1.0)
    assert refused.value.hint is not None
    least = int(refused.value.hint.split("--target-size ")[1].split(",")[0])
    done = quantkit.export_to_size(
        "gguf", small, tmp_path / "y.gguf", TargetSize(nbytes=least), REFERENCE, quantization=FEW, types=K
    )
    assert done.size == least
    with pytest.raises(BadOption):
        to_size(small, tmp_path / "x.gguf", (least - 1) * 8 / weights(small))
    assert not (tmp_path / "x.gguf").exists()


def test_what_says_the_types_already_is_refused(small, tmp_path) -> None:
    size, out = TargetSize(bits_per_weight=6.0), tmp_path / "x"
    for options in (
        ExportOptions(type="q4_k_m"),
        ExportOptions(blocks=BlockOptions(pure=True)),
        ExportOptions(blocks=BlockOptions(algorithm="none")),
    ):
        with pytest.raises(BadOption):
            quantkit.export_to_size("gguf", small, out, size, options)
    with pytest.raises(BadOption, match="cannot choose 'q9'"):
        quantkit.export_to_size("gguf", small, out, size, types=["q9"])
    with pytest.raises(BadOption, match="no types to choose from"):
        quantkit.export_to_size("mlx", small, out, size)
    with pytest.raises(BadOption, match="codes of its own bits"):
        quantkit.quantize_to_size(small, out, size, QuantizeOptions(method="ternary"))
    quantized = quantkit.export("gguf", small, tmp_path / "q.gguf", ExportOptions(type="q8_0")).path
    with pytest.raises(UnsupportedSpec, match="quantized already"):
        quantkit.export_to_size("gguf", quantized, out, size)
    assert not out.exists()


def without_card(done: Published) -> int:
    """Bytes of an artifact but for its model card, which a target leaves aside."""
    return done.size - (done.path / CARD_NAME).stat().st_size


def test_layers_that_vllm_makes_one_of_are_alike_and_it_takes_them(small, tmp_path) -> None:
    out = tmp_path / "codes"
    done = quantkit.quantize_to_size(small, out, TargetSize(bits_per_weight=7.0), FEW)
    assert without_card(done) == done.manifest["report"]["mixture"]["planned_size"] <= 7.0 * weights(small) / 8
    model = registry.open_checkpoint(out)
    spec = model.spec
    for layer in range(spec.num_hidden_layers):
        for group in spec.groups:
            assert mixture([model.weights[spec.weight_name(layer, role)] for role in group.roles]) is None
    schemes = {str(weight.scheme) for weight in model.weights.values() if isinstance(weight, QuantizedView)}
    assert len(schemes) > 1
    takers = {verdict.kernel for verdict in verdicts(model) if verdict.refusal is None}
    assert "vllm-cuda-marlin" in takers
    assert verify(out, against=small, engine="reference").passed


@pytest.mark.parametrize(("container", "bits"), [("mlx", 7.0), ("onnx", 16.0)])
def test_the_size_is_that_of_the_container_that_is_meant(container: str, bits: float, small, tmp_path) -> None:
    options = QuantizeOptions(method="rtn", scheme=AffineGroups(bits=4, group_size=64), calibration=FEW.calibration)
    size = TargetSize(bits_per_weight=bits)
    done = quantkit.quantize_to_size(small, tmp_path / "codes", size, options, container=container)
    exported = quantkit.export(container, tmp_path / "codes", tmp_path / container)
    planned = done.manifest["report"]["mixture"]["planned_size"]
    assert abs(without_card(exported) - planned) < 0.002 * planned  # of the run's own files, a few names are others
    assert without_card(exported) <= 1.002 * size.budget(weights(small))


def test_rules_of_a_recipe_stand(small, tmp_path) -> None:
    rule = Rule(match="model.layers.0.self_attn.*", settings={"bits": 8, "group_size": 128})
    options = QuantizeOptions(recipe=Recipe((rule,)), calibration=FEW.calibration, method="rtn")
    done = quantkit.quantize_to_size(small, tmp_path / "codes", TargetSize(bits_per_weight=8.0), options)
    assert not any("layers.0.self_attn" in name for name in done.manifest["report"]["mixture"]["types"])
    view = registry.open_checkpoint(tmp_path / "codes").weights["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(view, QuantizedView)
    assert view.scheme.bits == 8


def test_the_command_line_shows_what_was_chosen(small, tmp_path, capsys) -> None:
    arguments = ["export", "gguf", str(small), "--out", str(tmp_path / "x.gguf"), "--samples", "3"]
    assert main([*arguments, "--candidate", "q4_k"]) == 2
    assert "--candidate is for --target-bpw" in capsys.readouterr().err
    assert main([*arguments, "--target-bpw", "6", "--target-size", "1MB"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert main([*arguments, "--target-bpw", "6", "--candidate", "q4_k", "--candidate", "q6_k"]) == 0
    out = capsys.readouterr().out
    assert "chosen by measured loss: " in out
    assert "x q4_k" in out
    assert "predicted KL" in out
