"""Odd values of each type of JSON, and odd pieces of templates: what has broken parsers before."""

from __future__ import annotations

from random import Random
from typing import Any

RAW = "@@raw:"
"""Begins a string whose rest is written as it stands, without quotes: numbers that Python has not, deep nesting."""
TWIN = "@@twin"
"""Ends a key that is written without it, beside the key of that name."""

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63),
    *(2**64, 10**30, -(2**31), -(2**63), 0.0, 0.5, 1.0, -0.5, 1e-5, 1e-45, 5e-324, 1e-308, 1e30, 1e38, 1e300, -1e300),
    *(f"{RAW}NaN", f"{RAW}Infinity", f"{RAW}-Infinity", f"{RAW}1e999", f"{RAW}-0", f"{RAW}{'9' * 41}"),
    *(f"{RAW}{'9' * 5000}", f"{RAW}0.{'1' * 5000}", f"{RAW}1e-99999", f"{RAW}0x10", f"{RAW}+1", f"{RAW}01"),
)
STRINGS: tuple[str, ...] = (
    *("", " ", "\0", "\n", "\t", "a", "0", "1", "-1", "true", "null", "NaN", "<s>", "</s>", "<unk>", "<pad>", "auto"),
    *(
        "\u2581",
        "\u0120",
        "\u200b",
        "\u202e\u2066",
        "\ufeff",
        "\ufffd",
        "\uffff",
        "\U0001f600",
        "\U0010ffff",
        "e\u0301",
    ),
    *("\x1b[2J\x1b]0;title\x07", "\x7f\x9b31m", "../../etc/passwd", "/dev/zero", "C:\\x", "a/b", "..", "con.json"),
    *("float16", "bfloat16", "float8", "silu", "relu", "llama", "minicpm", "qwen2", "BPE", "Unigram", "WordPiece"),
    *("LlamaForCausalLM", "PreTrainedTokenizerFast", "longrope", "dynamic", "yarn", "linear", "ByteLevel", "Sequence"),
    *("(a+)+$", "\\p{L}+|(?!x)", "[[bold]]", "{{ x }}", "{% for i in range(9) %}", "<0x00>", "<0xZZ>", "model.x", "*"),
    *(f'{RAW}"\\ud800"', f'{RAW}"\\udc00\\ud800"', f'{RAW}"\\u0000"', f"{RAW}'single'", f"{RAW}undefined"),
)
LONG: tuple[Any, ...] = (
    "a" * 70_000,
    "\U0001f600" * 20_000,
    "\x1b" * 6_000,
    [0] * 20_000,
    ["a"] * 20_000,
    [[]] * 5_000,
    {str(i): i for i in range(5_000)},
    *(f"{RAW}{'[' * depth}{']' * depth}" for depth in (7, 17, 400, 5_000, 100_000)),
    *(f'{RAW}{{"a":{"[" * depth}{"]" * depth}}}' for depth in (6, 900)),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [None], [[]], [0], [-1], [1, 2], ["a"], [True], [{}], [1, "a", None, [2]], {"a": 1}),
    *({"": ""}, {"content": "<s>"}, {"content": None}, {"content": 5}, {"type": "Sequence"}, {"type": "ByteLevel"}),
    *({"type": "Replace", "pattern": {"Regex": "("}, "content": ""}, {"name": "default", "template": "x"}, {"id": -1}),
)
KEYS: tuple[str, ...] = (
    *("", " ", "\0", "a", "__proto__", "__class__", "__metadata__", "\u202e", "a" * 5_000, "\x1b[31m", "auto_map"),
    *("rope_scaling", "rope_theta", "head_dim", "vocab_size", "sliding_window", "quantization_config", "torch_dtype"),
    *("model", "vocab", "merges", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "chat_template"),
    *("eos_token_id", "eos_token", "bos_token", "additional_special_tokens", "added_tokens_decoder", "stop_strings"),
)
JINJA: tuple[str, ...] = (
    *("{{", "}}", "{%", "%}", "{#", "#}", "-%}", "{%-", "|", "(", ")", "[", "]", "'", '"', "\\", ".", "~", "**", "%"),
    *("for", "endfor", "if", "endif", "else", "elif", "set", "macro", "endmacro", "call", "block", "include", "import"),
    *("extends", "break", "continue", "generation", "endgeneration", "recursive", "loop", "loop.index0", "namespace()"),
    *("messages", "messages[0]", "messages * 9999", "message.content", "bos_token", "tools", "add_generation_prompt"),
    *("range(10**9)", "range(99999)", "'x' * 10**9", "'x' * 99999", "10 ** 10 ** 8", "'%99999999d' % 1", "none", "x"),
    *("raise_exception('\x1b[2J' * 999)", "strftime_now('%' * 999)", "''.__class__.__mro__", "self._TemplateReference"),
    *("cycler", "lipsum(9999)", "dict(a=1)", "|tojson(indent=9**9)", "|join", "|map('x')", "|list", "|center(10**9)"),
    *("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ '\ud83d' }}", "\0"),
    *(
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ messages.append(messages) }}",
        "{% set x = [1] * 10**9 %}",
    ),
)


def odd_value(random: Random) -> Any:
    """A value of any type; one in twelve is long or deep."""
    pool = random.choices((NUMBERS, STRINGS, OTHERS, LONG), (5, 4, 3, 1))[0]
    return random.choice(pool)
