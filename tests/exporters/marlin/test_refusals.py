"""What Marlin refuses: weights that no kernel takes, unknown options, and folder names that hide the quantization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import preflight, publish
from quantkit.cli.app import main
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.marlin.exporter import EXPORTER
from quantkit.models.spec import Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.marlin_models import (
    CPM_CU,
    INT4,
    IST,
    LLAMA,
    LONGROPE,
    MINICPM,
    PER_ROW,
    STRADDLING,
    check_equal,
    model,
    written,
)
from tests.support.quantized_models import Choice, linears, quantized_model


def only(role: Role, spec: AffineGroups | None, others: AffineGroups = INT4) -> Choice:
    """`spec` for one role, `others` for the other linear layers."""
    return lambda slot: spec if slot.role is role else linears(others)(slot)


def dense_head(slot: TensorSlot) -> AffineGroups | None:
    return AffineGroups(bits=4, group_size=128) if slot.role is Role.LM_HEAD else linears(INT4)(slot)


def with_rope(**changes: Any) -> dict[str, Any]:
    return {**MINICPM, "rope_scaling": {**LONGROPE, **changes}}


REFUSED: Mapping[str, tuple[dict[str, Any], Choice, ExportOptions, str]] = {
    "eight bits": (MINICPM, linears(AffineGroups(bits=8, group_size=128)), CPM_CU, "q_proj.*4 bits only"),
    "asymmetric": (
        MINICPM,
        linears(AffineGroups(bits=4, group_size=128, symmetric=False)),
        CPM_CU,
        "q_proj.*symmetric",
    ),
    "groups of 32": (MINICPM, linears(AffineGroups(bits=4, group_size=32)), CPM_CU, "q_proj.*groups of 128"),
    "float32 scales": (
        MINICPM,
        linears(AffineGroups(bits=4, group_size=128, scale_dtype="float32")),
        IST,
        "q_proj.*float16 scales",
    ),
    "q unlike k": (MINICPM, only(Role.K, PER_ROW), CPM_CU, "k_proj.weight is int4 row sym and .*q_proj.weight int4 g1"),
    "gate unlike up": (MINICPM, only(Role.UP, PER_ROW), IST, "up_proj.weight is int4 row sym and .*gate_proj.weight"),
    "two group sizes": (MINICPM, only(Role.DOWN, PER_ROW), CPM_CU, "down_proj.weight is int4 row sym and .*q_proj"),
    "a dense layer": (MINICPM, only(Role.O, None), CPM_CU, "o_proj.weight is dense"),
    "a quantized head": (LLAMA, dense_head, CPM_CU, "lm_head.weight is int4 g128 sym; marlin keeps"),
    "nothing quantized": (MINICPM, lambda slot: None, CPM_CU, "memory has none"),
    "rows of 32": (
        {**MINICPM, "intermediate_size": 480},
        linears(PER_ROW),
        CPM_CU,
        "down_proj.weight: 256 x 480; .*64",
    ),
    "64 by 64": (
        {**STRADDLING, "hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 128},
        linears(PER_ROW),
        CPM_CU,
        "192; .* 128 rows or columns",
    ),
    "one group of all columns": (
        {**MINICPM, "hidden_size": 128, "num_key_value_heads": 2, "rope_scaling": None},
        linears(INT4),
        CPM_CU,
        "q_proj.weight.*k_proj.weight.*128; .*more columns than one group",
    ),
    "rows of 128 for ist": (
        {**MINICPM, "num_key_value_heads": 2},
        linears(INT4),
        IST,
        "k_proj.weight: 128 x 256; .*256",
    ),
    "short unlike long": (
        with_rope(long_factor=[2.0] * 32),
        linears(INT4),
        CPM_CU,
        "short_factor equal to long_factor",
    ),
    "an attention factor": (
        with_rope(original_max_position_embeddings=32),
        linears(INT4),
        CPM_CU,
        "ignores the attention factor 1.09",
    ),
}


@pytest.mark.parametrize(("config", "choose", "options", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_kernel_takes_is_refused_by_name(
    config: dict[str, Any], choose: Choice, options: ExportOptions, reason: str
) -> None:
    with pytest.raises(UnsupportedSpec, match=reason) as caught:
        EXPORTER.prepare(quantized_model(config, choose), options)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_kernels_own_layout_takes_every_longrope() -> None:
    config = with_rope(long_factor=[2.0] * 32, original_max_position_embeddings=32)
    assert EXPORTER.prepare(quantized_model(config, linears(INT4)), IST).files


@pytest.mark.parametrize(
    "options", [ExportOptions(type="q4_0"), ExportOptions(target="vllm"), ExportOptions(arch="qwen")]
)
def test_an_unknown_option_is_refused(options: ExportOptions) -> None:
    with pytest.raises(BadOption) as caught:
        EXPORTER.prepare(model(), options)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["Model-GPTQ", "my.int4", "marlin", "8b-w4a16-v2"])
def test_a_name_that_says_quantized_is_taken(name: str, tmp_path: Path) -> None:
    preflight(EXPORTER.prepare(model(), CPM_CU), tmp_path / name)


def test_a_name_that_hides_the_quantization_from_cpm_cu_is_refused(tmp_path: Path) -> None:
    planned = EXPORTER.prepare(model(), CPM_CU)
    (tmp_path / "gptq").mkdir()
    for attempt in (preflight, publish):
        with pytest.raises(BadOption, match=r"must contain marlin, gptq, .* or qat$") as caught:
            attempt(planned, tmp_path / "gptq" / "minicpm4")
        assert caught.value.hint == "call it minicpm4-marlin"
    assert list((tmp_path / "gptq").iterdir()) == []
    preflight(EXPORTER.prepare(model(), IST), tmp_path / "gptq" / "minicpm4")


def test_the_command_line_takes_a_target_and_refuses_a_wrong_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(model(), tmp_path)
    assert main(["export", "marlin", str(source), "--target", "ist", "--out", str(tmp_path / "kernel")]) == 0
    check_equal(registry.open_checkpoint(tmp_path / "kernel"), model())
    assert main(["plan", str(source), "--to", "marlin", "--target", "ist", "--json"]) == 0
    capsys.readouterr()
    for arguments, message in (
        (["export", "marlin", str(source), "--out", str(tmp_path / "plain")], "hint: call it plain-marlin"),
        (["export", "marlin", str(source), "--target", "vllm", "--out", str(tmp_path / "int4")], "cpm.cu, ist"),
        (["export", "hf", str(source), "--target", "cpm.cu", "--out", str(tmp_path / "hf")], "leave --target out"),
        (["plan", str(source), "--to", "gguf", "--target", "ist"], "gguf has no target 'ist'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert [line for line in error.splitlines() if not line.startswith("note: ")] == error.splitlines()[-1:]
