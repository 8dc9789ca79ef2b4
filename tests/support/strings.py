"""Five hundred strings that tokenizers disagree about: spaces, control characters, scripts, emoji, special tokens."""

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

_SCRIPTS = [
    "Привет, мир! Как дела?",
    "שלום עולם",
    "مرحبا بالعالم ١٢٣",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "こんにちは、世界。カタカナ",
    "안녕하세요 세계",
    "Ελληνικά ΚΕΦΑΛΑΊΑ",
    "Straße ẞ İstanbul ıx",
    "ﬁnd ﬂow Ⅻ ½ ² ③",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "漢字かな交じり文、全角１２３",
    "🇫🇷🇩🇪 👍🏽 ❤️ 🧑‍💻",
    "a\u0301e\u0301 n\u0303 o\u0302\u0323",
    "\u0301alone \u20dd",
    "x\u200by\u200cz\ufeff",
    "١٢٣٤٥٦ १२३४ ৭৮৯",
    "zero\u00adwidth\u2060join",
    "\u202eright\u202c left",
    "\U000e0041\U0010ffff",
]
_NUMBERS = [
    "7",
    "42",
    "123",
    "1234",
    "12345678901234567890",
    "3.14",
    "-1,234.56",
    "0x1F",
    "1e10",
    "٣٤",
    "²³",
    "1st 2nd",
]
_CONTRACTIONS = ["don't I'll we've they're it's I'd I'm", "DON'T I'LL WE'VE", "'s 't'd", "o'clock rock'n'roll", "’s ’t"]
_RUNS = [
    "\n\n\n\n",
    "\t\t\ta",
    " \n \n",
    "a \n\n b",
    "\r\n\r\nx",
    "x    ",
    "    x\n        y\n",
    "\u3000\u3000x",
    "\xa0 x",
    "\x85x",
]
_MARKS = [
    "!!!",
    "...",
    "—–-",
    "«quoted»",
    "(a)[b]{c}",
    "a/b/c",
    "#include <x.h>",
    "$x = @y;",
    "a||b&&c",
    "→←↑",
    "¿¡",
    "。、！？",
]
_FUNCTIONS = [
    "def parse(line: str) -> dict[str, int]:\n    return {k: int(v) for k, v in (p.split('=') for p in line)}\n",
    "if (x > 0) {\n\treturn x;\n} else {\n\treturn -x;\n}\n",
    'fn main() {\n    println!("{:?}", vec![1, 2, 3]);\n}\n',
    'public static void main(String[] args) { System.out.println("hi"); }',
    '<div class="a b">text &amp; more</div>',
    "git commit -m 'fix: naïve case' && git push --force-with-lease",
    "\\alpha \\sum_{i=0}^{n} x_i^2",
    "WHERE name LIKE '%foo%' ORDER BY 1 DESC",
    "```python\nprint('x')\n```\n",
    "def f():\n  pass\n\n\n\ndef g():\n  pass\n",
    "\tindented\n\t\tmore\n        mixed\n",
    "a=1;b=2\r\nc=3\r\n",
]

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
            *_SCRIPTS,
            *(f" {text}" for text in _SCRIPTS),
            *(f"{text}\n" for text in _SCRIPTS),
            *_NUMBERS,
            *(f"n={number}." for number in _NUMBERS),
            *(f"第{number}条" for number in _NUMBERS),
            *_CONTRACTIONS,
            *_RUNS,
            *(f"x{run}y" for run in _RUNS),
            *_MARKS,
            *(f"a {marks} b" for marks in _MARKS),
            *(f"{marks}\n" for marks in _MARKS),
            *_FUNCTIONS,
            *(
                f"{left}{special}{right}"
                for special in _SPECIALS
                for left, right in [("x", "y"), ("\n", ""), ("", "  z"), ("中", "文"), ("\t", " \t"), ("1", "2")]
            ),
            *(f"{one}{other}" for one, other in product(_SPECIALS[:3], repeat=2)),
            *(f"{word}{space}" for word, space in product(_WORDS[:4], _SPACES[1:6])),
            *(f"{first}{second}" for first, second in product(_WORDS[4:], _WORDS[4:8])),
            "a\x00b",
            "\x00",
            "\x00\x00 \x00",
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
