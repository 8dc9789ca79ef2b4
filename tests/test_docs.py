"""Documentation is an assertion: tables, help and examples are checked against the code."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantkit
from quantkit.cli.app import VERBS, main

ROOT = Path(__file__).resolve().parent.parent


def test_generated_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert (VERBS[verb].__doc__ or "").split(".")[0][:40] in " ".join(shown.split())


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(script, tmp_path, golden_model):
    pytest.importorskip("torch", reason="the examples calibrate and record, which needs the extra quantkit[torch]")
    wanted = script.read_text(encoding="utf-8").split("python examples/", 1)[1].splitlines()[0].split()[1:]
    arguments = [{"MODEL": str(golden_model), "OUT": str(tmp_path / "out")}[word] for word in wanted]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_links_in_the_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# ------------------------------------------------------------------------------------------------ names in the prose

CODE = sorted(
    path
    for room in ("quantkit", "exporters", "runtimes", "benchmarks", "golden")
    for path in (ROOT / room).rglob("*.py")
)
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]
)
ROOMS = ("quantkit", "exporters", "runtimes", "tests", "benchmarks", "golden", "docs")
A_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})/[\w./-]*\w|(?<![\w./*-])\w+\.py\b")
A_MODULE = re.compile(r"(?<![\w./-])quantkit(?:\.\w+)+")
FOREIGN = {
    *("configuration_minicpm.py", "modeling_minicpm.py", "modeling_minicpm_sala.py"),  # OpenBMB's, beside a checkpoint
    *("auto_awq.py", "marlin.py", "sampling_params.py"),  # vLLM's
    *("quant_scheme.py", "quant_args.py"),  # compressed-tensors'
    "convert_hf_to_gguf.py",  # llama.cpp's
    *("convert_slow_tokenizer.py", "modeling_llama.py", "modeling_rope_utils.py"),  # transformers'
    "quantkit.json",  # the manifest
    *("quantkit.config", "quantkit.quantization", "quantkit.generation_config"),  # keys inside GGUF files
}
"""What prose names that is no file or module of ours."""


def prose(path: Path) -> str:
    """A page; of a module its comments and docstrings, attribute docstrings included."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text.replace("\\_", "_")
    comments = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return "\n".join(comments + strings)


def is_placeholder(name: str) -> bool:
    """`exporters/NAME.py`: the reader puts a name there."""
    return any(len(word) > 1 and word.isupper() for word in re.split(r"[./_]", name))


def path_exists(name: str, beside: Path) -> bool:
    """Whether a path leads somewhere from the root, or a bare file name in the room of `beside` (a page: any)."""
    if "/" in name:
        return (ROOT / name).exists() or (ROOT / f"{name}.py").exists()
    rooms = [ROOT / beside.relative_to(ROOT).parts[0]]
    if beside.suffix != ".py":
        rooms = [ROOT / room for room in ROOMS]
    return any(
        path.name == name for path in [*ROOT.glob("*/*.py"), *(file for room in rooms for file in room.rglob("*.py"))]
    )


def module_exists(name: str) -> bool:
    """Whether a dotted name is a module, or what the last module in it defines."""
    words = name.split(".")
    if words[1] in quantkit.__all__:
        return len(words) == 2
    for count in range(len(words), 0, -1):
        inside = words[1:count] if words[1:2] and words[1] in {"exporters", "runtimes"} else words[:count]
        folder = ROOT.joinpath(*inside)
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if file.is_file():
            return all(defines(file, word) for word in words[count : count + 1])
    return False


def defines(file: Path, name: str) -> bool:
    """Whether a module has a function, class or constant of that name at its top."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    named = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    targets = [node.targets for node in body if isinstance(node, ast.Assign)]
    targets += [[node.target] for node in body if isinstance(node, ast.AnnAssign)]
    return name in named | {word.id for group in targets for word in group if isinstance(word, ast.Name)}


def lost_names(path: Path) -> Iterator[str]:
    """What the prose of a file names and the repository does not have."""
    text = prose(path)
    for pattern, exists in ((A_MODULE, module_exists), (A_PATH, lambda name: path_exists(name, path))):
        for name in {match[0] for match in pattern.finditer(text)} - FOREIGN:
            if not is_placeholder(name) and not exists(name):
                yield name


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_prose_names_files_and_modules_that_exist(path):
    assert sorted(lost_names(path)) == []


@pytest.mark.parametrize(
    "name",
    [
        "quantkit.engine_process",
        "quantkit.tensors.packing.pack_nothing",
        "quantkit/fold.py",
        "_search.py",
        "tests/test_vllm.py",
    ],
)
def test_a_name_that_leads_nowhere_is_found(name, tmp_path):
    exists = (
        path_exists(name, ROOT / "quantkit" / "methods" / "gptq.py")
        if "/" in name or name.endswith(".py")
        else module_exists(name)
    )
    assert not exists
