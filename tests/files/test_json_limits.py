"""JSON that is small as a file and large in memory is refused before it is parsed; real files are not."""

from __future__ import annotations

import json
import time

import pytest

from quantkit.errors import MalformedFile
from quantkit.files import json_file
from quantkit.files.json_file import parse_json
from quantkit.files.safetensors_header import parse_header

BOMBS = {
    "empty arrays": lambda: b'{"a": [' + b"[]," * 600_000 + b"0]}",
    "empty objects": lambda: b'{"a": [' + b"{}," * 400_000 + b"0]}",
    "objects in objects": lambda: b'{"a": [' + b'{"a":{"a":{"a":1}}},' * 70_000 + b"0]}",
    "digits": lambda: b'{"a": [' + b"1," * 1_200_000 + b"0]}",
    "one-letter strings": lambda: b'{"a": [' + b'"x",' * 600_000 + b"0]}",
    "pairs of strings": lambda: b'{"a": [' + b'["ab","cd"],' * 210_000 + b"0]}",
    "one wide letter in a long text": lambda: '{"a": "\U0001f600'.encode() + b"a" * 6_000_000 + b'"}',
    "nothing but brackets": lambda: b'{"a":' + b"[" * 900_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_without_the_memory_that_it_asks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(json, "loads", parsed)
    monkeypatch.setattr(json_file, "MAX_MEMORY", json_file.MAX_MEMORY // 10)
    data = BOMBS[name]()
    start = time.process_time()
    with pytest.raises(MalformedFile, match=r"config\.json would take about [\d,]+ MB of memory .*limit is 45 MB"):
        parse_json(data, "config.json")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("piece", ["a{b", "x,y:z[", '\\"', "\\\\", '\\\\\\"', "\u65e5,{"])
def test_what_stands_in_strings_is_text_and_not_structure(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "MAX_MEMORY", 20_000_000)
    monkeypatch.setattr(json_file, "_WINDOW", 1000)
    text = '{"a": ["' + '",  "'.join([piece * 1000] * 200) + '"]}'
    assert len(parse_json(text.encode(), "x")["a"]) == 200


def test_the_estimate_does_not_depend_on_where_windows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps({f'k\\"{i}\\': ['"', "\\", '\\"', i, [{}]] for i in range(50)}).encode()
    costs = set()
    for window in (*range(1, 40), 1 << 20):
        monkeypatch.setattr(json_file, "_WINDOW", window)
        costs.add(json_file._structure_cost(data))
    assert len(costs) == 1


def test_a_tokenizer_of_262144_pieces_and_520000_merges_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of such a file within a tenth of the limit, and the whole within the estimate."""
    monkeypatch.setattr(json_file, "MAX_MEMORY", json_file.MAX_MEMORY // 10)
    ends = ("\u00e9", "\u65e5\u672c", "\u672c\u65e5")
    vocab = {f"tok{i}{ends[i % 3]}": i for i in range(26_214)} | {"\U0001f600": 26_214}
    merges = [[f"tok{i}", f"mer{i}"] for i in range(52_000)]
    text = json.dumps({"model": {"vocab": vocab, "merges": merges}}, ensure_ascii=False, indent=1)
    assert len(parse_json(text.encode(), "tokenizer.json")["model"]["merges"]) == 52_000


def test_a_header_of_100000_tensors_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of such a header within a fifth of the limit."""
    monkeypatch.setattr(json_file, "MAX_MEMORY", json_file.MAX_MEMORY // 5)
    header = {
        f"model.layers.{i // 300}.mlp.experts.{i % 300}.gate_proj.weight": {
            "dtype": "BF16",
            "shape": [2048, 7168],
            "data_offsets": [i * 29_360_128, (i + 1) * 29_360_128],
        }
        for i in range(20_000)
    }
    assert len(parse_header(json.dumps(header).encode(), "x", 20_000 * 29_360_128)) == 20_000


@pytest.mark.parametrize(
    "text",
    [
        r'{"a": "\ud800"}',
        r'{"a": "\udc00"}',
        r'{"a": "\ud800\\\udc00"}',
        r'{"a": "\udc00\ud800"}',
        r'{"a": "\ud800\ud800\udc00"}',
        r'{"a": "\uD83D\uDE00\uDE00"}',
        r'{"\ud800": 1}',
    ],
)
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(MalformedFile, match="half of a surrogate pair"):
        parse_json(text.encode(), "x")


@pytest.mark.parametrize("string", [r"\ud83d\ude00", r"\\ud800", r"\\\\udc00", r"\uD7FF", r"\\\ud83d\ude00"])
def test_pairs_and_escaped_backslashes_are_not_halves(string: str) -> None:
    text = f'{{"a": "{string}"}}'
    assert parse_json(text.encode(), "x") == json.loads(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_are_named(encoding: str) -> None:
    with pytest.raises(MalformedFile, match="UTF-16 or UTF-32; it must be UTF-8"):
        parse_json('{"a": 1}'.encode(encoding), "x")


@pytest.mark.parametrize(
    "number", ["9" * 41, "-" + "9" * 5000, "1e999", "-1e999", "0." + "1" * 500, "1" * 400 + ".5", "NaN", "-Infinity"]
)
def test_numbers_beyond_reason_are_refused(number: str) -> None:
    with pytest.raises(MalformedFile, match=r"^x: "):
        parse_json(f'{{"a": {number}}}'.encode(), "x")


def test_ten_thousand_objects_with_a_key_twice_are_refused_at_once() -> None:
    start = time.process_time()
    with pytest.raises(MalformedFile, match="'k' stands twice in 'a'"):
        parse_json(b'{"a": [' + b'{"k":1,"k":2},' * 100_000 + b"0]}", "x")
    assert time.process_time() - start < 2
