"""Make the folders beside this file: a tiny random Llama, quantized and saved by other tools' own code.

    python tests/exporters/strangers/make.py GPTQMODEL_PYTHON LLM_COMPRESSOR_PYTHON

The interpreters are those of environments with gptqmodel (7.7.0 was used) and with llmcompressor (0.14.0.1 was used),
torch and transformers. `expected.npz` in each folder holds what the tool itself makes of two of its layers, in
float16. The folders are data of `tests/exporters/test_strangers.py`; they change only when this script is run on
purpose.
"""

# ruff: noqa: PLC0415 - each half runs where only its own packages are

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOKENIZER = HERE.parents[2] / "golden" / "model"
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
GPTQMODEL = {
    "gptqmodel-v1": {"bits": 4, "group_size": 32},
    "gptqmodel-3bit": {"bits": 3, "group_size": 32},
    "gptqmodel-act-order": {"bits": 4, "group_size": 32, "desc_act": True, "act_group_aware": False},
    "gptqmodel-asym-v1": {"bits": 4, "group_size": 32, "sym": False},
    "gptqmodel-asym-v2": {"bits": 4, "group_size": 32, "sym": False, "format": "gptq_v2"},
}
LLM_COMPRESSOR = {"llm-compressor-sym": True, "llm-compressor-asym": False}
KEPT = ("config.json", "quantize_config.json", "model.safetensors")


def make_dense(folder: Path) -> None:
    """Save the random Llama, with outliers so that zero points differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=False, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.float16)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.add_(0.03 * torch.rand(parameter.shape[0], 1).to(torch.float16))
    model.save_pretrained(folder)


def keep(made: Path, name: str, expected: dict) -> None:
    """Copy what a reader needs."""
    import numpy as np

    shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / name).mkdir()
    for file in KEPT:
        if (made / file).exists():
            shutil.copyfile(made / file, HERE / name / file)
    np.savez_compressed(HERE / name / "expected.npz", **expected)


def gptqmodel(work: Path) -> None:
    """Runs in GPTQModel's environment."""
    import numpy as np
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    make_dense(work / "dense")
    for file in TOKENIZER.glob("*token*"):
        shutil.copyfile(file, work / "dense" / file.name)
    rows = np.random.default_rng(0).integers(3, 64, (8, 64)).tolist()
    for name, settings in GPTQMODEL.items():
        config = QuantizeConfig(**settings)
        model = GPTQModel.load(str(work / "dense"), config, device="cpu", dtype=torch.float32)
        model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
        model.save(str(work / name))
        loaded = GPTQModel.load(str(work / name), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
        layers = {layer: loaded.get_submodule(layer).dequantize_weight() for layer in LAYERS}
        keep(work / name, name, {layer: value.T.to(torch.float16).numpy() for layer, value in layers.items()})


def llm_compressor(work: Path) -> None:
    """Runs in llm-compressor's environment."""
    import torch
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    make_dense(work / "dense")
    for name, symmetric in LLM_COMPRESSOR.items():
        model = AutoModelForCausalLM.from_pretrained(work / "dense", dtype=torch.float16)
        weights = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=32)
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=["lm_head"]))
        model.save_pretrained(work / name, save_compressed=True)
        tensors = load_file(work / name / "model.safetensors")
        expected = {}
        for layer in LAYERS:
            state = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{layer}.")}
            values = PackedQuantizationCompressor.decompress(state, groups["group_0"])["weight"]
            expected[layer] = values.to(torch.float16).numpy()
        keep(work / name, name, expected)


def main() -> None:
    """Start the two halves in their environments."""
    if sys.argv[1] in ("gptqmodel", "llm_compressor"):
        os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with tempfile.TemporaryDirectory() as work:
            os.chdir(work)  # GPTQModel leaves log files where it was started
            {"gptqmodel": gptqmodel, "llm_compressor": llm_compressor}[sys.argv[1]](Path(work))
        return
    for part, python in zip(("gptqmodel", "llm_compressor"), sys.argv[1:3], strict=True):
        subprocess.run([python, __file__, part], check=True)
    for folder in sorted(path for path in HERE.iterdir() if path.is_dir()):
        size = sum(file.stat().st_size for file in folder.iterdir())
        settings = json.loads((folder / "config.json").read_text())["quantization_config"]
        print(folder.name, size, settings.get("checkpoint_format") or settings.get("format"))


if __name__ == "__main__":
    main()
