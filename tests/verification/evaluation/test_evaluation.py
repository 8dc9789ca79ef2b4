"""Artifacts beside their source: the figures against torch and the engine itself, and what is refused."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantkit import evaluate, export, registry
from quantkit.errors import BadOption, EngineFailed, UnsupportedModel
from quantkit.progress import unwatched
from quantkit.protocols import ExportOptions
from quantkit.verification.evaluation import evaluation, subjects
from quantkit.verification.evaluation.subjects import Subject, engine_predictions, exact_predictions
from quantkit.verification.evaluation.windows import WindowOptions, read_windows
from quantkit.verification.metrics import kl_by_position
from tests.support.tiny import write_tiny_checkpoint
from tests.support.tokenizer_folders import golden_files

TEXT = Path(__file__).resolve().parents[3] / "golden" / "text.txt"
WINDOWS: dict[str, Any] = {"sequences": 3, "length": 96}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that reads text as the golden one does."""
    folder = tmp_path_factory.mktemp("evaluated") / "model"
    write_tiny_checkpoint(folder, vocab=2048, hidden=64, intermediate=128)
    for name, data in golden_files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def q4_0(model: Path) -> Path:
    """The model in llama.cpp's oldest four bits."""
    out = model.with_name("q4_0.gguf")
    export("gguf", model, out, ExportOptions(type="q4_0"))
    return out


def test_figures_are_those_of_the_torch_model_by_their_definitions(model: Path, q4_0: Path) -> None:
    torch = pytest.importorskip("torch", reason="the other forward pass is torch's")
    from quantkit.models.loading import load_model  # noqa: PLC0415

    models = [load_model(registry.open_checkpoint(path)) for path in (model, q4_0)]
    source = registry.open_checkpoint(model)
    surprises: list[list[Any]] = [[], []]
    kl, top1, top5 = [], [], []
    for ids in read_windows(source, TEXT, WindowOptions(**WINDOWS)).token_ids:
        with torch.no_grad():
            p, q = (one(torch.tensor([ids]))[0, 8:-1].double().log_softmax(-1) for one in models)
        for found, rows in zip(surprises, (p, q), strict=True):
            found.append(-rows[torch.arange(len(rows)), torch.tensor(ids[9:])])
        kl.append((p.exp() * (p - q)).sum(-1))
        top1.append(p.argmax(-1) == q.argmax(-1))
        best, theirs = (x.topk(5).indices for x in (p, q))
        top5.append((best[:, :, None] == theirs[:, None, :]).any(-1).double().mean(-1))
    found = evaluate([q4_0], against=model, text=TEXT, skip_positions=8, **WINDOWS)
    (artifact,), everywhere = found.artifacts, torch.cat(kl)
    assert found.positions == len(everywhere) == 3 * (96 - 1 - 8)
    assert found.source.perplexity.value == pytest.approx(float(torch.cat(surprises[0]).mean().exp()), rel=1e-5)
    assert artifact.perplexity.value == pytest.approx(float(torch.cat(surprises[1]).mean().exp()), rel=1e-5)
    ratio = float((torch.cat(surprises[1]) - torch.cat(surprises[0])).mean().exp())
    assert artifact.perplexity_ratio.value == pytest.approx(ratio, rel=1e-5)
    distance = artifact.from_source
    assert distance.kl.value == pytest.approx(float(everywhere.mean()), rel=1e-3)
    assert distance.kl.error == pytest.approx(float(torch.stack([row.mean() for row in kl]).std() / 3**0.5), rel=1e-2)
    assert distance.kl_median == pytest.approx(float(everywhere.median()), rel=1e-2)
    assert distance.kl_q99 == pytest.approx(float(everywhere.quantile(0.99)), rel=1e-3)
    assert distance.top1.value == pytest.approx(float(torch.cat(top1).double().mean()), abs=1 / 261)
    assert distance.top5.value == pytest.approx(float(torch.cat(top5).mean()), abs=1 / 261)
    assert artifact.size == q4_0.stat().st_size
    assert artifact.bits_per_weight == 8 * artifact.size / sum(view.size for view in source.weights.values())
    assert artifact.floor is artifact.weights_alone is None


