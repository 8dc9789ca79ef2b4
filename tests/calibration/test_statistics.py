"""Calibration: where the sequences come from, and the statistics of what every linear layer sees."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.calibration.activations import HiddenStates, embedded
from quantkit.calibration.generation import _sampled, generated_samples
from quantkit.calibration.samples import CalibrationOptions, Samples, file_samples, make_samples
from quantkit.calibration.sources import calibration_samples
from quantkit.calibration.statistics import cross_products, input_statistics
from quantkit.errors import BadOption, MalformedFile, MissingDependency, QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_block, load_model
from quantkit.models.spec import Role
from quantkit.text.tokenizer import Tokenizer, open_tokenizer
from tests.support.memory import memory_checkpoint, tiny_config

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def small_model(golden_model: Path, **changes: object) -> Checkpoint:
    files = {path.name: path.read_bytes() for path in golden_model.glob("*token*")}
    return memory_checkpoint(tiny_config(vocab_size=2048, **changes), files=files)


@pytest.fixture(scope="module")
def checkpoint(golden_model: Path) -> Checkpoint:
    return small_model(golden_model)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return open_tokenizer(checkpoint)


def samples_of(*rows: list[int]) -> Samples:
    return make_samples([np.array(row, np.int64) for row in rows], source="text", digest="")


def random_samples(*lengths: int, vocab: int = 97) -> Samples:
    rng = np.random.default_rng(5)
    return samples_of(*(rng.integers(0, vocab, length).tolist() for length in lengths))


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("cols", [7, 512, 1100])
def test_the_hessian_is_the_sum_of_outer_products(cols: int):
    inputs = [torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) for rows in (1, 20, 33)]
    statistics = input_statistics(inputs, cols)
    x = torch.cat(inputs).numpy().astype(np.float64)
    assert statistics.tokens == 54
    assert statistics.hessian.dtype == torch.float32
    assert torch.equal(statistics.hessian, statistics.hessian.T)
    rounding = len(x) * 2.0**-24 * (np.abs(x).T @ np.abs(x))  # what float32 products may lose at most
    assert (np.abs(statistics.hessian.numpy() - x.T @ x) <= rounding).all()
    assert statistics.hessian.numpy().tobytes() == input_statistics(inputs, cols, threads=2).hessian.numpy().tobytes()


def test_embedding_rows_are_scaled_and_in_place():
    checkpoint = memory_checkpoint(tiny_config())
    samples = samples_of([5, 5, 96, 0], [7])
    table = checkpoint.weights["model.embed_tokens.weight"].read()
    first, second = embedded(checkpoint, samples.sequences)
    assert np.array_equal(first.numpy(), table[[5, 5, 96, 0]] * np.float32(12))
    assert np.array_equal(second.numpy(), table[[7]] * np.float32(12))


def test_statistics_are_those_of_what_the_layers_of_the_whole_model_see():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(20, 9)
    seen: dict[str, list[np.ndarray]] = {}
    model = load_model(checkpoint)
    for name, module in model.named_modules():
        if name.endswith("proj"):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(f"{name}.weight", []).append(args[0][0].double().numpy())
            )
    for row in samples.sequences:
        model(torch.from_numpy(row)[None])
    hidden = HiddenStates(checkpoint, samples)
    for layer in range(checkpoint.spec.num_hidden_layers):
        order = []
        for stage in hidden.stages(load_block(checkpoint, layer), load_block(checkpoint, layer)):
            order += stage.roles
            for role in stage.roles:
                name = checkpoint.spec.weight_name(layer, role)
                for x, statistics in zip(seen[name], (stage.fitted, stage.held_out), strict=True):
                    expected = x.T @ x
                    assert statistics.tokens == len(x)
                    assert np.abs(statistics.hessian.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
                assert not stage.drift.fitted.any()  # nothing was quantized: both streams are one
        assert order == [Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN]


def test_every_stage_sees_the_weights_that_were_put_in_before_it():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(16)
    hidden, block = HiddenStates(checkpoint, samples), load_block(checkpoint, 0)
    before = hidden.states[0].clone()
    for stage in hidden.stages(block, load_block(checkpoint, 0)):
        for role in stage.roles:
            block.weight(role).mul_(0.5)
    # `block` now holds all replaced weights: its plain forward pass must give what the stages gave one by one.
    cos, sin = hidden.rotary[16]
    expected, _ = block(before[None], cos, sin)
    np.testing.assert_allclose(hidden.states[0].numpy(), expected[0].numpy(), rtol=1e-5, atol=1e-5)


def test_statistics_count_positions_by_their_importance():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(16, 9, 12)
    plain, weighed = (HiddenStates(checkpoint, samples, skip_positions=2) for _ in range(2))
    random = torch.Generator().manual_seed(0)
    importance = [torch.rand(length, 1, generator=random) for length in (16, 9)]  # of the first two of three sequences
    mean = torch.cat([x[2:] for x in importance]).mean()
    inputs, blocks = [], [load_block(checkpoint, 0) for _ in range(3)]
    for _, (fitted, _) in plain._steps(blocks[0], blocks[1]):
        inputs.append([x[2:].double() for x in fitted])
    for x, stage in zip(inputs, weighed.stages(blocks[0], blocks[2], {Role.O: importance}), strict=True):
        counts = [*(part[2:] / mean for part in importance), 1.0] if stage.roles[0] in {Role.Q, Role.O} else [1.0] * 3
        expected = sum((part * count).T @ part for part, count in zip(x[:2], counts, strict=False))
        torch.testing.assert_close(stage.fitted.hessian.double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stage.held_out.hessian.double(), x[2].T @ x[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_importance_that_says_nothing_leaves_all_positions_alike(value: float):
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(16, 9)
    hidden, block = HiddenStates(checkpoint, samples), load_block(checkpoint, 0)
    importance = {role: [torch.full((length, 1), value) for length in (16, 9)] for role in (Role.O, Role.DOWN)}
    found, plain = (
        [stage.fitted.hessian for stage in states.stages(block, load_block(checkpoint, 0), given)]
        for states, given in ((hidden, importance), (HiddenStates(checkpoint, samples), None))
    )
    assert all(map(torch.equal, found, plain))


def test_bfloat16_statistics_are_nearly_those_of_float32():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(64, 40)
    block = load_block(checkpoint, 0)
    exactly, nearly = (
        [stage.fitted.hessian for stage in HiddenStates(checkpoint, samples, bfloat16=half).stages(block, block)]
        for half in (False, True)
    )
    for a, b in list(zip(exactly, nearly, strict=True))[1:]:  # the first layers read a norm's output, which is float32
        assert 0 < float((a - b).norm() / a.norm()) < 0.02
        assert b.dtype == torch.float32


def test_two_threads_give_the_same_statistics_as_one():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(31, 7, 64, 12, 12)
    digests = []
    for threads in (1, 2):
        hidden = HiddenStates(checkpoint, samples, threads=threads)
        block = load_block(checkpoint, 0)
        digests.append([])
        for stage in hidden.stages(block, load_block(checkpoint, 0)):
            digests[-1] += [stage.fitted.hessian.numpy().tobytes(), stage.held_out.hessian.numpy().tobytes()]
            digests[-1].append(stage.drift.fitted.numpy().tobytes())
            block.weight(stage.roles[0]).mul_(0.9)
        digests[-1] += [state.numpy().tobytes() for state in hidden.states]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("skip", [0, 3])
def test_drift_is_the_correlation_of_what_a_layer_lacks_with_what_it_sees(skip: int):
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(20, 9)
    hidden = HiddenStates(checkpoint, samples, skip_positions=skip)
    original, block = load_block(checkpoint, 0), load_block(checkpoint, 0)
    before = [state.clone() for state in hidden.states]
    for stage in hidden.stages(block, original):
        for role in stage.roles:
            block.weight(role).mul_(0.8)
        if stage.roles == (Role.DOWN,):
            drift, seen = stage.drift, stage
    scale = checkpoint.spec.residual_scale
    for index, found in enumerate((drift.fitted, drift.held_out)):
        cos, sin = hidden.rotary[len(before[index])]
        wanted, _ = original(before[index][None], cos, sin)
        mixed = block.self_attn.mix(block.input_layernorm(before[index][None]), cos, sin, None)[0]
        stream = before[index] + block.self_attn.o_proj(mixed)[0] * scale
        x = block.mlp.gated(block.post_attention_layernorm(stream))
        lacking = (wanted[0] - stream) / scale - original.mlp.down_proj(x)
        expected = lacking[skip:].double().T @ x[skip:].double()
        assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert seen.fitted.tokens == 20 - skip


def test_cross_products_are_sums_of_outer_products():
    pairs = [(torch.randn(n, 5), torch.randn(n, 600)) for n in (3, 8)]
    expected = sum(a.double().T @ b.double() for a, b in pairs)
    rounding = 8 * 2.0**-24 * sum(a.double().abs().T @ b.double().abs() for a, b in pairs)
    found = cross_products([a for a, _ in pairs], [b for _, b in pairs])
    assert ((found - expected).abs() <= rounding).all()


def test_torch_threads_are_restored():
    before = torch.get_num_threads()
    input_statistics([torch.ones(2, 2)], 2)
    assert torch.get_num_threads() == before


# --------------------------------------------------------------------------------------------------------------- files


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_plain_text_becomes_whole_sequences_with_bos(tmp_path: Path, tokenizer: Tokenizer):
    text = "\n".join(f"line {i} of the text" for i in range(200))
    file = written(tmp_path / "a.txt", text)
    samples = file_samples(tokenizer, CalibrationOptions(file=file, sequences=4, length=32))
    ids = tokenizer.encode(text, add_bos=False)
    rows = [[1, *ids[i : i + 31]] for i in range(0, len(ids) - 30, 31)]
    assert [row.tolist() for row in samples.sequences] == [rows[i * len(rows) // 4] for i in range(4)]
    coverage = samples.coverage.to_json()
    assert coverage["source"] == "text"
    assert coverage["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert (coverage["sequences"], coverage["tokens"], coverage["longest"]) == (4, 128, 32)
    assert coverage["distinct_tokens"] == len({token for row in samples.sequences for token in row.tolist()})
    assert coverage["seed"] is None


def test_a_long_text_is_cut_at_line_ends_and_sampled_evenly(tmp_path: Path, tokenizer: Tokenizer):
    lines = [f"number {i:07}" for i in range(20_000)]  # several portions
    file = written(tmp_path / "a.txt", "\n".join(lines))
    samples = file_samples(tokenizer, CalibrationOptions(file=file, sequences=4, length=64))
    starts = [tokenizer.decode(row[1:]).split("number ")[1][:7] for row in samples.sequences]
    assert np.abs(np.diff([int(start) for start in starts]) - 5000).max() < 600


def test_a_text_of_one_token_is_one_short_sequence(tmp_path: Path, tokenizer: Tokenizer):
    samples = file_samples(tokenizer, CalibrationOptions(file=written(tmp_path / "a.txt", "a")))
    assert [row.tolist() for row in samples.sequences] == [[1, *tokenizer.encode("a", add_bos=False)]]


def test_json_lines_hold_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer):
    records = [{"text": "one"}, {"messages": CHAT, "id": 7}, {"text": ""}, {"text": "two"}]
    file = written(tmp_path / "a.jsonl", "\n\n".join(json.dumps(record) for record in records) + "\n")
    samples = file_samples(tokenizer, CalibrationOptions(file=file))
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
    assert [row.tolist() for row in samples.sequences] == [tokenizer.encode(text) for text in ("one", rendered, "two")]
    assert samples.coverage.source == "jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "no text to calibrate on"),
        ("a.txt", " \n\t\n", "no text to calibrate on"),
        ("a.txt", b"ok\xff\xfe", "not UTF-8 at byte 2"),
        ("a.jsonl", "", "no text to calibrate on"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "line 2"),
        ("a.jsonl", '{"text": "a"}\n\n[1, 2]\n', "line 3"),
        ("a.jsonl", '{"text": 5}', "line 1: neither a string 'text'"),
        ("a.jsonl", '{"prompt": "a"}', "line 1: neither a string 'text'"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: neither a string 'text'"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1"),
        ("a.csv", "text", r"calibration files end in \.txt, \.jsonl, \.parquet"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: str, message: str
):
    file = written(tmp_path / name, content)
    with pytest.raises(QuantkitError, match=message) as failure:
        file_samples(tokenizer, CalibrationOptions(file=file))
    assert str(file) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(QuantkitError, match=r"absent\.txt"):
        file_samples(tokenizer, CalibrationOptions(file=tmp_path / "absent.txt"))


def test_parquet_without_pyarrow_is_named(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="pyarrow"):
        file_samples(tokenizer, CalibrationOptions(file=written(tmp_path / "a.parquet", "PAR1")))


def test_parquet_holds_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(arrow.table({"text": ["one", None], "messages": [None, CHAT]}), tmp_path / "a.parquet")
    samples = file_samples(tokenizer, CalibrationOptions(file=tmp_path / "a.parquet"))
    assert samples.sequences[0].tolist() == tokenizer.encode("one")
    assert len(samples.sequences) == 2
    with pytest.raises(MalformedFile, match="not a readable Parquet file"):
        file_samples(tokenizer, CalibrationOptions(file=written(tmp_path / "b.parquet", "PAR1 and no more")))


@pytest.mark.parametrize(("option", "value"), [("sequences", 0), ("length", 1)])
def test_options_that_mean_nothing_are_refused(option: str, value: int):
    with pytest.raises(BadOption, match=f"not {value}"):
        CalibrationOptions(**{option: value})


def test_sequences_beyond_the_models_context_are_refused(checkpoint: Checkpoint):
    with pytest.raises(BadOption, match="65 tokens exceed the model's context of 64"):
        calibration_samples(checkpoint, CalibrationOptions(length=65))


# ---------------------------------------------------------------------------------------------------------- generation


def test_generated_sequences_begin_with_the_bundled_openings(checkpoint: Checkpoint, tokenizer: Tokenizer):
    samples = generated_samples(checkpoint, tokenizer, CalibrationOptions(sequences=6, length=48))
    lines = resources.files("quantkit.calibration").joinpath("prompts.txt").read_text("utf-8").splitlines()
    assert len(lines) == 64
    for row, line in zip(samples.sequences, lines, strict=False):
        kind, opening = line.split("\t")
        text = opening.replace("\\n", "\n")
        if kind == "chat":
            text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        expected = tokenizer.encode(text)[:48]
        assert row[: len(expected)].tolist() == expected
        assert len(row) == 48
    assert samples.coverage.source == "generated"
    assert samples.coverage.tokens == 6 * 48


def test_generation_depends_on_the_seed_and_not_on_threads(checkpoint: Checkpoint, tokenizer: Tokenizer):
    def rows(threads: int, seed: int) -> list[bytes]:
        options = CalibrationOptions(sequences=18, length=40, seed=seed)  # two batches
        return [row.tobytes() for row in generated_samples(checkpoint, tokenizer, options, threads=threads).sequences]

    assert rows(1, 0) == rows(2, 0) != rows(1, 1)


def test_generated_tokens_follow_from_the_tokens_before_them(checkpoint: Checkpoint, tokenizer: Tokenizer):
    """The KV cache, the shared steps and the draws must amount to: token t drawn from the model's softmax at t - 1."""
    samples = generated_samples(checkpoint, tokenizer, CalibrationOptions(sequences=3, length=60))
    model = load_model(checkpoint)
    for index, row in enumerate(samples.sequences):
        logits = model(torch.from_numpy(row)[None])[0].numpy().astype(np.float64)
        uniform = np.random.default_rng([0, index]).random(60)
        for position in range(45, 60):  # beyond the longest of these openings
            p = np.exp(logits[position - 1] - logits[position - 1].max())
            cumulative = np.cumsum(p / p.sum())
            below = cumulative[row[position] - 1] if row[position] else 0.0
            assert below - 1e-5 <= uniform[position] <= cumulative[row[position]] + 1e-5


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.0, 0.2, 0.3])).repeat(20_000, 1)
    counts = np.bincount(_sampled(logits, np.random.default_rng(0).random(20_000)), minlength=4) / 20_000
    assert np.abs(counts - [0.5, 0.0, 0.2, 0.3]).max() < 0.01
    assert counts[1] == 0
    assert _sampled(logits[:2], np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, 3]


def test_progress_counts_all_tokens_once(checkpoint: Checkpoint):
    calls: list[tuple[str, float, float]] = []
    options = CalibrationOptions(sequences=20, length=24)
    calibration_samples(checkpoint, options, threads=2, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("generating calibration text", 480, 480)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
