"""Do GPTQModel and quantkit read each other's folders to the same logits?

    python -m benchmarks.gptqmodel_reader --python ENVIRONMENT/bin/python [--model golden/model]

GPTQModel (7.7 was tried) lives in an environment of its own, where this file runs itself a second time. One way, the
model is folded into a Llama, quantized and written as GPTQ of both versions and several grids, ternary ones in 2 and in
4 bits among them, and as AWQ; GPTQModel's torch kernels load each in float16. The other way, GPTQModel quantizes the
folded model, with and without act-order, and quantkit reads what it saved. Each row is the largest difference of a
log-probability between GPTQModel and the reference runtime on the same folder. It may be twice that of the dense
float16 model in the same process; v1 and v2 must agree to the last bit. Exits with 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CALIBRATION_SEQUENCES, CALIBRATION_LENGTH = 8, 128
WRITTEN_THERE = {
    "GPTQModel's, 4 bits": {"bits": 4, "group_size": 128},
    "GPTQModel's, 3 bits": {"bits": 3, "group_size": 128},
    "GPTQModel's, act-order": {"bits": 4, "group_size": 128, "desc_act": True},
    "GPTQModel's, asym v2": {"bits": 4, "group_size": 128, "sym": False, "format": "gptq_v2"},
    "GPTQModel's, asym v1": {"bits": 4, "group_size": 128, "sym": False},
}


def child(folder: Path) -> None:
    """In GPTQModel's environment: make the models of `jobs.json`, save the logits of all of them as NAME.npy."""
    os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    import torch  # noqa: PLC0415 - only there
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: PLC0415 - only there
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - only there

    jobs = json.loads((folder / "jobs.json").read_text())

    def save(name: str, model: torch.nn.Module) -> None:
        with torch.no_grad():
            logits = torch.cat([model(input_ids=torch.tensor([ids])).logits[0].double() for ids in jobs["prompts"]])
        np.save(folder / f"{name}.npy", torch.log_softmax(logits, -1).numpy())

    save("dense", AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float16))
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in jobs["calibration"]]
    for name, settings in jobs["make"].items():
        model = GPTQModel.load(str(folder / "dense"), QuantizeConfig(**settings), device="cpu", dtype=torch.float32)
        model.quantize(rows, batch_size=1)
        model.save(str(folder / name))
    for name in jobs["read"]:
        backend = BACKEND.AWQ_TORCH if "awq" in name else BACKEND.GPTQ_TORCH
        save(name, GPTQModel.load(str(folder / name), device="cpu", backend=backend, dtype=torch.float16).model)


def write_folders(model: Path, folder: Path) -> list[str]:
    """Write the dense Llama, and every quantized one that GPTQModel is to read; returns the names of the latter."""
    from dataclasses import replace  # noqa: PLC0415 - the child has no quantkit

    from quantkit.artifacts.publishing import publish  # noqa: PLC0415
    from quantkit.models.spec import Role  # noqa: PLC0415
    from quantkit.protocols import ExportOptions  # noqa: PLC0415
    from quantkit.registry import exporter, open_checkpoint  # noqa: PLC0415
    from quantkit.tensors.schemes.affine_groups import AffineGroups  # noqa: PLC0415
    from tests.support.runs import quantized  # noqa: PLC0415

    source = open_checkpoint(model)

    def write(name: str, checkpoint: object, container: str, kind: str | None, bits: int | None = None) -> str:
        options = ExportOptions(type=kind, arch="llama", bits=bits)
        planned = exporter(container).prepare(checkpoint, options)  # type: ignore[arg-type]
        publish(planned, folder / name, inputs=source.inputs)
        return name

    write("dense", source, "hf", "f16")
    four, eight = AffineGroups(bits=4, group_size=128), AffineGroups(bits=8, group_size=-1)
    names = []
    for bits in (2, 3, 4, 8):
        run = quantized(source, replace(four, bits=bits), "rtn").checkpoint
        names += [write(f"gptq {kind}, {bits} bits", run, "gptq", kind) for kind in ("v1", "v2")]
        if bits == 4:
            names.append(write("awq, sym", run, "awq", None))
    run = quantized(source, replace(four, symmetric=False), "rtn").checkpoint
    names += [write("gptq v2, asym", run, "gptq", "v2"), write("awq, asym", run, "awq", None)]
    for group_size in (128, 256, -1):
        grid, width = (
            replace(four, bits=2, group_size=group_size, ternary=True),
            group_size if group_size > 0 else "row",
        )
        run = quantized(source, grid, "rtn").checkpoint
        names += [write(f"gptq {kind}, ternary {width}", run, "gptq", kind) for kind in ("v1", "v2")]
        names.append(write(f"gptq v1, ternary {width} as 4 bits", run, "gptq", "v1", 4))
    names.append(write("awq, ternary row", run, "awq", None))
    run = quantized(source, replace(four, symmetric=False), "rtn").checkpoint
    wide, weights = quantized(source, eight, "rtn").checkpoint, dict(run.weights)
    for slot in source.spec.slots():
        if slot.layer == 0 and slot.role in (Role.Q, Role.K, Role.V):
            weights[slot.name] = wide.weights[slot.name]
        if slot.layer == 1 and slot.role is Role.DOWN:
            weights[slot.name] = source.weights[slot.name]
    return [*names, write("gptq v2, mixed", replace(run, weights=weights), "gptq", "v2")]


