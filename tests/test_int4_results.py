"""The tables of `benchmarks/int4_quality.py`: which figures miss a target, and which texts they are measured on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmarks run models, which needs the extra quantkit[torch]")

from benchmarks.int4_quality import is_wanted
from benchmarks.int4_results import Results
from benchmarks.int4_rows import NAMES
from benchmarks.sample_counts import BITS, RTN, Subject, drawn, first
from benchmarks.text_kinds import HEADER_CHARS, MOST_HEADERS, headers, text_kinds, write_calibration_file
from golden.corpus import TEXT_RUN_CHARS, Document, read_corpus
from quantkit.calibration.samples import Source, joined
from quantkit.registry import open_checkpoint

KINDS = ("prose", "python", "C")
INPUTS = {"held out": dict.fromkeys(KINDS)}
AT_TARGET = {
    4: {
        "rtn": 1.0,
        "default": (0.17, 0.17, 0.17),
        "default + file": (0.12, 0.20, 0.20),
        "file alone": (0.4, 9.0, 9.0),
        "gptqmodel: default (GAR)": (0.8, 0.1, 0.1),
        "gptqmodel: plain": (0.5, 0.1, 0.1),
    },
    3: {"textbook": 1.0, "default + file": (9.0, 0.25, 0.25)},
    2: {"textbook": 1.0, "default + file": (9.0, 0.35, 0.35)},
}
"""Every figure as large as it may be; where there is no target, much larger."""


def results(file: Path | None = None, **changed: tuple[int, str, int]) -> Results:
    """AT_TARGET, with 1 % added to the figure at (bits, row, kind)."""
    made = Results(file, INPUTS)
    for bits, rows in AT_TARGET.items():
        for name, value in rows.items():
            kl = np.broadcast_to(value, 3).copy()
            for at in changed.values():
                if at[:2] == (bits, name):
                    kl[at[2]] *= 1.01
            made.add(bits, name, {"kl": dict(zip(KINDS, kl.tolist(), strict=True)), "seconds": 1.0})
    return made


def missed(made: Results) -> list[str]:
    return [verdict.text for verdict in made.verdicts("prose") if verdict.missed]


def test_figures_at_the_targets_meet_them():
    verdicts = list(results().verdicts("prose"))
    assert len(verdicts) == 2 * 3 + 2 + 2 * 2
    assert [verdict.text for verdict in verdicts if not verdict.text.startswith("pass")] == []


JUDGED = [
    *((4, name, kind) for name in ("default", "default + file") for kind in range(3)),
    *((bits, "default + file", kind) for bits in (3, 2) for kind in (1, 2)),
]


@pytest.mark.parametrize("at", JUDGED, ids=str)
def test_a_figure_above_its_target_is_a_miss(at: tuple[int, str, int]):
    bits, name, kind = at
    (line,) = missed(results(changed=at))
    assert line.startswith("FAIL")
    assert f"{bits} bits, {KINDS[kind]}: {name} / " in line


def test_gptqmodel_has_a_target_on_the_text_that_it_was_calibrated_on_alone():
    assert len(missed(results(changed=(4, "file alone", 0)))) == 2
    assert missed(results(changed=(4, "file alone", 1))) == []


def test_what_was_not_measured_is_not_missed_and_not_passed():
    made = Results(None, INPUTS)
    made.add(4, "default", {"kl": dict.fromkeys(KINDS, 1.0), "seconds": 1.0})
    assert missed(made) == []
    assert all("not measured" in verdict.text for verdict in made.verdicts("prose"))


def test_a_table_holds_every_row_with_its_ratios():
    head, *lines = results().table(4, NAMES)
    assert head.split() == ["KL,", "4", "bits", *(word for kind in KINDS for word in (kind, "x", "rtn")), "seconds"]
    assert len(lines) == len(AT_TARGET[4])
    assert lines[3].split()[-7:] == ["1.200e-01", "0.120", "2.000e-01", "0.200", "2.000e-01", "0.200", "1.0"]


def test_figures_are_kept_and_not_mixed_with_those_of_other_inputs(tmp_path: Path):
    file = tmp_path / "figures.json"
    figures = results(file).figures
    assert Results(file, INPUTS).figures == figures
    with pytest.raises(SystemExit, match="of another model, text, group size or number of sequences"):
        Results(file, {"held out": {"prose": None}})


def test_rows_are_chosen_by_name_or_by_a_part_of_one():
    def chosen(*only: str) -> list[str]:
        return [name for name in NAMES if is_wanted(name, only)]

    assert chosen("default", "rtn") == ["rtn", "default"]
    assert chosen("default + file") == ["default + file"]
    assert chosen("less")
    assert all(name.startswith("less") for name in chosen("less"))


# -------------------------------------------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return read_corpus()


def test_what_is_measured_is_neither_calibrated_on_nor_trained_on(corpus: list[Document]):
    kinds = text_kinds(corpus)
    assert kinds.home == "prose"
    assert {item.kind for item in kinds.training} == {"prose"}
    assert not any(item.held_out for item in kinds.training)
    assert set(kinds.measured) >= {"prose", "python"}
    assert all(item.held_out for documents in kinds.measured.values() for item in documents)
    assert {item.module for item in kinds.training}.isdisjoint(item.module for item in kinds.measured["python"])


def test_another_text_takes_the_place_of_our_prose(corpus: list[Document], tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("".join(f"Line {number} of a text.\n" for number in range(TEXT_RUN_CHARS)), encoding="utf-8")
    found = text_kinds(corpus, file)
    assert found.home == "text"
    sides = (found.training, found.measured["text"])
    training, measured = ({line for item in side for line in item.text.splitlines()} for side in sides)
    assert training.isdisjoint(measured)
    assert len(training | measured) == TEXT_RUN_CHARS
    assert found.measured["python"] == text_kinds(corpus).measured["python"]


def test_headers_are_taken_from_all_folders_and_none_is_all_of_it(tmp_path: Path):
    for number in range(MOST_HEADERS + 44):
        file = tmp_path / f"{number:04}" / "header.h"
        file.parent.mkdir()
        file.write_bytes(b"\xff" + b"x" * (HEADER_CHARS + 1 if number == 0 else number))
    found = list(headers([tmp_path, tmp_path / "missing"]))
    assert len({item.module for item in found}) == MOST_HEADERS
    assert len(found[0].text) == HEADER_CHARS
    assert found[-1].text == "x" * (MOST_HEADERS + 42)
    assert list(headers([tmp_path / "missing"])) == []


def test_the_calibration_file_holds_all_documents_in_records_that_fill_sequences(tmp_path: Path):
    file = tmp_path / "prose.jsonl"
    texts = [f"{number} " * 400 for number in range(100)]
    write_calibration_file([Document("m", "prose", text, held_out=False) for text in texts], file)
    records = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert "\n".join(records) == "\n".join(texts)
    assert all(len(record) >= 8192 for record in records[:-1])


def test_the_first_sequences_keep_their_sources():
    parts = [
        (Source(name=name, kind="text", digest=name), [np.full(4, 10 * i + j) for j in range(count)])
        for i, (name, count) in enumerate((("a", 8), ("b", 8), ("c", 1)))
    ]
    samples = joined(parts, seed=3)
    taken = first(samples, 4)
    assert sorted(row[0] for row in taken.sequences) == sorted(row[0] for row in samples.sequences[:4])
    assert [source.name for source in taken.coverage.sources] == ["a", "b"]
    assert all(row[0] // 10 == origin for row, origin in zip(taken.sequences, taken.origins, strict=True))
    assert taken.coverage.seed == 3


def test_every_curve_lies_within_its_panel(golden_model: Path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra quantkit[benchmarks]")
    results, counts = Results(None, INPUTS), (8, 32)
    found = [Subject(name, open_checkpoint(golden_model), {}) for name in ("low", "high")]
    for subject, height in zip(found, (0.1, 0.7), strict=True):
        for count in (RTN, *counts):
            kl = 1.0 if count == RTN else height + 1 / count
            results.add(BITS, subject.row(count), {"kl": dict.fromkeys(KINDS, kl)})
    panels = drawn(found, counts, results).axes
    for panel, height in zip(panels, (0.1, 0.7), strict=True):
        curves = [line for line in panel.lines if len(line.get_ydata()) == len(counts) and line.get_marker() == "o"]
        assert len(curves) == len(KINDS)
        low, high = panel.get_ylim()
        for curve in curves:
            np.testing.assert_allclose(curve.get_ydata(), [height + 1 / 8, height + 1 / 32])
            assert low <= min(curve.get_ydata()) <= max(curve.get_ydata()) <= high
