"""What an engine is handed of a stranger's folder: our config and the weights, nothing that names code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.recognition import parse_config
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS
from quantkit.protocols import ExportOptions
from quantkit.runtimes._staged_folder import staged_folder
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.transformers import RUNTIME
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.prompts import Prompt
from quantkit.verification.witness import agreement, distance, tolerance
from tests.support.memory import random_arrays, tiny_config
from tests.support.quantized_models import linears, quantized_model

MINICPM = tiny_config(dtype="float32")
LLAMA = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", scale_emb=None, scale_depth=None, dim_model_base=None,
    tie_word_embeddings=False, intermediate_size=128,
)  # fmt: skip
KERNEL = "kernels-community/xyz"
CODE: dict[str, dict[str, Any]] = {
    "attention": {"_attn_implementation": KERNEL},
    "attention, public name": {"attn_implementation": KERNEL},
    "attention, old name": {"_attn_implementation_internal": KERNEL},
    "attention, by part": {"_attn_implementation": {"text_config": KERNEL, "": KERNEL}},
    "attention, paged": {"_attn_implementation": f"paged|{KERNEL}:flash"},
    "experts": {"experts_implementation": KERNEL},
    "experts, private name": {"_experts_implementation": KERNEL},
    "kernels": {"use_kernels": True, "kernel_config": {"RMSNorm": f"{KERNEL}:RMSNorm"}},
    "a key of a later version": {"mlp_implementation": KERNEL},
    "code": {"auto_map": {"AutoConfig": f"{KERNEL}--m.C", "AutoModelForCausalLM": f"{KERNEL}--m.M"}},
    "trust": {"trust_remote_code": True, "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
    "dtype": {"torch_dtype": KERNEL, "dtype": {"": KERNEL}},
    "parts": {"text_config": {"_attn_implementation": KERNEL}, "base_model_tp_plan": {"layers.*": KERNEL}},
    "weights": {"_name_or_path": KERNEL, "transformers_weights": KERNEL, "pretrained_model_name_or_path": KERNEL},
}
LETS_TRANSFORMERS_ASK = ("attention", "attention, paged", "experts", "experts, private name")
IDS = [1, 7, 42, 5, 90, 33, 2, 64]


def folder_of(path: Path, config: dict[str, Any], **changes: Any) -> Path:
    """A folder with that config, changed, and random weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    (path / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")
    save_file(random_arrays(parse_config(config)), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("changes", CODE.values(), ids=CODE.keys())
@pytest.mark.parametrize("config", [MINICPM, LLAMA], ids=["minicpm", "llama"])
def test_the_folder_holds_our_config_and_the_weights_alone(
    config: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = registry.open_checkpoint(folder_of(tmp_path / "model", config, **changes))
    with staged_folder(checkpoint) as folder:
        names = {file.name for file in folder.iterdir()}
        text = (folder / "config.json").read_text()
        assert (folder / "model.safetensors").samefile(tmp_path / "model" / "model.safetensors")
        native = config is MINICPM
        assert names == {"config.json", "model.safetensors"} | ({"configuration_minicpm.py"} if native else set())
        if native:
            assert (folder / "configuration_minicpm.py").read_text() == CONFIG_CLASS
    told = json.loads(text)
    assert KERNEL not in text
    assert told.get("auto_map") == (AUTO_MAP if native else None)
    assert not set(told) & (set(changes) - {"auto_map"})
    assert parse_config(told) == checkpoint.spec
    assert not folder.exists()


@pytest.mark.parametrize("changes", CODE.values(), ids=CODE.keys())
@pytest.mark.parametrize(("container", "arch"), [("hf", "native"), ("hf", "llama"), ("gguf", "native")])
def test_what_is_written_names_no_code(container: str, arch: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = registry.open_checkpoint(folder_of(tmp_path / "model", MINICPM, **changes))
    plain = registry.open_checkpoint(folder_of(tmp_path / "plain", MINICPM))
    written = []
    for checkpoint, name in ((source, "a"), (plain, "b")):
        planned = registry.exporter(container).prepare(checkpoint, ExportOptions(arch=arch))
        out = publish(planned, tmp_path / name).path
        written.append(out.read_bytes() if out.is_file() else (out / "config.json").read_bytes())
    assert written[0] == written[1]


@pytest.mark.engine("transformers")
@pytest.mark.skipif(RUNTIME.missing() is not None, reason="transformers or torch is not installed")
class TestTransformers:
    """The engine whose config may name a kernel."""

    @pytest.mark.parametrize("changes", CODE.values(), ids=CODE.keys())
    def test_it_never_gets_the_name_and_works(
        self, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers  # noqa: PLC0415 - heavy

        path = folder_of(tmp_path / "model", LLAMA, **changes)
        seen: list[str] = []
        load = transformers.AutoModelForCausalLM.from_pretrained

        def watched(folder: str, **options: Any) -> Any:
            seen.append("".join(file.read_text() for file in Path(folder).glob("*.json")) + repr(options))
            loaded = load(folder, **options)
            seen.append(repr(loaded[0].config.to_dict()))
            return loaded

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watched)
        wanted = ReferenceSession(registry.open_checkpoint(path)).logits(IDS)
        with RUNTIME.open(path) as session:
            assert distance(session.logits(IDS), wanted) <= tolerance(3, len(IDS))
        assert len(seen) == 2
        assert not any(KERNEL in text for text in seen)

    @pytest.mark.filterwarnings("ignore:The `paged")
    @pytest.mark.parametrize("name", LETS_TRANSFORMERS_ASK)
    def test_the_strangers_own_folder_would_make_it_ask(self, name: str, tmp_path: Path) -> None:
        """Without this, the test above could not fail."""
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - heavy

        path = folder_of(tmp_path / "model", LLAMA, **CODE[name])
        with pytest.raises((ImportError, ValueError, OSError, AttributeError)):
            AutoModelForCausalLM.from_pretrained(str(path), local_files_only=True, attn_implementation="eager")

    def test_the_witness_of_golden_works_on_such_a_folder(self, tmp_path: Path) -> None:
        path = folder_of(tmp_path / "model", LLAMA, _attn_implementation=KERNEL)
        checkpoint = registry.open_checkpoint(path)
        logits = ReferenceSession(checkpoint).logits(IDS)
        line = agreement(checkpoint, [Prompt("p", "", tuple(IDS))], [logits])
        assert (line or "").startswith("transformers agrees on 1 prompts")
        assert any(f"_attn_implementation '{KERNEL}' asks for code" in note for note in checkpoint.notes)

    def test_a_quantized_folder_keeps_what_its_reader_took(self, tmp_path: Path) -> None:
        model = quantized_model(LLAMA, linears(AffineGroups(bits=4, group_size=32)))
        planned = registry.exporter("compressed-tensors").prepare(model, ExportOptions())
        path = publish(planned, tmp_path / "model").path
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "_attn_implementation": KERNEL}))
        wanted = ReferenceSession(registry.open_checkpoint(path)).logits(IDS)
        with RUNTIME.open(path) as session:
            found = session.logits(IDS)
        assert np.abs(found - wanted).max() < 0.05 * np.ptp(wanted)


@pytest.mark.parametrize("container", ["gptq", "awq"])
def test_settings_in_a_file_of_their_own_are_handed_on(container: str, tmp_path: Path) -> None:
    model = quantized_model(LLAMA, linears(AffineGroups(bits=4, group_size=32)))
    path = publish(registry.exporter(container).prepare(model, ExportOptions()), tmp_path / "model").path
    config = json.loads((path / "config.json").read_text())
    with staged_folder(registry.open_checkpoint(path)) as folder:
        assert json.loads((folder / "config.json").read_text())["quantization_config"] == config["quantization_config"]
    settings = config.pop("quantization_config")
    (path / "config.json").write_text(json.dumps(config))
    name = "quantize_config.json" if container == "gptq" else "quant_config.json"
    (path / name).write_text(json.dumps(settings))
    with staged_folder(registry.open_checkpoint(path)) as folder:
        assert (folder / name).samefile(path / name)


def test_shards_keep_their_names_and_their_index(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "model", LLAMA)
    names = list(random_arrays(parse_config(LLAMA)))
    arrays = random_arrays(parse_config(LLAMA))
    (path / "model.safetensors").unlink()
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, members in files.items():
        save_file({name: arrays[name] for name in members}, path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in files.items() for name in members}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with staged_folder(registry.open_checkpoint(path)) as folder:
        assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors.index.json", *files}


def test_a_single_file_under_another_name_is_found(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "model", LLAMA)
    (path / "model.safetensors").rename(path / "weights.safetensors")
    with staged_folder(registry.open_checkpoint(path)) as folder:
        assert (folder / "model.safetensors").samefile(path / "weights.safetensors")
