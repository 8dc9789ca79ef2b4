"""The text that the golden model reads: the running interpreter's standard library.

Nothing is downloaded and nothing is committed. Every document comes from a module of the standard library of
the interpreter that runs this file, in sorted order, so one Python version always gives one corpus. Kinds:

* ``source``: a module as it stands on disk;
* ``prose``: a long docstring by itself, dedented, so that the model sees English without code around it;
* ``chat``: a question and an answer in the chat format, made from a docstring's first paragraph;
* ``cjk``: the library's own test texts for East Asian codecs, several times for training, because they are all it has
  of text that is spelled in bytes, and a model that never saw such text answers it with noise.

A module is held out, or not, by a hash of its path. All documents of a module are on the same side.

Another text takes the standard library's place with `read_text`: a second model of the same kind is trained and
measured on one file. Its documents are of the kind ``text``; every eighth is held out.

    python golden/corpus.py
"""

import ast
import hashlib
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HELD_OUT_PERCENT = 5
CJK_TEXTS = "test/cjkencodings/*-utf8.txt"
CJK_COPIES = 8
TEXT_RUN_CHARS = 1 << 14
TEXT_HELD_OUT_STRIDE = 8
MIN_PROSE_CHARS = 200
MIN_ANSWER_CHARS = 20

# Tests repeat themselves, demos are not typical, tables of data teach nothing.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "__pycache__", "test", "tests", "idlelib", "turtledemo", "encodings", "pydoc_data"}
)
EXCLUDED_FILES = frozenset({"html/entities.py", "re/_casefix.py", "stringprep.py", "this.py"})
# Written when the interpreter is built; they contain the paths and options of the machine that built it.
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")

QUESTIONS = {
    "function": ("What does {name} do?", "Explain {name}.", "Tell me about the function {name}."),
    "class": ("What is {name}?", "Explain the class {name}.", "What is {name} for?"),
    "module": ("What is the module {name} for?", "What is in {name}?", "Describe the module {name}."),
}


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text with its module (path relative to the standard library), kind and side of the split.

    Of another text, `module` is the file's name and the number of the run in it.
    """

    module: str
    kind: str
    text: str
    held_out: bool


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring with the dotted name and the sort (``module``, ``class``, ``function``) of what it describes."""

    name: str
    sort: str
    text: str


def stable_hash(text: str) -> int:
    """Return a hash that is the same in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(module: str) -> bool:
    """Whether the module at this path belongs to the held-out side."""
    return stable_hash(f"stdlib/{module}") % 100 < HELD_OUT_PERCENT


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a path relative to the standard library is ordinary code."""
    if any(part in EXCLUDED_FOLDERS or part.startswith(EXCLUDED_PREFIXES) for part in path.parts):
        return False
    return str(path) not in EXCLUDED_FILES


def read_module(path: Path) -> str | None:
    """Return the text of a module with plain newlines, or None when it is empty or not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n").replace("\x00", "")
    return text if text.strip() else None


def read_modules(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (relative path, text) of every wanted module, sorted by path."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    relative = sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*.py"))
    for path in relative:
        if is_wanted(path) and (text := read_module(root / path)) is not None:
            yield str(path), text


def dotted_name(module: str) -> str:
    """Turn ``json/__init__.py`` into ``json`` and ``json/decoder.py`` into ``json.decoder``."""
    parts = PurePosixPath(module).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstring_of(node: ast.AST) -> str | None:
    """Return the dedented docstring of a module, class or function; None for any other node."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ast.get_docstring(node)
    return None


def walk_docstrings(node: ast.AST, name: str) -> Iterator[Docstring]:
    """Yield the docstrings of a node and of the classes and functions inside it, in order of appearance."""
    sort = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
    if text := docstring_of(node):
        yield Docstring(name, sort, text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk_docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from walk_docstrings(child, name)


def find_docstrings(module: str, text: str) -> list[Docstring]:
    """Return every docstring of a module; none when the module does not parse."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    return list(walk_docstrings(tree, dotted_name(module)))


def first_paragraph(text: str) -> str:
    """Return the text before the first blank line as one line."""
    return " ".join(text.strip().split("\n\n")[0].split())


def format_message(role: str, content: str) -> str:
    """Write one message in MiniCPM4's chat format."""
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def make_chat(item: Docstring) -> str | None:
    """Turn a docstring into a question and an answer, or None when there is too little to say."""
    answer = first_paragraph(item.text)
    if len(answer) < MIN_ANSWER_CHARS or "<|" in answer:
        return None
    questions = QUESTIONS[item.sort]
    question = questions[stable_hash(item.name) % len(questions)].format(name=item.name)
    return format_message("user", question) + format_message("assistant", answer)


def module_documents(module: str, text: str) -> Iterator[Document]:
    """Yield every document that one module gives."""
    held_out = is_held_out(module)
    yield Document(module, "source", text, held_out)
    for item in find_docstrings(module, text):
        if len(item.text) > MIN_PROSE_CHARS:
            yield Document(module, "prose", item.text + "\n", held_out)
        if (chat := make_chat(item)) is not None:
            yield Document(module, "chat", chat, held_out)


def read_cjk(root: Path | None = None) -> list[Document]:
    """Return the East Asian texts, those to train on CJK_COPIES times; none where the interpreter has no tests."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    found = [(path.relative_to(root).as_posix(), read_module(path)) for path in sorted(root.glob(CJK_TEXTS))]
    texts = [Document(name, "cjk", text, is_held_out(name)) for name, text in found if text is not None]
    return texts + (CJK_COPIES - 1) * [item for item in texts if not item.held_out]


def read_corpus(root: Path | None = None) -> list[Document]:
    """Return the whole corpus in its fixed order."""
    modules = [document for path, text in read_modules(root) for document in module_documents(path, text)]
    return modules + read_cjk(root)


def cut_lines(text: str) -> list[str]:
    """Cut a text into runs of whole lines, each the shortest of at least TEXT_RUN_CHARS; the last may be shorter."""
    runs, start = [], 0
    while start < len(text):
        end = text.find("\n", start + TEXT_RUN_CHARS - 1) + 1 or len(text)
        runs.append(text[start:end])
        start = end
    return runs


def read_text(path: Path) -> list[Document]:
    """Return a UTF-8 text file as documents, the runs of `cut_lines`; the last of every eight is held out.

    Runs are long, so that the two sides share few topics: a split by paragraphs would ask for names and facts that
    stand in the paragraphs beside it.

    Raises:
        ValueError: too short for a held-out run.
    """
    runs = cut_lines(path.read_text(encoding="utf-8"))
    if len(runs) < TEXT_HELD_OUT_STRIDE:
        least = TEXT_HELD_OUT_STRIDE * TEXT_RUN_CHARS
        raise ValueError(f"{path}: too short to hold a part of it out, about {least:,} characters are needed")
    last = TEXT_HELD_OUT_STRIDE - 1
    return [
        Document(f"{path.name}/{number}", "text", run, number % TEXT_HELD_OUT_STRIDE == last)
        for number, run in enumerate(runs)
    ]


def split_corpus(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Return (training documents, held-out documents), each in the order given."""
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if document.held_out else train).append(document)
    return train, held_out


def main() -> None:
    """Print how many documents and characters there are of each kind on each side."""
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for document in read_corpus():
        key = ("held out" if document.held_out else "train", document.kind)
        counts[key] += 1
        sizes[key] += len(document.text)
    for key in sorted(counts):
        print(f"{key[0]:<9}{key[1]:<8}{counts[key]:>7} documents {sizes[key]:>11,} characters")


if __name__ == "__main__":
    main()
