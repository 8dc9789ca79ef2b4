"""The files beside the weights: which travel with a model, and which stay behind and are named."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

TEMPLATE_FOLDER = "additional_chat_templates"
CODE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py")
"""Pickles and programs, which are never opened."""

_SMALL_FILES = ("added_tokens.json", "chat_template.json", "generation_config.json", "special_tokens_map.json")
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
_LEGAL = ("license", "licence", "notice", "copying")
_LEGAL_SUFFIXES = (".txt", ".md", ".rst")
_MOST_NAMED = 4000
"""Characters of names in the note of what is left behind; nobody reads more."""


def travels(name: str) -> bool:
    """Whether a small file goes with the model: tokenizer, templates, generation defaults, licences; never code."""
    tokenizer = name.startswith("tokenizer") and name.endswith(_TOKENIZER_SUFFIXES)
    return tokenizer or name.endswith(".jinja") or name in _SMALL_FILES or is_legal(name)


def is_legal(name: str) -> bool:
    """Whether a file is a licence or a notice: LICENSE, NOTICE.txt, COPYING.md, License-MiniCPM ..."""
    lower = name.casefold()
    return lower.startswith(_LEGAL) and (lower.endswith(_LEGAL_SUFFIXES) or "." not in lower)


def left_behind(others: Sequence[str], unread: Sequence[str]) -> str | None:
    """One line that names every file that is not taken along: `others`, and `unread` code and pickles."""
    names = [*others, *(f"{name} ({'code' if name.endswith('.py') else 'a pickle'}, never read)" for name in unread)]
    if not names:
        return None
    shown = [name for name, end in zip(names, accumulate(map(len, names)), strict=True) if end <= _MOST_NAMED]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"left behind: {', '.join(shown)}{more}"
