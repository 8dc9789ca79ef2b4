"""The architecture, held by reading the source: who may import whom, what modules may be called, and what they hold."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.protocols import Exporter, Method, Runtime

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for room in ("quantkit", "exporters", "runtimes") for path in (ROOT / room).rglob("*.py"))
PLUGINS = sorted(path for room in ("exporters", "runtimes") for path in (ROOT / room).glob("*.py"))
HEAVY = ("torch", "transformers", "xllamacpp", "gguf", "compressed_tensors", "sentencepiece", "jinja2", "tokenizers")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "tools", "base"}
MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), shown(path))


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything that `path` imports, `from a import b` as both "a" and "a.b", literals included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (
                word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)
            )


def room_members(path: Path) -> set[tuple[str, str]]:
    """The modules inside exporters/ and runtimes/ that `path` imports, as (room, module)."""
    parts = [name.split(".") for name in imported_modules(path)]
    return {(name[1], name[2]) for name in parts if len(name) > 2 and name[1] in ("exporters", "runtimes")}


@pytest.mark.parametrize("path", [path for path in SOURCES if path not in PLUGINS], ids=shown)
def test_the_core_imports_no_concrete_exporter_or_runtime(path: Path) -> None:
    assert room_members(path) == set()


def owner(room: str, module: str) -> str:
    """The plug-in that `module` of a room belongs to: itself, or for `_NAME_part` the plug-in NAME."""
    public = {path.stem for path in (ROOT / room).glob("[!_]*.py")}
    owners = [name for name in public if module == name or module.startswith(f"_{name}_")]
    assert owners or module == "__init__", f"{room}/{module}.py belongs to no plug-in"
    return max(owners, key=len, default=module)


@pytest.mark.parametrize("path", PLUGINS, ids=shown)
def test_a_plugin_imports_no_other_plugin(path: Path) -> None:
    room = path.parent.name
    for other_room, module in room_members(path):
        assert other_room == room, f"{shown(path)} imports {other_room}"
        assert owner(room, module) == owner(room, path.stem), f"{shown(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_imports_are_absolute_and_rooms_go_by_their_full_name(path: Path) -> None:
    relative = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert relative == []
    assert {name.partition(".")[0] for name in imported_modules(path)}.isdisjoint({"exporters", "runtimes", "tests"})


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_module_is_named_for_what_it_holds(path: Path) -> None:
    assert VAGUE_NAMES.isdisjoint(path.stem.split("_"))


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_module_holds_constants_and_no_state(path: Path) -> None:
    module = tree(path)
    constants = set()
    for node in module.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for name in (word.id for target in targets for word in ast.walk(target) if isinstance(word, ast.Name)):
            constants.add(name)
            if isinstance(node.value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)):
                assert name.isupper() or name == "__all__", f"line {node.lineno}: {name} is mutable and not a constant"
    for node in ast.walk(module):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global {', '.join(node.names)}"
        changed = changed_name(node)
        assert changed not in constants or not changed.strip("_").isupper(), f"line {node.lineno} changes {changed}"


def changed_name(node: ast.AST) -> str:
    """The plain name whose contents `node` changes in place, or an empty string."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        holder = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        holder = node.func.value
    else:
        return ""
    return holder.id if isinstance(holder, ast.Name) else ""


@pytest.mark.parametrize("path", [path for path in SOURCES if "cli" not in path.parts], ids=shown)
def test_only_the_command_line_reads_the_environment(path: Path) -> None:
    names = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    assert names.isdisjoint({"os.environ", "os.getenv", "os.environb", "os.putenv"})
    assert set(imported_modules(path)).isdisjoint({"os.environ", "os.getenv"})


@pytest.mark.parametrize(
    "statement",
    [
        "import quantkit",
        "import quantkit.cli",
        "from quantkit import registry; [registry.exporter(name) for name in registry.names('exporters')]",
        "from quantkit import registry; [registry.runtime(name) for name in registry.names('runtimes')]",
    ],
)
def test_importing_pulls_no_heavy_package(statement: str) -> None:
    probe = f"{statement}\nimport sys; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def check_follows(plugin: object, protocol: type) -> None:
    """`plugin` has what `protocol` declares: attributes, and methods with the same parameters."""
    for name in protocol.__annotations__:
        assert hasattr(plugin, name), f"no attribute {name}"
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith("_"):
            declared = list(inspect.signature(method).parameters)[1:]
            assert list(inspect.signature(getattr(plugin, name)).parameters) == declared, f"parameters of {name}"
    assert isinstance(plugin.summary, str)  # type: ignore[attr-defined]
    assert len(plugin.summary.splitlines()) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", registry.names("exporters"))
def test_every_exporter_follows_the_protocol(name: str) -> None:
    exporter = registry.exporter(name)
    check_follows(exporter, Exporter)
    assert exporter.name == name
    assert all(isinstance(word, str) for word in (*exporter.types, *exporter.targets, *exporter.engines))
    assert "reference" in exporter.engines, "what the oracle cannot read cannot be verified"


@pytest.mark.parametrize("name", registry.names("runtimes"))
def test_every_runtime_follows_the_protocol(name: str) -> None:
    runtime = registry.runtime(name)
    check_follows(runtime, Runtime)
    assert runtime.name == name
    assert runtime.missing() is None or isinstance(runtime.missing(), str)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_follows_the_protocol(name: str) -> None:
    method = registry.method(name)
    check_follows(method, Method)
    assert method.name == name
    assert isinstance(method.needs_calibration, bool)


@pytest.mark.parametrize("runtime", registry.names("runtimes"))
@pytest.mark.parametrize("exporter", registry.names("exporters"))
def test_exporters_and_runtimes_agree_on_who_loads_what(exporter: str, runtime: str) -> None:
    claimed = runtime in registry.exporter(exporter).engines
    assert (exporter in registry.runtime(runtime).formats) == claimed
