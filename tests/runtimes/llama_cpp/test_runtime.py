"""Which road is taken, and that it is said."""

from __future__ import annotations

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import EngineFailed, QuantkitError
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.types.values import LAYOUTS
from quantkit.protocols import ExportOptions, TracingSession
from quantkit.runtimes._kernels.llama_cpp import WIDE_INPUTS
from quantkit.runtimes.llama_cpp import session as session_module
from quantkit.runtimes.llama_cpp.runtime import RUNTIME
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.metrics import max_abs_log_prob_difference
from tests.support import ggml, gguf_models
from tests.support.gguf_writer import TOKENS

pytestmark = pytest.mark.engine("llama-cpp")

LIBRARY = "import quantkit.runtimes.llama_cpp.library as library"
MAIN = "from quantkit.runtimes.llama_cpp.engine import main; main()"


@pytest.fixture(scope="module")
def artifact(golden_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "f32.gguf"
    checkpoint = registry.open_checkpoint(golden_model)
    publish(registry.exporter("gguf").prepare(checkpoint, ExportOptions(type="f32")), path)
    return path


@pytest.mark.parametrize(
    ("tampered", "reason"),
    [
        ("library.CONTEXT_DEFAULTS['n_batch'] = 2049", r"ContextParams\.n_batch is 2048 by default, not 2049"),
        ("library.MODEL_DEFAULTS['no_host'] = 1", r"ModelParams\.no_host is 0 by default, not 1"),
        ("library.FUNCTIONS['llama_unheard_of'] = (None, ())", "llama_unheard_of"),
        ("library.FUNCTIONS['llama_n_batch'] = (ctypes.c_uint8, (ctypes.c_void_p,))", "asked for n_batch = 256 has 0"),
    ],
)
def test_a_release_that_is_not_known_is_driven_through_the_server_and_said(monkeypatch, artifact, tampered, reason):
    with RUNTIME.open(artifact) as native:
        expected = native.logits(TOKENS[:5])
    monkeypatch.setattr(session_module, "SERVE", f"import ctypes; {LIBRARY}; {tampered}; {MAIN}")
    with pytest.warns(UserWarning, match=f"through xllamacpp's server: .*{reason}"):
        session = RUNTIME.open(artifact)
    with session:
        assert not isinstance(session, TracingSession)
        assert max_abs_log_prob_difference(expected, session.logits(TOKENS[:5])) < 1e-4


INT8_RUNS = {8: "int8 inputs", 9: "int8 inputs", 15: "int8 inputs of 256"}
"""ggml's Q8_0, Q8_1 and Q8_K, by the runs of inputs that share a scale."""


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_the_arithmetic_is_that_of_the_type_that_ggml_rounds_inputs_to(kind, tmp_path):
    source = gguf_models.quantized(AffineGroups(bits=2, group_size=-1, ternary=True), gguf_models.WIDE)
    back = registry.open_checkpoint(gguf_models.write(source, tmp_path / "m.gguf", kind))
    assert RUNTIME.arithmetic(back) == INT8_RUNS[ggml.input_type(blocks.QUANTIZED[kind.upper()])]


@pytest.mark.parametrize("block", list(LAYOUTS), ids=lambda block: block.name)
def test_kernels_that_round_256_inputs_alike_are_those_that_ggml_has(block):
    assert INT8_RUNS[ggml.input_type(block)] == (
        "int8 inputs of 256" if block.name.lower() in WIDE_INPUTS else "int8 inputs"
    )


def test_our_own_reader_stands_before_the_engine(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(QuantkitError) as caught:
        RUNTIME.open(path)
    assert not isinstance(caught.value, EngineFailed)
