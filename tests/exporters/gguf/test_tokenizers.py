"""Every kind of tokenizer in a GGUF file: the ids of llama.cpp are those of the source, or it is said where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedSpec
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizer import Tokenizer, open_tokenizer
from quantkit.text.vocabulary import read_vocabulary
from tests.support.strings import STRINGS
from tests.support.tokenizer_folders import changed
from tests.support.tokenizer_kinds import EDGES, EXACT, OTHERS, SIZE, checkpoint_of, named, spaces, with_flags

EXPORTER = registry.exporter("gguf")


def written(source: Checkpoint, path: Path) -> tuple[Path, tuple[str, ...]]:
    """The file, and what the plan says of it."""
    planned = EXPORTER.prepare(source, ExportOptions(type="f16"))
    publish(planned, path, inputs=())
    return path, planned.notes


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text) + tokenizer.ending


def engine_ids(path: Path) -> list[list[int]]:
    with registry.runtime("llama-cpp").open(path) as session:
        return [session.tokenize(text, add_special=True, parse_special=True) for text in STRINGS]


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("kind", EXACT)
def test_llama_cpp_splits_as_the_source_and_so_does_what_is_read_back(kind: str, tmp_path: Path) -> None:
    source = checkpoint_of(EXACT[kind]())
    path, notes = written(source, tmp_path / "m.gguf")
    expected = [whole(open_tokenizer(source), text) for text in STRINGS]
    assert engine_ids(path) == expected
    back = EXPORTER.read(path)
    assert [whole(open_tokenizer(back), text) for text in STRINGS] == expected
    assert read_vocabulary(back) == read_vocabulary(source)
    assert not any("ids" in note for note in notes), notes


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("kind", EDGES)
def test_where_llama_cpp_splits_otherwise_it_is_said_and_nowhere_else(kind: str, tmp_path: Path) -> None:
    make, said = EDGES[kind]
    source = checkpoint_of(make())
    path, notes = written(source, tmp_path / "m.gguf")
    assert any(said in note for note in notes), notes
    tokenizer = open_tokenizer(source)
    pairs = zip(STRINGS, engine_ids(path), strict=True)
    odd = [text for text, ids in pairs if ids != whole(tokenizer, text)]
    assert odd
    for text in odd:
        after = any(tokenizer.is_special(index) for index in tokenizer.encode(text, add_bos=False))
        assert text.startswith((" ", "▁")) or after or "\u0301" in text, text


ALIASES = [("smollm", "exaone"), ("smollm", "refact"), ("qwen2", "kormo"), ("gpt-2", "phi-2")]


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(("pre", "alias"), ALIASES)
def test_other_names_of_a_cutting_rule_are_read_as_that_rule(pre: str, alias: str, tmp_path: Path) -> None:
    path, _ = written(checkpoint_of(named(pre)), tmp_path / "m.gguf")
    key = b"tokenizer.ggml.pre\x08\0\0\0" + len(pre).to_bytes(8, "little")
    data = path.read_bytes()
    assert key + pre.encode() in data
    path.write_bytes(data.replace(key + pre.encode(), key + alias.encode()))
    back = EXPORTER.read(path)
    assert read_vocabulary(back).pre == pre
    assert [whole(open_tokenizer(back), text) for text in STRINGS] == engine_ids(path)


UNABLE: dict[str, str] = {
    "byte-level with a prefix": "no name for the rule by which it cuts text: ByteLevel",
    "byte-level, GPT2Tokenizer": "",
    "byte-level by words": "no name for the rule by which it cuts text: Punctuation + ByteLevel",
    "byte-level by an expression of its own": r"no name for the rule by which it cuts text: Split",
    "byte-level, letters put together": "changes text by the rule 'NFKC'",
    "Metaspace that cuts": "cuts text at every space, but has the piece",
    "Metaspace that cuts always": "cuts text at every space, but has the piece",
    "lower case": "changes text by the rule 'Lowercase'",
}


@pytest.mark.parametrize("kind", [kind for kind, message in UNABLE.items() if message])
def test_what_llama_cpp_cannot_split_is_refused_by_name_and_other_containers_take_it(kind: str, tmp_path: Path) -> None:
    source = checkpoint_of(OTHERS[kind]())
    with pytest.raises(UnsupportedSpec, match="cannot hold the tokenizer") as refusal:
        EXPORTER.prepare(source, ExportOptions())
    assert UNABLE[kind] in str(refusal.value)
    assert "\n" not in str(refusal.value)
    planned = registry.exporter("hf").prepare(source, ExportOptions())
    publish(planned, tmp_path / "hf", inputs=())
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == source.files["tokenizer.json"]()


FLAGS = ("lstrip", "rstrip", "single_word")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("make", [spaces, lambda edit: named("gpt-2", edit)], ids=["SentencePiece", "byte-level"])
def test_how_a_token_is_looked_for_is_said_by_name(make: Any, flag: str) -> None:
    source = checkpoint_of(make(with_flags("<|im_end|>", **{flag: True})))
    notes = EXPORTER.prepare(source, ExportOptions()).notes
    assert any("'<|im_end|>'" in note and flag in note for note in notes), notes


def test_tokens_that_can_overlap_are_said_by_name() -> None:
    def edit(value: dict[str, Any]) -> None:
        last = value["added_tokens"][-1]
        value["added_tokens"] += [{**last, "id": 800, "content": "|>x"}]

    notes = EXPORTER.prepare(checkpoint_of(named("gpt-2", edit)), ExportOptions()).notes
    assert any("can overlap" in note and "<|im_start|>" in note for note in notes), notes


def test_ids_beyond_the_tokenizer_are_unused_and_tool_tags_are_written_out(tmp_path: Path) -> None:
    tags = ["<function", "</function>", "<param", "</param>"]

    def edit(value: dict[str, Any]) -> None:
        last = value["added_tokens"][-1]
        value["added_tokens"] += [{**last, "id": 800 + i, "content": tag} for i, tag in enumerate(tags)]

    path, notes = written(checkpoint_of(named("minicpm5", edit)), tmp_path / "m.gguf")
    gguf = read_gguf(path)
    kinds, tokens = gguf.metadata["tokenizer.ggml.token_type"], gguf.metadata["tokenizer.ggml.tokens"]
    assert gguf.metadata["tokenizer.ggml.pre"] == "minicpm5"
    assert tokens[800:804] == tags
    assert kinds[800:804].tolist() == [TokenKind.USER_DEFINED] * 4
    assert kinds[804:].tolist() == [TokenKind.UNUSED] * (SIZE - 804)
    assert tokens[804] == "[PAD804]"
    assert any("'</param>'" in note and "skip_special_tokens=False" in note for note in notes), notes
    tokenizer = open_tokenizer(EXPORTER.read(path))
    ids = tokenizer.encode('<function name="f"><param name="x">1</param></function><|im_end|>')
    assert tokenizer.decode(ids, specials=False) == '<function name="f"><param name="x">1</param></function>'


def test_merges_that_sentencepiece_would_not_make_are_refused() -> None:
    def edit(value: dict[str, Any]) -> None:
        del value["model"]["merges"][100]

    with pytest.raises(UnsupportedSpec, match=r"it does not join .* which SentencePiece does"):
        EXPORTER.prepare(checkpoint_of(spaces(edit)), ExportOptions())

    def swap(value: dict[str, Any]) -> None:
        merges = value["model"]["merges"]
        second = next(i for i in range(1, len(merges)) if "".join(merges[i]) == "".join(merges[i - 1]))
        merges.append(merges.pop(second))

    with pytest.raises(UnsupportedSpec, match="by merges that stand apart"):
        EXPORTER.prepare(checkpoint_of(spaces(swap)), ExportOptions())


def test_whole_words_first_changes_nothing_where_merges_make_every_word() -> None:
    vocabulary = read_vocabulary(
        checkpoint_of(changed(named("gpt-2"), "tokenizer.json", lambda v: v["model"].update(ignore_merges=True)))
    )
    assert vocabulary.obstacle is None

    def edit(value: dict[str, Any]) -> None:
        value["model"]["ignore_merges"] = True
        value["model"]["vocab"]["hello"] = 800

    assert "ignore_merges" in str(read_vocabulary(checkpoint_of(named("gpt-2", edit))).obstacle)
