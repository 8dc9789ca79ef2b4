"""Command lines, right and wrong, as a stranger types them: exit code, one line, a hint that leads somewhere, JSON.

Each is run as it stands, and once more with `--json --quiet`. A hint is followed: the page that it names is opened,
the path that it gives is there, options in it exist, and a line that is mended as it says is understood.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from quantkit.cli.app import VERBS, app, main

OUT = "OUT"
"""Stands for a new name in every command."""
HUB = "hub/models--openbmb--MiniCPM4-0.5B"
PARAGRAPH = "The lamp was lit before the ferry came, and nobody on the quay could say who had lit it.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """A line that somebody types.

    says: words on stdout of one that is right, in the error of one that is wrong. hint: words in it. mended: what the
    line is after the hint was followed. warns: words on stderr beside the result. json: whether it has a result to give
    as JSON. folder: where it is typed. stdin: what is piped in.
    """

    line: str
    code: int = 0
    says: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    mended: str | None = None
    warns: tuple[str, ...] = ()
    json: bool = True
    folder: str = "."
    stdin: str | None = None


def right(line: str, *says: str, **more: Any) -> Try:
    return Try(line=line, says=says, **more)


def wrong(line: str, *says: str, hint: str | tuple[str, ...] = (), **more: Any) -> Try:
    return Try(line=line, code=2, says=says, hint=(hint,) if isinstance(hint, str) else hint, **more)


RIGHT = [
    right("", "Usage: quantkit", json=False),
    right("--help", "inspect", "quantize", "formats", json=False),
    right("quantize --help", "--method", "--quiet", "--json", json=False),
    right("--version", "quantkit 0", json=False),
    right("--completion bash", "complete -o default -F _quantkit_completion quantkit", json=False),
    right("--completion ZSH", "#compdef quantkit", json=False),
    right("formats", "gguf", "q4_k_m", "llama-cpp", "minicpm"),
    right("inspect model", "minicpm", "2,491,648", "bits per weight", "tied embeddings    no"),
    right("inspect model/", "minicpm"),
    right("inspect .", "minicpm", folder="model"),
    right("inspect model --tensors", "model.layers.1.mlp.down_proj.weight"),
    right("inspect model --debug", "minicpm"),
    right("inspect int4", "made by rtn", "error of 14 layers: median", "int4 g128 sym"),
    right("inspect int4.gguf", "made with quantkit", "error of 16 layers"),
    right("plan model --method rtn --to gguf:q4_0", "q4_0", "peak memory", "llama-cpp"),
    right("plan model --method RTN --to GGUF:Q4_0,Compressed_Tensors", "q4_0", "pack-quantized"),
    right("plan model --to ALL", "refused", "iq4_xs", "hint: quantize it first"),
    right(f"quantize model --method rtn --out {OUT}", "error of 14 layers: median", "the worst 5", "loads in"),
    right(f"quantize model --method RTN --bits 8 --out {OUT} -q", "int8 g128 sym"),
    right("quantize ../model --method rtn --out . --quiet", "14 layers by rtn", folder="empty"),
    right("quantize model --method rtn --out mine --overwrite", "14 layers by rtn"),
    right(
        f"quantize model --samples 2 --length 32 --calibration short.txt --only-files --out {OUT}",
        "14 layers by gptq",
        warns=("warning: the calibration text is too short",),
    ),
    right(f"export gguf int4 --out {OUT}.gguf", "bits per weight", "llama-cpp"),
    right(f"export GGUF model --type BF16 --out {OUT}.gguf", "16."),
    right(
        f"export gguf int3 --out {OUT}.gguf", "bits per weight", warns=("int3 g128 sym are stored as q4_0, in 4 bits",)
    ),
    right(f"export gptq int4 --type V1 --out {OUT}", "vllm"),
    right(f"export hf model --arch LLAMA --type f32 --out {OUT}", "transformers"),
    right("verify int4 --against model --engine NONE", "files and numbers verified"),
    right("verify int4.gguf --golden model.golden --engine Reference --prompts 1", "predictions: the reference"),
    right('run int4 -p "def f(x):" --max-tokens 4 --engine reference'),
    right("run model --prompt - --max-tokens 4 --engine reference", stdin="def f(x):\n"),
    right("eval int4 --against model --text long.txt --samples 1 --length 32", "int4"),
    right(f"report int4 --against model --engine NONE --out {OUT}.html", "the page"),
    right(f"imatrix model --text long.txt --length 32 --chunks 1 --out {OUT}.gguf"),
    right("bench int4 --engine reference --prompt-tokens 4 --decode-tokens 2 --rounds 1", "prompt tokens/s"),
]
WRONG = [
    wrong("quantise model", "quantise", hint="did you mean quantize?"),
    wrong("INSPECT model", "INSPECT", hint="did you mean inspect?", mended="inspect model"),
    wrong("help", "help", hint="quantkit --help"),
    wrong("--verbos", "--verbos", hint="did you mean --version?", mended="--version"),
    wrong("--completion tcsh", "tcsh", hint="bash, zsh, fish"),
    wrong("inspect", "path", hint="quantkit inspect --help"),
    wrong("inspect model extra", "extra", hint="quantkit inspect --help"),
    wrong("inspect modle", "modle does not exist", hint="did you mean model?", mended="inspect model"),
    wrong("inspect model/config.json", "one file of a model's folder", hint="give the folder: model"),
    wrong("inspect model/tokenizer.model", "one file of a model's folder", hint="give the folder: model"),
    wrong("inspect openbmb/MiniCPM4-0.5B", "does not exist", hint="hf download openbmb/MiniCPM4-0.5B --local-dir"),
    wrong(f"inspect {HUB}", "Hub's cache", hint=f"give its snapshot: {HUB}/snapshots/0123456789"),
    wrong("formats --jsn", "--jsn", hint="did you mean --json?", mended="formats --json"),
    wrong("plan model", "--to", hint="quantkit plan --help"),
    wrong("plan model --to ggfu", "ggfu", hint="did you mean gguf?", mended="plan model --to gguf"),
    wrong("plan model --to gguf:q4_9", "q4_9", hint=("did you mean q4_", "types of gguf: f32, f16")),
    wrong("quantize", "model", hint="quantkit quantize --help"),
    wrong("quantize model", "--out", hint="quantkit quantize --help"),
    wrong("quantize model --out", "--out", hint="quantkit quantize --help", json=False),
    wrong("quantize model --out --json", "--out needs a name", hint="--out ./--json"),
    wrong(
        f"quantize model --out {OUT} --methd rtn",
        "no option --methd",
        hint=("did you mean --method?", "quantkit quantize --help"),
        mended=f"quantize model --out {OUT} --method rtn",
    ),
    wrong(f"quantize model --out {OUT} --method rnt", "'rnt'", hint="did you mean rtn?"),
    wrong(f"quantize model --out {OUT} --method rtn --arch lama", "'lama'", hint="did you mean llama?"),
    wrong(f"quantize model --out {OUT} --method rtn --bits four", "--bits", hint="quantkit quantize --help"),
    wrong(f"quantize model --out {OUT} --method rtn --bits 9", "--bits", hint="quantkit quantize --help"),
    wrong(f"quantize model --out {OUT} --method rtn --scale-dtype fp16", "fp16"),
    wrong(f"quantize model --out {OUT} --calibration nothing.txt", "nothing.txt is missing"),
    wrong(f"quantize model --out {OUT} --text short.txt", "--text is for training", hint="--recover"),
    wrong(f"quantize int4 --out {OUT}", "quantized already", hint="the original"),
    wrong("quantize model --method rtn --out taken", "already exists", hint="--overwrite"),
    wrong("quantize model --method rtn --out taken --overwrite", "not written by quantkit", hint="another name"),
    wrong("quantize ../model --method rtn --out .", "already exists", hint="--overwrite", folder="taken"),
    wrong("export guff model --out x", "'guff'", hint="did you mean gguf?"),
    wrong("export model gguf --out x", "'model' is no format", hint="export gguf model"),
    wrong("export gguf model --out nowhere/x.gguf", "nowhere does not exist", hint="create the folder"),
    wrong("export gguf model --out thesis.txt --overwrite", "thesis.txt was not written by quantkit", hint="remove it"),
    wrong("export gguf int4 --type q8 --out x", "'q8'", hint="did you mean q8_0?"),
    wrong("export awq model --out x", "awq holds integer weights", hint="quantize it first"),
    wrong("verify nothing --golden model.golden", "nothing does not exist"),
    wrong("verify int4", "nothing to compare with", hint=("--golden FILE", "--against MODEL")),
    wrong("verify int4 --golden model", "is a folder", hint="--against model"),
    wrong("verify int4 --golden nothing.golden", "nothing.golden"),
    wrong("verify int4 --against model --engine refrence", "'refrence'", hint="did you mean reference?"),
    wrong("run int4", "--prompt", hint="quantkit run --help"),
    wrong("run int4 -p x --temperature hot", "--temperature", hint="quantkit run --help"),
    wrong("run int4 -p x --quite", "--quite", hint="did you mean --quiet?"),
    wrong("run thesis.txt -p x", "not a model", hint="readable: awq"),
    wrong("bench int4 --engine warp", "'warp'", hint="choose one of: auto"),
    wrong("eval int4 --text long.txt", "--against", hint="quantkit eval --help"),
    wrong("report int4 --out x", "nothing to compare with", hint=("--golden FILE", "--against MODEL")),
    wrong("report int4 --against model --engine NOBODY --out x", "'NOBODY'", hint="choose one of: auto"),
    wrong("imatrix model --out x", "--text", hint="quantkit imatrix --help"),
    wrong("golden nothing --out x", "nothing does not exist"),
    wrong("eval int4 --against model", "--text", hint="quantkit eval --help"),
    wrong("eval int4 --against model --text nothing.txt", "nothing.txt"),
    wrong("report int4 --golden nothing.golden --out x.html", "nothing.golden"),
    wrong(f"imatrix model --text nothing.txt --out {OUT}.gguf", "nothing.txt"),
]
FAILED = [
    Try(line="verify int3 --against int4 --engine none", code=1, says=("FAIL", "FAILED at")),
    Try(line="verify damaged.gguf --golden model.golden --engine none", code=1, says=("FAIL files", "damaged.gguf")),
]
TRIES = [*RIGHT, *WRONG, *FAILED]


def test_there_are_sixty() -> None:
    assert len(TRIES) >= 60
    assert {shlex.split(one.line)[0] for one in WRONG if one.line.split()[:1]} >= set(VERBS) - {"demo"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, untuned_model: Path) -> Path:
    """A folder as people have it: a model, what was made of it, and files of their own."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(untuned_model, folder / "model")
    for words in (
        "quantize model --method rtn --out int4",
        "quantize model --method rtn --bits 3 --out int3",
        "export gguf int4 --out int4.gguf",
        "golden model --out model.golden",
    ):
        assert (
            main(
                [
                    str(folder / word) if (folder / word).exists() or "--out" in before else word
                    for before, word in zip(["", *words.split()], words.split(), strict=False)
                ]
            )
            == 0
        )
    shutil.copytree(folder / "int4", folder / "mine")
    for suffix in ("", ".quantkit.json"):
        shutil.copy(folder / f"int4.gguf{suffix}", folder / f"damaged.gguf{suffix}")
    data = bytearray((folder / "damaged.gguf").read_bytes())
    data[-100] ^= 1
    (folder / "damaged.gguf").write_bytes(bytes(data))
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.tex").write_text("years of work")
    (folder / "thesis.txt").write_text("years of work")
    (folder / "short.txt").write_text(PARAGRAPH)
    (folder / "long.txt").write_text(PARAGRAPH * 40)
    for part in ("blobs", "refs", "snapshots/0123456789"):
        (folder / HUB / part).mkdir(parents=True)
    return folder


