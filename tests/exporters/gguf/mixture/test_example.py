"""`--like FILE`: the types of somebody else's file, the values of our solver or of llama.cpp's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.calibration.samples import CalibrationOptions
from quantkit.cli.app import main
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from quantkit.verification.metrics import compared

UNTUNED = Path(__file__).resolve().parents[4] / "golden" / "untuned"
FEW = QuantizeOptions(calibration=CalibrationOptions(sequences=6, length=64), fisher=True)


@pytest.fixture(scope="module")
def theirs(golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture that no file type names."""
    path = tmp_path_factory.mktemp("theirs") / "theirs.gguf"
    blocks = BlockOptions(algorithm="reference", tensor_types=("attn_k=q6_k", "blk.1.ffn_up=iq4_xs", "attn_v=f16"))
    quantkit.export("gguf", golden_model, path, ExportOptions(type="q3_k_m", blocks=blocks))
    return path


def types(path: Path) -> dict[str, str]:
    return {name: info.type.name for name, info in read_gguf(path).tensors.items()}


def test_a_file_is_refined_in_its_own_types(theirs, golden_model, tmp_path) -> None:
    ours = tmp_path / "ours.gguf"
    options = ExportOptions(blocks=BlockOptions(algorithm="calibrated", like=theirs))
    done = quantkit.export_calibrated("gguf", golden_model, ours, options, FEW)
    assert types(ours) == types(theirs)
    assert done.manifest["options"] == {
        "type": "q3_k_m",
        "arch": "native",
        "algorithm": "calibrated",
        "like": "theirs.gguf",
    }
    ids = [1, *(int(i) for i in np.arange(200) * 31 % 2000 + 3)]
    logits = {}
    for path in (golden_model, theirs, ours):
        with registry.runtime("reference").open(path) as session:
            logits[path] = session.logits(ids)
    kl = {path: compared(logits[golden_model], logits[path])[0].kl for path in (theirs, ours)}
    assert kl[ours] < kl[theirs]


def test_the_reference_gives_the_file_again(theirs, golden_model, tmp_path) -> None:
    options = ExportOptions(blocks=BlockOptions(algorithm="reference", like=theirs))
    quantkit.export("gguf", golden_model, tmp_path / "again.gguf", options)
    assert (tmp_path / "again.gguf").read_bytes() == theirs.read_bytes()


def test_a_chosen_type_stands_above_the_file(theirs, golden_model, tmp_path) -> None:
    blocks = BlockOptions(algorithm="reference", like=theirs, tensor_types=("attn_k=q8_0",), embedding_type="q4_0")
    quantkit.export("gguf", golden_model, tmp_path / "x.gguf", ExportOptions(type="q4_k_m", blocks=blocks))
    found = types(tmp_path / "x.gguf")
    assert {kind for name, kind in found.items() if "attn_k." in name} == {"Q8_0"}
    assert found["token_embd.weight"] == "Q4_0"
    assert found["blk.1.ffn_up.weight"] == "IQ4_XS"
    assert read_gguf(tmp_path / "x.gguf").metadata["general.file_type"] == 15


def test_what_cannot_be_followed_is_refused(theirs, golden_model, tmp_path) -> None:
    def asked(model: Path, **choices) -> None:
        options = ExportOptions(blocks=BlockOptions(**{"algorithm": "reference", "like": theirs, **choices}))
        quantkit.export("gguf", model, tmp_path / "x.gguf", options)

    with pytest.raises(BadOption, match=r"of another model: .* there, and .* here"):
        asked(UNTUNED)
    with pytest.raises(BadOption, match="each choose all types"):
        asked(golden_model, pure=True)
    with pytest.raises(BadOption, match="not how they are quantized"):
        asked(golden_model, algorithm=None)
    plain = tmp_path / "plain.gguf"
    quantkit.export("gguf", golden_model, plain, ExportOptions(type="f16"))
    with pytest.raises(BadOption, match="of no file type that is written"):
        asked(golden_model, like=plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.gguf", "plain.gguf.quantkit.json"]


def test_a_type_that_is_not_written_is_named(theirs, golden_model, tmp_path) -> None:
    data = bytearray(theirs.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert int.from_bytes(data[at : at + 4], "little") == 11  # Q3_K
    data[at : at + 4] = (21).to_bytes(4, "little")  # IQ3_S, which takes as many bytes
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(data)
    options = ExportOptions(blocks=BlockOptions(algorithm="reference", like=odd))
    with pytest.raises(UnsupportedSpec, match=r"blk\.0\.attn_q\.weight is iq3_s, which is not written"):
        quantkit.export("gguf", golden_model, tmp_path / "x.gguf", options)
    chosen = BlockOptions(algorithm="reference", like=odd, tensor_types=("blk.0.attn_q=q3_k",))
    quantkit.export("gguf", golden_model, tmp_path / "x.gguf", ExportOptions(blocks=chosen))
    assert types(tmp_path / "x.gguf") == types(theirs)


def test_the_option_is_typed(theirs, golden_model, tmp_path, capsys) -> None:
    arguments = ["export", "gguf", str(golden_model), "--like", str(theirs), "--out", str(tmp_path / "x.gguf")]
    assert main([*arguments, "--algorithm", "reference"]) == 0
    assert types(tmp_path / "x.gguf") == types(theirs)
    assert main([*arguments[:4], str(tmp_path / "absent.gguf"), *arguments[5:], "--algorithm", "reference"]) == 2
    assert "absent.gguf" in capsys.readouterr().err
