"""The wheel, installed where nothing else is: every verb works, or one line says what to install.

It is built without a network, by the pip and setuptools that run the tests. The environments that it is installed in
see no package but those that its own metadata asks for, which are links to the ones here, and reach no network.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from quantkit.cli.app import VERBS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"quantkit": "quantkit", "exporters": "quantkit/exporters", "runtimes": "quantkit/runtimes"}
"""Folder of the repository to where it lies in the wheel."""
OFFLINE = """import socket
def refused(*_):
    raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refused
"""
FIRST = "quantize mymodel --method rtn --out int4", "export gguf int4 --out model.gguf"
CORE = {
    "inspect mymodel": "5,442,304",
    "inspect model.gguf": "made with quantkit",
    "plan mymodel --to gguf:q4_0,openvino:f16": "q4_0",
    "plan mymodel --to all": "pip install 'quantkit[onnx]'",
    "export hf mymodel --arch llama --out llama": "transformers",
    "export mlx int4 --out mlx": "mlx-numpy",
    "export openvino int4 --out openvino": "openvino-numpy",
    "export gptq int4 --out gptq": "vllm",
    "verify model.gguf --golden golden.bin": "files and numbers verified, not run in any engine",
    "report int4 --golden golden.bin --engine none --prompts 1 --out page.html": "passed",
    "bench model.gguf --prompt-tokens 4 --decode-tokens 2 --rounds 1": "decode tokens/s",
    "formats": "pip install 'quantkit[llama-cpp]'",
}
"""What needs no extra, and a word of its answer."""
EXTRAS = {
    "golden mymodel --out mine.bin": "torch,text",
    "quantize mymodel --out gptq4 --calibration text.txt --only-files --samples 2 --length 32": "torch,text",
    "imatrix mymodel --text text.txt --chunks 1 --length 32 --out imatrix.gguf": "torch,text",
    "verify int4 --against mymodel --engine none --prompts 1": "text",
    "eval model.gguf --against mymodel --text text.txt --samples 1 --length 32": "text",
    "run model.gguf --prompt 'The river' --max-tokens 4": "text",
    "eval model.gguf --against mymodel --text text.txt --plot kl.png": "plot",
    "export onnx int4 --out onnx": "onnx",
    "verify model.gguf --golden golden.bin --engine llama-cpp --prompts 1": "llama-cpp",
    "bench openvino --engine openvino": "openvino",
    "bench mlx --engine mlx": "mlx",
    "bench llama --engine transformers": "transformers",
}
"""What does, and which."""
SLOW = ("golden", "quantize")
"""Verbs whose work the other lines with the same extras stand for."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves its own folders beside what it builds."""
    for needed in ("pip", "setuptools"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"building a wheel without a network needs {needed} here")
    if int(metadata.version("setuptools").split(".")[0]) < 71:
        pytest.skip("setuptools before 71 builds wheels with another package")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(out))
    (built,) = out.glob("*.whl")
    return built


def pip(*words: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        *words,
        "--no-index",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def environment(folder: Path, wheel: Path, extras: str = "") -> Path:
    """A virtual environment with the wheel and what that asks for; returns its folder of commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (quantkit,) = metadata.distributions(path=[str(wheel)])
    wanted, linked = requirements(quantkit, extras.split(",")), set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in linked:
            continue
        linked.add(str(requirement))
        try:
            found = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{requirement.name} is not here, of which quantkit[{extras}] is in need")
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
        wanted += requirements(found, requirement.extras)
    (site / "sitecustomize.py").write_text(OFFLINE)
    target = f"{wheel}[{extras}]" if extras else str(wheel)
    pip("--python", str(folder / "bin" / "python"), "install", "--no-compile", target)
    return folder / "bin"


def requirements(package: metadata.Distribution, extras: Iterable[str]) -> list[Requirement]:
    """What it asks for on this machine, for these extras and without any."""
    every = map(Requirement, package.requires or [])
    return [one for one in every if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, golden_model: Path) -> Path:
    """A folder far from the repository, with a model of the user's own."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(golden_model, folder / "mymodel")
    for name in ("golden.bin", "text.txt"):
        shutil.copy(golden_model.parent / name, folder)
    return folder


def typed(line: str, commands: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`quantkit` with the words of `line`, by the installed command, with nothing of this environment."""
    command = [str(commands / "quantkit"), *shlex.split(line)]
    place = {"PATH": f"{commands}:/usr/bin:/bin", "HOME": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def bare(wheel: Path, desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of an environment without extras, in which the model was quantized and exported."""
    commands = environment(tmp_path_factory.mktemp("bare"), wheel)
    for line in FIRST:
        done = typed(line, commands, desk)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    return commands


def test_everything_of_the_packages_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    """Data files as well: the types' mark, and the openings that a model continues."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {
        f"{place}/{path.relative_to(ROOT / room)}"
        for room, place in ROOMS.items()
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == there
    assert {Path(name).suffix for name in packed} > {".py", ".typed"}


def test_its_metadata_say_licence_command_and_what_it_needs(wheel: Path) -> None:
    (found,) = metadata.distributions(path=[str(wheel)])
    assert {Requirement(one).name for one in found.requires or [] if ";" not in one} == {
        *("numpy", "ml_dtypes", "safetensors", "typer", "rich")
    }
    assert [command.value for command in found.entry_points] == ["quantkit.__main__:entry"]
    assert any(name.endswith("/licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_there_is_a_line_for_every_verb() -> None:
    assert {line.split()[0] for line in (*FIRST, *CORE, *EXTRAS)} | {"demo"} == set(VERBS)


@pytest.mark.parametrize("line", CORE)
def test_what_needs_no_extra_works(line: str, bare: Path, desk: Path) -> None:
    done = typed(line, bare, desk)
    assert done.returncode == 0, done.stderr
    assert CORE[line] in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("line", EXTRAS)
def test_what_needs_one_says_which_in_one_line(line: str, bare: Path, desk: Path) -> None:
    before = sorted(desk.iterdir())
    done = typed(line, bare, desk)
    assert done.returncode == 2, done.stdout
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert said.startswith("error: ")
    assert f"pip install 'quantkit[{EXTRAS[line]}]'" in said
    assert sorted(desk.iterdir()) == before


@pytest.mark.parametrize("extras", ["text", "torch,text", "onnx", "llama-cpp"])
def test_what_it_says_mends_it(
    extras: str, wheel: Path, bare: Path, desk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    commands = environment(tmp_path_factory.mktemp("mended"), wheel, extras)
    for line in (line for line, wanted in EXTRAS.items() if wanted == extras and line.split()[0] not in SLOW):
        done = typed(line, commands, desk)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_the_demo_says_where_its_model_is_and_takes_that_of_a_clone(bare: Path, desk: Path, tmp_path: Path) -> None:
    done = typed("demo --out demo", bare, desk)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for word in ("golden/model", "source repository", "quantkit demo", "make demo"):
        assert word in done.stderr
    assert not (desk / "demo").exists()
    (tmp_path / "golden").symlink_to(ROOT / "golden")
    done = typed("demo --out demo", bare, tmp_path)
    assert done.returncode == 2
    assert "pip install 'quantkit[torch,text,llama-cpp]'" in done.stderr
    assert not (tmp_path / "demo").exists()
