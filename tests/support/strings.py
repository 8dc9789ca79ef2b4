"""Two hundred strings that tokenizers disagree about: spaces, control characters, scripts, emoji, special tokens."""

from __future__ import annotations

from itertools import product

_WORDS = [
    "def",
    "class Foo:",
    "return None",
    "the",
    "The",
    "x",
    "数学",
    "你好，世界",
    "naïve",
    "Ω",
    "🙂",
    "👩‍👩‍👧",
    "ﷺ",
    "ｆｕｌｌ",
]
_SPACES = ["", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", " \n ", "\t\t "]
_SPECIALS = ["<|im_end|>", "<|im_start|>", "<|tool_call|>", "<|fim_prefix|>", "<s>", "</s>", "<unk>"]
_CODE = [
    "import json\n\nprint(json.dumps({'a': [1, 2.5, None]}, indent=4))\n",
    "for i in range(10):\n        if i % 2 == 0:\n            continue\n",
    "x = 0xDEADBEEF ^ 1_000_000 >> 3  # comment",
    "lambda *args, **kwargs: (yield)",
    "@dataclass(frozen=True)\nclass A:\n    x: int = 3\n",
    "\\begin{equation} a^2 + b^2 = c^2 \\end{equation}",
    "SELECT * FROM t WHERE a <> 'b' AND c IS NOT NULL;",
    "0123456789 3.14159 1e-10 -42",
    "path/to/file.txt?query=1&other=%20#frag",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
]
_CONTROL = [chr(code) for code in [*range(1, 32), 127, 0x80, 0x9F, 0x200B, 0x200D, 0x2028, 0xFEFF, 0xFFFD]]

STRINGS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *(space + word for space, word in product(_SPACES, _WORDS[:8])),
            *(word + space + word for space, word in product(_SPACES[1:6], _WORDS[4:])),
            *_CODE,
            *(f"a{control}b" for control in _CONTROL),
            *(
                f"{left}{special}{right}"
                for special in _SPECIALS
                for left, right in [("", ""), ("a ", " b"), (" ", "\n")]
            ),
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|> <|im_end|>  text",
            "▁",
            "▁▁a",
            " ▁ ",
            "a" * 300,
            " " * 40,
        ]
    )
)
