"""The architecture, held by reading the source: who may import whom, what modules may be called, and what they hold."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantkit
from quantkit import registry
from quantkit.protocols import Exporter, Method, Runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for room in ("quantkit", "exporters", "runtimes") for path in (ROOT / room).rglob("*.py"))
FLOORS = (
    ("errors",),
    ("discovery", "threads", "progress", "memory", "supervisor"),
    ("tensors",),
    ("files",),
    ("models", "artifacts"),
    ("text",),
    ("calibration",),
    ("training",),
    ("protocols",),
    ("registry",),
    ("solver",),
    ("methods",),
    ("pipeline", "verification"),
    ("cli",),
)
"""The house from the ground up. Wings of one floor do not know each other."""
MOST_FILES, MOST_LINES = 13, 350
HEAVY = (
    "torch",
    "transformers",
    "xllamacpp",
    "gguf",
    "compressed_tensors",
    "openvino",
    "sentencepiece",
    "jinja2",
    "tokenizers",
)
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


def owner(module: str) -> str:
    """What a module of a room belongs to: its plug-in, or itself where its name begins with `_` (the room's own)."""
    return ".".join(module.split(".")[:3])


def module_of(path: Path) -> str:
    """The name that `path` is imported by: "quantkit.exporters.gguf.blocks"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "quantkit" else ("quantkit", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def neighbours(module: str) -> set[str]:
    """The modules of quantkit that `module` imports, at its head, inside functions, or for types only."""
    return (set(imported_modules(MODULES[module])) & set(MODULES)) - {module, "quantkit"}


def floor(module: str) -> int:
    """The floor that `module` stands on; the package itself and the rooms of plug-ins stand on none."""
    part = module.split(".")[1]
    return next(number for number, wings in enumerate(FLOORS) if part in wings)


ROOMS = ("exporters", "runtimes")
CORE = sorted(module for module in MODULES if "." in module and module.split(".")[1] not in (*ROOMS, "__main__"))


@pytest.mark.parametrize("module", CORE)
def test_a_wing_imports_only_what_lies_below_it(module: str) -> None:
    for other in neighbours(module):
        assert other.split(".")[1] not in ROOMS, f"{module} imports the plug-in {other}: ask `quantkit.registry`"
        same_wing = other.split(".")[1] == module.split(".")[1]
        assert same_wing or floor(other) < floor(module), f"{module} imports {other}, which does not lie below it"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if module.split(".")[1:2] == ["methods"]))
def test_a_method_imports_no_other_method(module: str) -> None:
    assert {owner(other) for other in neighbours(module) if ".methods." in other} <= {owner(module)}


VERBS = sorted(module for module in MODULES if module.startswith("quantkit.cli."))
BESIDE = ("quantkit.cli", "quantkit.errors", "quantkit.progress")
"""What a verb may import beside the public interface."""


@pytest.mark.parametrize("module", VERBS)
def test_a_verb_calls_the_public_interface_only(module: str) -> None:
    others = {other for other in neighbours(module) if not other.startswith(BESIDE)}
    assert others == set(), f"{module} imports {others}: call what stands in quantkit.__all__"
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.ImportFrom) and node.module == "quantkit":
            assert {alias.name for alias in node.names} - {"__version__"} <= set(quantkit.__all__)


PLUGINS = sorted(module for module in MODULES if module.count(".") > 1 and module.split(".")[1] in ROOMS)


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin_imports_no_other_plugin(module: str) -> None:
    room = module.split(".")[1]
    for other in neighbours(module):
        if other.split(".")[1] in ROOMS:
            shared = other.split(".")[2:3] and other.split(".")[2].startswith("_")
            assert other.split(".")[1] == room, f"{module} imports {other} of another room"
            assert shared or owner(other) == owner(module), f"{module} imports {other} of another plug-in"
        else:
            assert floor(other) < floor("quantkit.pipeline"), f"{module} imports {other}, which stands above plug-ins"


def test_no_module_imports_itself_through_others() -> None:
    """Late imports count: a cycle that only works because one end is imported inside a function is a cycle."""
    graph = {module: neighbours(module) for module in MODULES}
    while leaves := [module for module, others in graph.items() if not others & set(graph)]:
        for leaf in leaves:
            del graph[leaf]
    assert sorted(graph) == []


FOLDERS = sorted({path.parent for path in SOURCES})


@pytest.mark.parametrize("folder", FOLDERS, ids=shown)
def test_a_folder_is_read_at_a_glance(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=shown)
def test_a_folder_says_what_lives_there(folder: Path) -> None:
    assert ast.get_docstring(tree(folder / "__init__.py"))


def test_every_folder_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(module_of(folder / "__init__.py") for folder in FOLDERS)


def test_tests_mirror_the_tree() -> None:
    """A folder of tests is called after the folder that it tests, `support` and data aside."""
    rooms = {path.relative_to(ROOT).as_posix().removeprefix("quantkit/") for path in FOLDERS} | {"quantkit"}
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - {".", "support"} <= rooms


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
