"""The report page: its figures are those of `verify`, it loads nothing, and it can be read on a phone."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.cli.app import main
from quantkit.errors import BadOption, OutputExists, WriteFailed
from quantkit.verification.page.charts import bounds
from quantkit.verification.page.document import DATA, document
from quantkit.verification.page.facts import OF_OUTPUTS, OF_WEIGHTS, LayerErrors, ReportedArtifact, layer_errors
from quantkit.verification.page.scales import figure, from_zero, logarithmic, percent, shares
from quantkit.verification.report import FAILED, PASSED, Check, Comparison, Report, Step
from tests.support.browser import shown

PHONE, SCREEN = 390, 1280
GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "golden.bin"
TEXTS = """() => [...document.querySelectorAll('svg text, p, dt, dd, h1, h2, figcaption')].map(one => {
  const box = one.getBoundingClientRect();
  return [one.textContent, box.left, box.right, box.height];
})"""
"""Every text with its left and right edge and its height, in CSS pixels."""
HOSTILE, NOTE = "<script>alert(1)<b>&\"'.gguf", "a note </script><script>alert(2)</script>"


def comparison(prompt: str, kl: float, top1: float = 0.97, limit: float | None = 0.05) -> Comparison:
    return Comparison(prompt, 91, kl, top1, 0.3, 0.1, True, limit)


def report(path: str, kls: dict[str, float], *, status: str = PASSED) -> Report:
    check = Check("reference against original", "kl", None, tuple(comparison(name, kl) for name, kl in kls.items()))
    problems = ("model.layers.0.mlp.up_proj.weight differs",) if status == FAILED else ()
    steps = (Step("files", PASSED, "as they were"), Step("predictions", status, "said", problems, (check,)))
    return Report(
        path=path, format="gguf", precision="quantized", engine="llama-cpp", compared="original", steps=steps,
        notes=(NOTE,),
    )  # fmt: skip


def subjects(count: int, layers: int = 62) -> list[ReportedArtifact]:
    """Artifacts with odd names, figures of many sizes, and as many layers as the largest model has."""
    found = []
    for number in range(1, count + 1):
        kinds = {
            kind: {layer: 1e-4 * number * (1 + layer) for layer in range(layers)} for kind in ("q_proj", "up_proj")
        }
        kls = {"code": 3e-5 * 10**number, "one token": 0.0, "a long name of a prompt, 中文": 1e-3 / number}
        name = HOSTILE if number == 1 else f"a-rather-long-name-of-an-artifact-number-{number}-q4_k_m.gguf"
        made = report(f"/somewhere/{name}", kls, status=FAILED if number == 2 else PASSED)
        errors = LayerErrors(OF_WEIGHTS, {**kinds, "lm_head": {-1: 0.5}})
        found.append(ReportedArtifact(number=number, report=made, size=10**6 * number, weights=10**6, errors=errors))
    return found


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(document(subjects(10), "golden.bin"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def artifacts(golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("artifacts")
    options = quantkit.QuantizeOptions(method="rtn", scheme=quantkit.AffineGroups(bits=4, group_size=128))
    quantkit.quantize(golden_model, folder / "int4", options)
    quantkit.export("gguf", golden_model, folder / "q8.gguf", quantkit.ExportOptions(type="q8_0"))
    return [str(folder / "int4"), str(folder / "q8.gguf")]


def data(page: Path) -> Any:
    found = re.search(rf'<script type="application/json" id="{DATA}">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_its_figures_are_those_of_verify(
    artifacts: list[str], golden_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden, page = str(golden_model.parent / "golden.bin"), tmp_path / "page.html"
    options = ["--golden", golden, "--engine", "reference", "--prompts", "2"]
    found = []
    for artifact in artifacts:
        assert main(["verify", artifact, *options, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert main(["report", *artifacts, *options, "--out", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["reports"]) == (True, found)
    assert data(page) == found
    text = html.unescape(page.read_text())
    for one in found:
        for check in (check for step in one["steps"] for check in step["checks"]):
            assert f"<dd>{figure(check['kl'])} nats</dd>" in text
            assert f"<dd>{percent(check['top1'])}</dd>" in text
            for prompt in check["comparisons"]:
                cells = f"<td>{figure(prompt['kl'])}</td><td>{figure(prompt['limit'])}</td>"
                assert re.search(rf"<td>{prompt['prompt']}</td><td>\d [^<]*</td>{re.escape(cells)}", text)
                assert f"<td>{percent(prompt['top1'])}</td>" in text
    errors = json.loads((Path(artifacts[0]) / "quantkit.json").read_text())["report"]["tensors"]
    assert len(errors) == 35
    for name, entry in errors.items():
        _, _, layer, _, kind, _ = name.split(".")
        assert f"<td>{kind}</td><td>{layer}</td><td>{figure(entry['error'])}</td>" in text
    sizes = [sum(file.stat().st_size for file in Path(artifacts[0]).iterdir() if file.name != "quantkit.json")]
    assert f"{sizes[0] / 1e6:.3g} MB" in text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_a_browser_shows_it_and_asks_for_nothing(width: int, dark: bool, synthetic: Path) -> None:
    with shown(synthetic, width=width, dark=dark) as browser:
        assert (browser.requests, browser.said) == ([], [])
        page = browser.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for text, left, right, height in page.evaluate(TEXTS):
            assert left >= 0, text
            assert right <= width + 0.5, text
            assert height == 0 or height >= 10, text
        for details in page.query_selector_all("summary"):
            details.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "tables scroll by themselves"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(13, 13, 13)") == dark


def test_a_mark_is_where_its_figure_is(synthetic: Path) -> None:
    """Looked at as it is drawn: a larger KL lies further right, a larger file further right, of all of them."""
    with shown(synthetic, width=PHONE) as browser:
        for heading, values in (("Size against KL", range(1, 11)), ("KL of each prompt", range(1, 11))):
            figure_ = browser.page.query_selector(f"figure:has(h2:text-is('{heading}'))")
            places = [circle.bounding_box()["x"] for circle in figure_.query_selector_all("circle")][: len(values)]
            assert places == sorted(places)
            assert places[0] < places[-1]


def test_the_figure_of_an_artifact_is_the_engines_from_the_original() -> None:
    names = ("reference against original", "llama-cpp against reference", "llama-cpp against original")
    checks = [
        Check(name, "kl", None, (comparison("code", kl),)) for name, kl in zip(names, (0.1, 0.2, 0.3), strict=True)
    ]
    steps = (Step("predictions", PASSED, "", (), tuple(checks[:1])), Step("engine", PASSED, "", (), tuple(checks[1:])))
    found = Report(path="x", format="gguf", precision="", engine="llama-cpp", compared="original", steps=steps)
    assert ReportedArtifact(number=0, report=found, size=None, weights=None, errors=None).kl == pytest.approx(0.3)
    alone = replace(found, steps=steps[:1], engine=None)
    assert ReportedArtifact(number=0, report=alone, size=None, weights=None, errors=None).kl == pytest.approx(0.1)


def test_strangers_names_are_text(synthetic: Path) -> None:
    text = synthetic.read_text()
    assert "<script>alert" not in text
    assert html.escape(HOSTILE) in text
    assert data(synthetic)[0]["path"].endswith(HOSTILE)
    assert data(synthetic)[0]["notes"] == [NOTE]
    assert text.count("<script") == 1


def test_the_page_of_one_that_fails_says_so_and_the_command_too(
    golden_model: Path, artifacts: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(artifacts[1]).read_bytes()[:-32] + bytes(32))
    page = tmp_path / "page.html"
    golden = str(golden_model.parent / "golden.bin")
    assert main(["report", str(broken), "--golden", golden, "--engine", "none", "--out", str(page)]) == 1
    assert "✗ FAILED at files" in page.read_text()


def test_names_are_refused_before_any_work(artifacts: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(BadOption, match="named twice"):
        quantkit.report_page([artifacts[1], artifacts[1]], page)
    with pytest.raises(BadOption, match="does not exist"):
        quantkit.report_page([tmp_path / "nothing"], page)
    with pytest.raises(BadOption, match="no artifact"):
        quantkit.report_page([], page)
    with pytest.raises(WriteFailed, match="not a folder"):
        quantkit.report_page([artifacts[1]], tmp_path / "nowhere" / "page.html")
    page.write_text("mine")
    with pytest.raises(OutputExists, match="already exists"):
        quantkit.report_page([artifacts[1]], page)
    with pytest.raises(OutputExists, match="nothing that this command wrote"):
        quantkit.report_page([artifacts[1]], page, overwrite=True)
    assert page.read_text() == "mine"
    page.write_text(document(subjects(1), None))
    quantkit.report_page([artifacts[1]], page, engine="none", golden=GOLDEN, overwrite=True)
    assert "q8.gguf" in page.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"page.html"}


def test_a_manifest_of_a_stranger_gives_no_errors_or_right_ones() -> None:
    assert layer_errors({}) is None
    assert layer_errors({"report": 3, "weights": {"tensors": {"x": 1, "y": {"error": "no"}}}}) is None
    found = layer_errors({"report": {"tensors": {"model.layers.3.mlp.up_proj.weight": {"error": 0.5}}}})
    assert found == LayerErrors(OF_WEIGHTS, {"up_proj": {3: 0.5}})
    calibrated = {"tensors": {"lm_head.weight": {"error": 1}}, "calibration": {"sources": []}}
    assert layer_errors({"report": calibrated}) == LayerErrors(OF_OUTPUTS, {"lm_head": {-1: 1.0}})


def test_scales_hold_what_they_are_made_for() -> None:
    scale = logarithmic([2e-5, 0.0, 3e-2, math.nan], 0, 100)
    assert (scale.low, scale.high, scale(1e-5), scale(0.0), scale(0.1)) == (1e-5, 0.1, 0, 0, 100)
    assert scale(1e-3) == pytest.approx(50)
    assert shares([0.97, 1.0], 0, 100).low == 0.95
    assert [name for _, name in shares([1.0], 0, 100).ticks] == ["99 %", "99.5 %", "100 %"]
    for most in (0.3, 1.0, 2.29, 5.84, 999.0, 3.4e3):
        scale = from_zero([most], 0, 100)
        assert scale.high >= most
        assert 2 <= len(scale.ticks) <= 7
    assert bounds(LayerErrors(OF_WEIGHTS, {"q": {0: 0.0}})) == pytest.approx([1.0] * 12)