def reference(path: Path, prompts: list[list[int]]) -> np.ndarray:
    """Log-probabilities of the reference runtime, all positions of all prompts, float64."""
    from quantkit.registry import runtime  # noqa: PLC0415 - the child has no quantkit

    with runtime("reference").open(path) as session:
        logits = np.concatenate([session.logits(ids) for ids in prompts]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logs: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logs


def main() -> int:
    """Write, let the other read, compare, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of an environment with GPTQModel")
    parser.add_argument("--model", type=Path, default=Path("golden/model"))
    arguments = parser.parse_args()
    from quantkit.registry import open_checkpoint  # noqa: PLC0415
    from quantkit.text.tokenizer import open_tokenizer  # noqa: PLC0415
    from quantkit.verification.prompts import default_prompts  # noqa: PLC0415 - the child has no quantkit

    checkpoint = open_checkpoint(arguments.model)
    prompts = [list(prompt.token_ids) for prompt in default_prompts(open_tokenizer(checkpoint), max_tokens=256)]
    random = np.random.default_rng(0)
    calibration = random.integers(3, checkpoint.spec.vocab_size, (CALIBRATION_SEQUENCES, CALIBRATION_LENGTH)).tolist()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [*write_folders(arguments.model, folder), *WRITTEN_THERE]
        jobs = {"prompts": prompts, "calibration": calibration, "make": WRITTEN_THERE, "read": names}
        (folder / "jobs.json").write_text(json.dumps(jobs))
        log = folder / "log"
        with log.open("wb") as file:
            command = [arguments.python, str(Path(__file__).resolve()), "--child", str(folder)]
            # GPTQModel leaves log files where it was started.
            done = subprocess.run(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise SystemExit(log.read_text(errors="replace")[-3000:])
        theirs = {name: np.load(folder / f"{name}.npy") for name in ["dense", *names]}
        ours = {name: reference(folder / name, prompts) for name in ["dense", *names]}
    difference = {name: float(np.abs(theirs[name] - ours[name]).max()) for name in theirs}
    failed = False
    print("| folder | max abs difference of log-probabilities | to dense | top-1 equal |\n|---|---|---|---|")
    for name, value in difference.items():
        equal = float((theirs[name].argmax(1) == ours[name].argmax(1)).mean())
        failed |= value > 2 * difference["dense"]
        print(f"| {name} | {value:.2e} | {value / difference['dense']:.2f} | {equal:.1%} |")
    for grid in ("2 bits", "3 bits", "4 bits", "8 bits", "ternary 128", "ternary 256", "ternary row"):
        same = np.array_equal(theirs[f"gptq v1, {grid}"], theirs[f"gptq v2, {grid}"])
        failed |= not same
        print(f"{grid}: v1 and v2 give {'the same logits' if same else 'DIFFERENT logits'}")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]))
    else:
        sys.exit(main())
