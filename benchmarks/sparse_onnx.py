"""What does sparse attention in an ONNX graph cost beside the fastest dense one that onnxruntime has?

    python -m benchmarks.sparse_onnx [--decode 8 32 128] [--prefill 32] [--ends 8 16 32 64 128] [--steps 2000]

Attention of one layer of MiniCPM4.1-8B's shape (32 heads, 2 key-value heads, 128 channels, the default `sparse_config`)
on random numbers, one thread, processor time; lengths are in units of 1024 tokens. Dense is onnxruntime's
GroupQueryAttention, and MatMul and Softmax of standard operators, both on buffers that are written to in place.

    decode     milliseconds of a token at the end of a context, the least of some, and what the fastest dense takes
    prefill    seconds of a whole prompt, in pieces of 1024 tokens, and the peak memory of the process
    ends       milliseconds a token of a piece at the end of a context; from these the prompt whose sparse prefill takes
               as long as the dense one
    steps      tokens decoded from 7,500 on, the largest difference from the reference in numpy

Exits with 1 when sparse decoding takes more than an eighth of dense at 128, grows by 1.8 times from 32 to 128, prefill
takes more than 1.5 times as long as dense at 32, or 3 GiB, or a number differs by 1e-3.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.child import measured
from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import DEFAULT
from tests.support.onnx_sparse import Layer, attention_graph, engine

HEADS, GROUPS, WIDTH = 32, 2, 128
KILO, PIECE, ENDING, TIMES = 1024, 1024, 256, 20
SPARSE = SparseSpec()
SHARE, GROWTH, PREFILL, MEMORY, OFF = 8.0, 1.8, 1.5, 3 << 30, 1e-3
Piece = Callable[[int, int, int], None]
"""Attends: the position of the first token, how many, and the length of the prompt, 0 = they are decoded."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", type=int, nargs="*", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--prefill", type=int, nargs="*", default=[32])
    parser.add_argument("--ends", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "KIND", "LENGTH"), help="a single figure, for the others")
    options = parser.parse_args()
    if options.one:
        print(one(*options.one[:2], int(options.one[2])))
        return
    missed = [*decoding(options.decode), *prefilling(options.prefill), *stepping(options.steps)]
    crossing(options.ends)
    for line in missed:
        _say(f"missed: {line}")
    sys.exit(bool(missed))


def decoding(lengths: Sequence[int]) -> Iterator[str]:
    """Milliseconds of a token."""
    found: dict[int, float] = {}
    for length in lengths:
        took = {kind: float(asked("decode", kind, length)[0]) for kind in ATTENTIONS}
        dense = min(took[kind] for kind in ATTENTIONS if kind != "sparse")
        shown = ", ".join(f"{kind} {value:.2f}" for kind, value in took.items())
        attended = SPARSE.attended(length * KILO) / (length * KILO)
        _say(f"decode at {length}K: {shown} ms; dense / sparse {dense / took['sparse']:.1f}, attended {attended:.1%}")
        found[length] = took["sparse"]
        if length == 128 and dense < SHARE * took["sparse"]:
            yield f"decode at {length}K takes 1/{dense / took['sparse']:.1f} of dense"
    if {32, 128} <= set(found) and found[128] >= GROWTH * found[32]:
        yield f"from 32K to 128K a token grows by {found[128] / found[32]:.2f}"


def prefilling(lengths: Sequence[int]) -> Iterator[str]:
    """Seconds of a prompt."""
    for length in lengths:
        (sparse, memory), (dense, _) = (asked("prefill", kind, length) for kind in ("sparse", "gqa"))
        ratio = float(sparse) / float(dense)
        _say(f"prefill of {length}K: sparse {sparse:.1f}, gqa {dense:.1f} s; {ratio:.2f}; {memory / 2**20:.0f} MiB")
        if ratio > PREFILL and length == 32:
            yield f"prefill of {length}K takes {ratio:.2f} of dense"
        if memory > MEMORY:
            yield f"prefill of {length}K takes {memory / 2**20:.0f} MiB"


def crossing(lengths: Sequence[int]) -> None:
    """Where both take as long."""
    ends = {kind: [asked("end", kind, length)[0] for length in lengths] for kind in ("sparse", "gqa")}
    for index, length in enumerate(lengths):
        sparse, dense = (ends[kind][index] for kind in ("sparse", "gqa"))
        _say(f"a piece at {length}K: sparse {sparse:.2f}, gqa {dense:.2f} ms a token; {sparse / dense:.2f}")
    if len(lengths) > 1:
        grid = np.arange(1, max(lengths) + 1)
        sums = {kind: np.cumsum(np.interp(grid, [0, *lengths], [0, *values])) for kind, values in ends.items()}
        faster = grid[(sums["sparse"] <= sums["gqa"]) & (grid >= min(lengths))]
        _say(f"a whole prompt is as fast as dense from {faster[0]}K on" if len(faster) else "no prompt is as fast")


def stepping(steps: int) -> Iterator[str]:
    """Decoding beside the reference, across the length from which on it is sparse."""
    if not steps:
        return
    rng, start = np.random.default_rng(0), 7500
    shapes = ((16, start + steps, 32), (1, start + steps, 32), (1, start + steps, 32))
    qkv = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    layer = Layer(engine(attention_graph(SPARSE, 16, 1, 32)), SPARSE, 1, 32, start + steps)
    reference, worst, done = SparseAttention(SPARSE, DEFAULT, 1, 32), 0.0, 0
    for new in (start, *[1] * steps):
        part, prompt = [x[:, done : done + new] for x in qkv], start if new > 1 else None
        off = np.abs(layer.attend(*part, prompt) - reference.attend(*part, prompt=prompt)).max()
        worst, done = max(worst, float(off)), done + new
    _say(f"{steps} tokens decoded from {start} on: off by {worst:.1e} at most")
    if worst > OFF:
        yield f"decoding is off by {worst:.1e}"