@pytest.fixture
def typed(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Type a line: exit code, stdout and stderr. What it was to write is taken away afterwards."""
    made: list[Path] = []

    def type_in(line: str, *more: str, folder: str = ".", stdin: str | None = None) -> tuple[int, str, str]:
        place = world / folder
        if folder == "empty":
            place = world / f"empty-{len(made)}"
            place.mkdir()
            made.append(place)
        monkeypatch.chdir(place)
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        name = f"out-{len(made)}"
        made.append(world / name)
        capsys.readouterr()
        code = main([*shlex.split(line.replace(OUT, name)), *more])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    yield type_in
    for place in made:
        for path in (place, *place.parent.glob(f"{place.name}.*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("one", TRIES, ids=lambda one: one.line or "nothing")
def test_a_line_says_what_it_must(one: Try, typed: Any, world: Path) -> None:
    code, out, err = typed(one.line, folder=one.folder, stdin=one.stdin)
    assert code == one.code, err
    assert "Traceback" not in err
    assert "internal error" not in err
    if code == 2 and (not out.strip() or "--json" in one.line):
        hint = checked_error(err, one)
        assert_leads_somewhere(hint, world, typed)
        if one.mended is not None:
            assert typed(one.mended, folder=one.folder)[0] == 0
    else:
        assert "error: " not in err
        for word in one.says:
            assert word in out, f"{word!r} is not in {out!r}"
    for word in one.warns:
        assert word in err, f"{word!r} is not in {err!r}"
    assert all(line.isprintable() for line in (out + err).splitlines())


def checked_error(err: str, one: Try) -> str:
    """The hint of the only error, which is one line."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert all(line.startswith(("error: ", "note: ")) for line in err.splitlines()), err
    message, _, hint = lines[0].partition(" (hint: ")
    for word in one.says:
        assert word in message, f"{word!r} is not in {message!r}"
    for word in one.hint:
        assert word in hint, f"{word!r} is not in {hint!r}"
    assert one.hint or not hint, hint
    return hint.removesuffix(")")


def options() -> set[str]:
    """Every option that there is."""
    group: Any = typer.main.get_command(app)
    parameters = [each for command in (group, *group.commands.values()) for each in command.params]
    return {flag for each in parameters for flag in (*each.opts, *each.secondary_opts)} | {"--help", "--local-dir"}


def assert_leads_somewhere(hint: str, world: Path, typed: Any) -> None:
    page = re.search(r"quantkit ((?:\w+ )?--help)", hint)
    if page is not None:
        code, out, _ = typed(page[1])
        assert (code, out[:6]) == (0, "Usage:")
    assert set(re.findall(r"(?<!\S)--[a-z-]+", hint)) <= options()
    for place in re.findall(r"give (?:it|the folder|its snapshot): (\S+)", hint):
        assert (world / place).exists(), place


@pytest.mark.parametrize("one", [one for one in TRIES if one.json], ids=lambda one: one.line)
def test_the_same_line_with_json_gives_one_object(one: Try, typed: Any) -> None:
    code, out, err = typed(one.line, "--json", "--quiet", folder=one.folder, stdin=one.stdin)
    assert code == one.code, err
    assert all(line.startswith(("warning: ", "error: ")) for line in err.splitlines()), err
    assert bool(one.warns) >= ("warning: " in err)
    found = json.loads(out)
    assert isinstance(found, dict)
    assert_identifiers(found)
    if code == 2 and "error" in found:
        assert set(found) == {"error"}
        assert set(found["error"]) == {"kind", "message", "hint", "exit_code"}
        assert found["error"]["exit_code"] == 2
        line = f"error: {found['error']['message']}" + (f" (hint: {found['error']['hint']})" if one.hint else "")
        assert line in err
    if one.line.split()[0] in ("verify", "run", "bench") and code != 2:
        assert found["engine"] is None or found["engine"] in one.line.lower()


NAMED = {"tensors", "errors", "fallbacks", "left_out", "prompts", "worst", "found", "off_grid", "weights", "norms"}
NAMED |= {"divided", "sequences", "largest_move_in_steps", "largest_rounding", "files"}
"""Keys of objects whose own keys are names of tensors, prompts or texts."""


def assert_identifiers(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert key.isidentifier(), key
            if key not in NAMED:
                assert_identifiers(item)
    elif isinstance(value, list):
        for item in value:
            assert_identifiers(item)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_can_give_json_and_be_quiet(verb: str) -> None:
    group: Any = typer.main.get_command(app)
    flags = {flag for each in group.commands[verb].params for flag in each.opts}
    assert {"--json", "--quiet", "-q"} <= flags