def test_the_source_has_lost_nothing_to_itself(model: Path) -> None:
    found = evaluate(str(model), against=model, text=TEXT, **WINDOWS)
    (artifact,) = found.artifacts
    assert artifact.perplexity == found.source.perplexity
    assert artifact.perplexity_ratio.value == 1.0
    assert artifact.from_source.kl.value == 0.0
    assert artifact.from_source.top1.value == artifact.from_source.top5.value == 1.0
    assert (artifact.size, artifact.bits_per_weight) == (found.source.size, found.source.bits_per_weight)


@pytest.mark.engine("llama-cpp")
def test_what_weights_and_engine_lose_adds_up(model: Path, q4_0: Path) -> None:
    exact = evaluate([q4_0], against=model, text=TEXT, **WINDOWS).artifacts[0]
    (found,) = evaluate([q4_0], against=model, text=TEXT, engine="llama-cpp", **WINDOWS).artifacts
    assert (exact.engine, found.engine) == ("reference", "llama-cpp")
    assert found.weights_alone == exact.from_source
    assert found.weights_alone is not None
    assert found.floor is not None
    weights, floor, both = (one.kl.value for one in (found.weights_alone, found.floor, found.from_source))
    assert 0 < floor < weights / 10
    assert both == pytest.approx(weights + floor, abs=floor)
    ids = read_windows(registry.open_checkpoint(model), TEXT, WindowOptions(**WINDOWS)).token_ids
    with registry.runtime("llama-cpp").open(q4_0) as engine, registry.runtime("reference").open(q4_0) as reference:
        rows = [kl_by_position(reference.logits(window), engine.logits(window))[:-1] for window in ids]
    assert floor == pytest.approx(np.concatenate(rows).mean(), rel=1e-3)
    (quick,) = evaluate([q4_0], against=model, text=TEXT, engine="llama-cpp", noise_floor=False, **WINDOWS).artifacts
    assert quick.floor is quick.weights_alone is None
    assert quick.from_source == found.from_source