def _say(line: str) -> None:
    print(line, flush=True)


def asked(what: str, kind: str, length: int) -> tuple[float, float]:
    """One figure from a process of its own, and that process's peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.sparse_onnx", "--one", what, kind, str(length)]
    _, printed = measured(command)
    figure, memory = map(float, printed.split())
    return figure, memory


def one(what: str, kind: str, length: int) -> str:
    """A figure and the peak memory of this process."""
    tokens = length * KILO
    piece = ATTENTIONS[kind](tokens)
    if what == "decode":
        took = 1e3 * min(_took(piece, tokens - TIMES + n, 1, 0) for n in range(TIMES))
    elif what == "end":
        took = 1e3 * _took(piece, tokens - ENDING, ENDING, tokens) / ENDING
    else:
        took = sum(_took(piece, at, PIECE, tokens) for at in range(0, tokens, PIECE))
    return f"{took} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}"


def _took(piece: Piece, at: int, new: int, prompt: int) -> float:
    start = time.process_time()
    piece(at, new, prompt)
    return time.process_time() - start


def _drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _sparse(room: int) -> Piece:
    layer = Layer(engine(attention_graph(SPARSE, HEADS, GROUPS, WIDTH)), SPARSE, GROUPS, WIDTH, room)
    for part, buffer in layer.buffers.items():
        kernel = {"fine": SPARSE.kernel_size, "coarse": 4 * SPARSE.kernel_size}.get(part, 1)
        buffer[...] = _drawn(*buffer.shape) * kernel**-0.5

    def piece(at: int, new: int, prompt: int) -> None:
        layer.length = at
        k = _drawn(GROUPS, new, WIDTH)
        layer.attend(_drawn(HEADS, new, WIDTH), k, k, prompt)

    return piece


def _gqa(room: int) -> Piece:
    names = ["q", "k", "v", "past_k", "past_v", "last", "total"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["mixed", "present_k", "present_v"], domain="com.microsoft",
        num_heads=HEADS, kv_num_heads=GROUPS,
    )  # fmt: skip
    kept = (1, GROUPS, room, WIDTH)
    shapes = {
        "q": (1, None, HEADS * WIDTH),
        **dict.fromkeys("kv", (1, None, GROUPS * WIDTH)),
        "past_k": kept,
        "past_v": kept,
    }
    given = [
        *(_value(name, shape) for name, shape in shapes.items()),
        helper.make_tensor_value_info("last", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    made = [_value("mixed", shapes["q"]), _value("present_k", kept), _value("present_v", kept)]
    session = _session([node], given, made)
    buffers = {part: _drawn(*kept) for part in "kv"}

    def piece(at: int, new: int, prompt: int) -> None:
        feeds = {"q": _drawn(1, new, HEADS * WIDTH), **dict.fromkeys("kv", _drawn(1, new, GROUPS * WIDTH))}
        lengths = {"last": np.array([at + new - 1], np.int32), "total": np.array(at + new, np.int32)}
        _run(session, {**feeds, **lengths}, buffers)

    return piece


def _matmul(room: int) -> Piece:
    make, kept = helper.make_node, (GROUPS, room, WIDTH)
    nodes = [
        make("ScatterND", ["past_k", "places", "k"], ["present_k"]),
        make("ScatterND", ["past_v", "places", "v"], ["present_v"]),
        make("MatMul", ["present_k", "q"], ["scores"]),
        make("Transpose", ["scores"], ["turned"], perm=[0, 2, 1]),
        make("Softmax", ["turned"], ["shares"], axis=-1),
        make("MatMul", ["shares", "present_v"], ["mixed"]),
    ]
    row = (1, GROUPS, WIDTH)
    shapes = {"q": (GROUPS, WIDTH, HEADS // GROUPS), "k": row, "v": row, "past_k": kept, "past_v": kept}
    given = [*(_value(name, shape) for name, shape in shapes.items())]
    given.append(helper.make_tensor_value_info("places", TensorProto.INT64, [1, GROUPS, 2]))
    made = [_value("mixed", (GROUPS, HEADS // GROUPS, WIDTH)), _value("present_k", kept), _value("present_v", kept)]
    session = _session(nodes, given, made)
    buffers = {part: _drawn(*kept) for part in "kv"}

    def piece(at: int, new: int, prompt: int) -> None:
        places = np.array([[[group, at] for group in range(GROUPS)]])
        _run(session, {"q": _drawn(*shapes["q"]), **dict.fromkeys("kv", _drawn(*row)), "places": places}, buffers)

    return piece


ATTENTIONS = {"sparse": _sparse, "matmul": _matmul, "gqa": _gqa}


def _value(name: str, shape: Sequence[int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _session(
    nodes: list[onnx.NodeProto], given: list[onnx.ValueInfoProto], made: list[onnx.ValueInfoProto]
) -> onnxruntime.InferenceSession:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return engine(helper.make_model(helper.make_graph(nodes, "g", given, made), opset_imports=opsets, ir_version=10))


def _run(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], buffers: dict[str, np.ndarray]) -> None:
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("mixed")
    for part, buffer in buffers.items():
        shared = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(f"past_{part}", shared)
        binding.bind_ortvalue_output(f"present_{part}", shared)
    session.run_with_iobinding(binding)


if __name__ == "__main__":
    main()
