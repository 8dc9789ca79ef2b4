"""How long does `quantkit verify` of a GGUF file take beside llama.cpp's own evaluation, on a model of true size?

    python -m benchmarks.verify_speed [--model DIR] [--type q4_0]

Makes a checkpoint of the MiniCPM4-0.5B shape (vocabulary 73 448) with random weights, records its golden file, exports
it, and accounts for three things, each in processes of its own:

1. llama.cpp evaluating the default prompts: `llama_decode` in a bare loop, all rows, with the library's own defaults
   (float16 keys and values, flash attention). Loading is not counted.
2. The engine's part of `verify`: opening the file, and `Session.logits` of every prompt.
3. The whole command `quantkit verify ARTIFACT --golden FILE`.

Processor seconds count all processes; the peak is the largest sum over them of memory that is resident at one time,
shared pages once (Linux; elsewhere that of the largest process). The verdict of `verify` is printed, but is not the
question: rounding may take random weights beyond the largest KL. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.child import Cost, measured

QUANTKIT = (sys.executable, "-m", "quantkit")
SHAPE = "minicpm4-0.5b"
MAX_RATIO = 2.0
"""Processor time of the engine's part, in units of llama.cpp's evaluation."""
MAX_SECONDS = 90.0
MAX_PEAK = 3 << 30
SAMPLE_SECONDS = 0.25


class PeakMemory:
    """Watches this process's descendants while they run; `peak` is the most that they held at one time, in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(proportional_size, descendants(os.getpid()))))


def descendants(root: int) -> Iterator[int]:
    """Process ids of everything that descends from `root`; nothing where there is no /proc."""
    for listed in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            children = [int(word) for word in listed.read_text().split()]
        except OSError:  # it ended meanwhile
            continue
        for child in children:
            yield child
            yield from descendants(child)


def proportional_size(process: int) -> int:
    """Resident bytes of a process, shared pages divided by the number that share them; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def watched(command: Sequence[str | Path], *, expected: tuple[int, ...] = (0,)) -> tuple[Cost, str]:
    """As `measured`, with the peak of the whole family of processes."""
    with PeakMemory() as memory:
        cost, shown = measured(command, expected=expected)
    return Cost(cost.wall, cost.cpu, max(cost.peak_rss, memory.peak)), shown


def evaluate_bare(artifact: Path, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Wall and processor seconds of `llama_decode` over `prompts`, in this process."""
    from quantkit.runtimes.llama_cpp.child import threads_for  # noqa: PLC0415 - what the engine's part does too
    from quantkit.runtimes.llama_cpp.library import decode, load_library  # noqa: PLC0415

    library = load_library()
    model = library.llama_model_load_from_file(os.fsencode(artifact), library.llama_model_default_params())
    params = library.llama_context_default_params()
    params.n_ctx = max(1024, *map(len, prompts))
    params.n_threads = params.n_threads_batch = threads_for(artifact)
    context = library.llama_init_from_model(model, params)
    decode(library, context, [1], every_row=True)  # pages of the weights come in
    wall, cpu = time.perf_counter(), time.process_time()
    for token_ids in prompts:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        if decode(library, context, list(token_ids), every_row=True):
            raise SystemExit("llama_decode failed")
        ctypes.cast(library.llama_get_logits(context), ctypes.c_void_p)  # waits for the evaluation
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def evaluate_session(artifact: Path, prompts: Sequence[Sequence[int]]) -> None:
    """What `verify` asks of the engine."""
    from quantkit import registry  # noqa: PLC0415

    with registry.runtime("llama-cpp").open(artifact) as session:
        for token_ids in prompts:
            session.logits(token_ids)


def prompts_of(model: Path) -> list[list[int]]:
    """Token ids of the default prompts."""
    from quantkit import registry  # noqa: PLC0415 - keeps the measuring process small
    from quantkit.text.tokenizer import open_tokenizer  # noqa: PLC0415
    from quantkit.verification.prompts import default_prompts  # noqa: PLC0415

    checkpoint = registry.open_checkpoint(model)
    prompts = default_prompts(open_tokenizer(checkpoint), max_tokens=checkpoint.spec.max_position_embeddings)
    return [list(prompt.token_ids) for prompt in prompts]


def own(part: str, artifact: Path, prompts: Path) -> tuple[Cost, str]:
    """Run a part of this file in a process of its own."""
    return watched([sys.executable, "-m", "benchmarks.verify_speed", "--part", part, artifact, prompts])


def run(folder: Path, model: Path, kind: str) -> bool:
    """Make what is missing, run the three, print; returns whether every target is met."""
    artifact, golden, prompts = folder / f"{kind}.gguf", folder / "golden.bin", folder / "prompts.json"
    measured([*QUANTKIT, "export", "gguf", model, "--type", kind, "--out", artifact])
    recording, _ = watched([*QUANTKIT, "golden", model, "--out", golden])
    own("prompts", model, prompts)
    tokens = sum(map(len, json.loads(prompts.read_text())))
    bare: dict[str, float] = json.loads(own("bare", artifact, prompts)[1])
    engine, _ = own("engine", artifact, prompts)
    whole, shown = watched([*QUANTKIT, "verify", artifact, "--golden", golden], expected=(0, 1))
    print(f"{kind} of {model.name}, {artifact.stat().st_size:,} bytes, {tokens} tokens of the default prompts\n")
    print(f"{'':32}{'wall s':>9}{'processor s':>13}{'peak MiB':>10}")
    print(f"{'llama_decode in a bare loop':32}{bare['wall']:9.1f}{bare['cpu']:13.1f}")
    for name, cost in (("engine part of verify", engine), ("quantkit verify", whole), ("quantkit golden", recording)):
        print(f"{name:32}{cost.wall:9.1f}{cost.cpu:13.1f}{cost.peak_rss >> 20:10,}")
    print(f"\n{shown}")
    checks = (
        (engine.cpu / bare["cpu"], MAX_RATIO, "processor time of the engine's part to llama.cpp's evaluation"),
        (whole.cpu, MAX_SECONDS, "processor seconds of the whole"),
        (whole.peak_rss / (1 << 30), MAX_PEAK / (1 << 30), "GiB at the peak"),
    )
    for found, most, what in checks:
        print(f"{'pass' if found <= most else 'FAIL'}  {found:.2f}, at most {most:g}: {what}")
    return all(found <= most for found, most, _ in checks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part where asked to, else all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="checkpoint to use (default: one is made)")
    parser.add_argument("--type", default="q4_0", help="element type of the file")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        part, source, prompts = options.part[0], Path(options.part[1]), Path(options.part[2])
        if part == "prompts":
            prompts.write_text(json.dumps(prompts_of(source)))
        elif part == "bare":
            print(json.dumps(evaluate_bare(source, json.loads(prompts.read_text()))))
        else:
            evaluate_session(source, json.loads(prompts.read_text()))
        return 0
    with tempfile.TemporaryDirectory() as name:
        model = options.model
        if model is None:
            model = Path(name) / SHAPE
            measured([sys.executable, "-m", "benchmarks.make_checkpoint", "--shape", SHAPE, "--out", model])
        return 0 if run(Path(name), model, options.type) else 1


if __name__ == "__main__":
    sys.exit(main())
