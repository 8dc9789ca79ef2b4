"""The picture of an evaluation: drawn as the figures say, written whole, refused before any work."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the picture needs the extra quantkit[plot]")

from quantkit import evaluate
from quantkit.errors import BadOption, MissingDependency, OutputExists, QuantkitError, WriteFailed
from quantkit.verification.evaluation import picture
from quantkit.verification.evaluation.figures import ArtifactFigures, Distance, Evaluation, Mean, ModelFigures
from quantkit.verification.evaluation.picture import check_picture, write_picture


def found(*kl: float, error: float | None = 0.001) -> Evaluation:
    """An evaluation of artifacts with these divergences."""
    model = {"format": "gguf", "bits_per_weight": 4.5, "perplexity": Mean(20.0, 1.0)}
    artifacts = [
        ArtifactFigures(
            path=f"m{number}.gguf",
            size=(number + 1) * 1_000_000,
            engine="llama-cpp",
            perplexity_ratio=Mean(1.0, 0.1),
            from_source=Distance(Mean(value, error), value, value, Mean(0.9, 0.1), Mean(0.9, 0.1)),
            floor=Distance(Mean(1e-5, error), 1e-5, 1e-5, Mean(0.9, 0.1), Mean(0.9, 0.1)),
            **model,
        )
        for number, value in enumerate(kl)
    ]
    source = ModelFigures(path="source", size=16_000_000, **model)
    counts = {"windows": 4, "tokens": 2048, "positions": 2044, "skip_positions": 0}
    return Evaluation(text="t.txt", text_digest="", **counts, source=source, artifacts=tuple(artifacts))


@pytest.mark.parametrize("kl", [(0.01,), (0.1, 0.003, 0.0), (float("nan"), 0.2)])
@pytest.mark.parametrize("error", [None, 0.001])
def test_any_figures_are_drawn(kl: tuple[float, ...], error: float | None) -> None:
    drawn = picture.picture(found(*kl, error=error))
    width, height = struct.unpack(">II", drawn[16:24])
    assert drawn.startswith(b"\x89PNG")
    assert (width, height) == (825, 550)
    assert drawn == picture.picture(found(*kl, error=error)), "the same figures give the same bytes"


def test_other_figures_make_another_picture() -> None:
    assert picture.picture(found(0.01, 0.02)) != picture.picture(found(0.01, 0.03))


def test_it_is_written_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "kl.png"
    target.write_bytes(b"before")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(QuantkitError, match=r"kl\.png: cannot be written: No space left"):
        write_picture(target, found(0.01))
    assert [path.name for path in tmp_path.iterdir()] == ["kl.png"]
    assert target.read_bytes() == b"before"
    monkeypatch.undo()
    write_picture(target, found(0.01))
    assert target.read_bytes() == picture.picture(found(0.01))


def test_what_cannot_be_drawn_or_written_is_refused_before_any_work(
    tmp_path: Path, golden_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "kl.png"
    there.write_bytes(b"a picture of somebody's")
    with pytest.raises(OutputExists, match=r"kl\.png already exists"):
        evaluate([golden_model], against=golden_model, text=tmp_path / "no text", plot=there)
    with pytest.raises(OutputExists, match=r"kl\.png is nothing that this command wrote"):
        check_picture(there, overwrite=True)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputExists, match="is nothing that this command wrote"):
        check_picture(tmp_path / "folder.png", overwrite=True)
    write_picture(tmp_path / "ours.png", found(0.01))
    check_picture(tmp_path / "ours.png", overwrite=True)
    with pytest.raises(BadOption, match=r"a picture is written as \.png"):
        check_picture(tmp_path / "kl.pdf", overwrite=False)
    with pytest.raises(WriteFailed, match="is not a folder"):
        check_picture(tmp_path / "nowhere" / "kl.png", overwrite=False)
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="drawing needs matplotlib"):
        check_picture(tmp_path / "new.png", overwrite=False)
    assert there.read_bytes() == b"a picture of somebody's"