class Engine:
    """An engine that says what it is told to, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        self.asked += 1
        found: np.ndarray = self.answer(token_ids)
        return found

    def runtime(self, refusal: str | None = None) -> Any:
        return SimpleNamespace(name="fake", refuses=lambda _: refusal, open=lambda _: self)


def test_an_engine_that_gives_the_last_row_only_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lambda ids: np.zeros((1, 2048), np.float32))
    monkeypatch.setattr(subjects, "choose_engine", lambda *_: engine.runtime())
    with pytest.raises(EngineFailed, match=r"fake gave logits \[1, 2048\] for 96 tokens, not \[96, 2048\]"):
        evaluate([model], against=model, text=TEXT, **WINDOWS)
    assert engine.closed


def test_what_an_engine_cannot_say_is_null_in_json(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lambda ids: np.full((len(ids), 2048), np.nan, np.float32))
    monkeypatch.setattr(subjects, "choose_engine", lambda *_: engine.runtime())
    found = evaluate([model], against=model, text=TEXT, **WINDOWS).to_json()
    assert "NaN" not in json.dumps(found)
    assert found["artifacts"][0]["from_source"]["kl"]["value"] is None
    assert found["artifacts"][0]["from_source"]["top1"]["value"] == 0
    assert found["artifacts"][0]["weights_alone"]["kl"]["value"] == 0


def test_the_source_is_computed_once_for_all_artifacts_and_windows_are_let_go(
    model: Path, q4_0: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, alive, most = [], [], [0]

    def fresh(rows: int) -> np.ndarray:
        made = np.zeros((rows, 2048), np.float32)
        alive.append(weakref.ref(made))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return made

    def counted(checkpoint: Any, windows: Any, *_: object) -> Iterator[np.ndarray]:
        started.append(checkpoint.path.name)
        return map(fresh, map(len, windows))

    engine = Engine(lambda ids: fresh(len(ids)))
    monkeypatch.setattr(evaluation, "exact_predictions", counted)
    monkeypatch.setattr(subjects, "choose_engine", lambda *_: engine.runtime())
    found = evaluate([q4_0, q4_0, q4_0], against=model, text=TEXT, sequences=6, length=64)
    assert started.count("model") == 1
    assert started.count(q4_0.name) == 3
    assert len(alive) == 6 * (1 + 3 * 2)
    # The source's and one artifact's twice; an engine lets a window go when the next one is asked for.
    assert most[0] <= 2 + 3
    assert found.windows == 6


def test_what_gives_windows_one_at_a_time_holds_none(model: Path) -> None:
    checkpoint = registry.open_checkpoint(model)
    windows = [[1, 5, 9], [1, 7]]
    with ExitStack() as stack:
        rows = exact_predictions(checkpoint, windows, stack, unwatched)
        first = weakref.ref(next(rows))
        assert first() is None
    before: list[Any] = []

    def answer(ids: Sequence[int]) -> np.ndarray:
        assert all(one() is None for one in before), "the window before is still in memory"
        made = np.zeros((len(ids), 2048), np.float32)
        before.append(weakref.ref(made))
        return made

    subject = Subject(checkpoint, Engine(answer).runtime())
    for _ in engine_predictions(subject, Engine(answer), windows, 2048, unwatched):
        del _
    assert len(before) == 2


def test_progress_reaches_its_end_and_never_goes_back(model: Path, q4_0: Path) -> None:
    told: list[tuple[str, float]] = []
    evaluate(
        [q4_0],
        against=model,
        text=TEXT,
        progress=lambda what, done, total: told.append((what, done / total)),
        **WINDOWS,
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert any(what.startswith("q4_0.gguf: block ") for what, _ in told)


def other_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of a model whose texts do not begin with BOS."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "add_bos_token": False}))
    return folder


def test_an_artifact_of_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    other = other_tokenizer(model, tmp_path / "other")
    with pytest.raises(BadOption, match=r"reads text\.txt as other tokens than the source does, from token 0 on"):
        evaluate([other], against=model, text=TEXT, **WINDOWS)


def test_an_artifact_without_a_tokenizer_is_given_ids(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*token*"))
    found = evaluate([bare], against=model, text=TEXT, **WINDOWS)
    assert found.notes == (f"{bare}: the model has no tokenizer; it is given the source's token ids",)
    assert found.artifacts[0].from_source.kl.value == 0


def test_fewer_windows_than_asked_for_are_told(model: Path) -> None:
    found = evaluate([model], against=model, text=TEXT, length=512, sequences=50)
    assert found.windows == 3
    assert found.notes == ("text.txt fills 3 of 50 windows that were asked for",)


def test_what_cannot_be_compared_is_refused(model: Path, tiny_checkpoint: Path, q4_0: Path) -> None:
    def refused(message: str, *artifacts: Path, **options: Any) -> None:
        with pytest.raises(BadOption, match=message):
            evaluate(artifacts, **{"against": model, "text": TEXT, **WINDOWS, **options})

    refused("no artifact to evaluate")
    refused(r"has \d+ tokens, the source 2,048: their predictions cannot be compared", tiny_checkpoint)
    refused("model: a window of 1025 tokens exceeds the model's context of 1024", q4_0, length=1025)
    refused("llama-cpp does not load hf", model, engine="llama-cpp")
    refused("none", q4_0, engine="none")
    refused("text files end in .txt", q4_0, text=model / "config.json")


def test_an_engine_that_refuses_the_artifact_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "choose_engine", lambda *_: Engine(None).runtime("too odd"))
    with pytest.raises(EngineFailed, match="fake cannot run this: too odd"):
        evaluate([model], against=model, text=TEXT, **WINDOWS)


def test_models_that_attend_otherwise_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = registry.open_checkpoint(model)
    sparse = SimpleNamespace(path=model, attention="sparse", spec=source.spec)
    monkeypatch.setattr(subjects.registry, "open_checkpoint", lambda _: sparse)
    with pytest.raises(BadOption, match="attends sparsely by itself"):
        evaluate([model], against=model, text=TEXT)
    lightning = SimpleNamespace(layers=(0, 1))
    spec = SimpleNamespace(lightning=lightning, num_hidden_layers=4)
    sala = SimpleNamespace(path=model, attention="dense", spec=spec)
    monkeypatch.setattr(subjects.registry, "open_checkpoint", lambda _: sala)
    with pytest.raises(UnsupportedModel, match="cannot evaluate a model with lightning attention"):
        evaluate([model], against=model, text=TEXT)
