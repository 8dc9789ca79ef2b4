"""The prompts of a golden file: short ones for each way a model is used, one token, and one long one.

Between them they reach what conversions break: byte fallback, special tokens, a position far from the start, and the
first position, which attends to itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec
from quantkit.text.tokenizer import Tokenizer, find_tokenizer

LONG_TOKENS = 512
DRAWN = "the prompts are token ids drawn at random; what text does in the model, and tokenizers, are not compared"

CODE = '''\
class Stack:
    """A last-in, first-out container."""

    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        self._items.append(item)

    def pop(self):
        if not self._items:
            raise IndexError("pop from an empty stack")
        return self._items.pop()
'''

ENGLISH = """\
The lighthouse keeper wrote down the weather every evening. Most entries were short: wind from the west, a calm sea,
two ships before dusk. Once a month he added a sentence about the birds, and in the winter of the great storm he wrote
nothing for nine days.
"""

CHINESE = """\
春天来了，河边的柳树发出了新芽。孩子们在草地上放风筝，老人坐在长椅上下棋。远处的山还留着一点雪，
但是风已经不冷了。
"""

QUESTION = "How do I read a text file line by line in Python?"

LONG = """\
def merge_sorted(left, right):
    \"\"\"Return one sorted list with the items of two sorted lists.\"\"\"
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


def merge_sort(items):
    \"\"\"Sort a list by splitting it, sorting both halves and merging them.

    The sort is stable: items that compare equal keep their order. It takes time proportional to n log n.
    \"\"\"
    if len(items) < 2:
        return list(items)
    middle = len(items) // 2
    return merge_sorted(merge_sort(items[:middle]), merge_sort(items[middle:]))


The function above splits its input until single items are left, which are sorted by nature. What remains is to put
sorted lists together, and that is easy: compare the two first items, take the smaller one, and repeat. Every level of
the recursion touches each item once, and there are as many levels as the length can be halved.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and the token ids that it became; `name` is unique within a golden file.

    The text is empty where the ids were drawn at random, because the model's tokenizer cannot be read.
    """

    name: str
    text: str
    token_ids: tuple[int, ...]


def prompts_for(model: Checkpoint, spec: ModelSpec) -> tuple[list[Prompt], str | None]:
    """The prompts for a model or what was made of it (`spec`), and a note where they are no texts, or the chat is none.

    model: whose tokenizer is used. Raises what `find_tokenizer` raises.
    """
    tokenizer = find_tokenizer(model)
    if isinstance(tokenizer, str):
        return drawn_prompts(spec), f"{tokenizer}: {DRAWN}"
    prompts, failure = _prompts_and_failure(tokenizer, spec.max_position_embeddings)
    return prompts, None if failure is None else f"{failure}; the chat prompt is plain text"


def drawn_prompts(spec: ModelSpec) -> list[Prompt]:
    """Prompts for a model without a tokenizer: token ids drawn at random, the same ones every time.

    They reach every part of the model, but not the states that text brings about.
    """
    longest = max(1, spec.max_position_embeddings - 1)
    draw = np.random.default_rng(0)
    first = () if spec.bos_token_id is None else (spec.bos_token_id,)
    prompts = []
    for name, length in {"drawn 1": 64, "drawn 2": 128, "drawn 3": 192, "one token": 1, "long": LONG_TOKENS}.items():
        ids = (*first, *map(int, draw.integers(spec.vocab_size, size=length)))
        prompts.append(Prompt(name, "", ids[: min(length, longest)]))
    return prompts


def default_prompts(tokenizer: Tokenizer, *, max_tokens: int) -> list[Prompt]:
    """The bundled prompts as `tokenizer` reads them.

    Each stays one token below `max_tokens`, the model's context, because engines keep room for the token to come. The
    chat turn is left out where the model has no chat template, and plain text where its template fails; a template that
    asks for the date is told a fixed one, see `ChatOptions`. The long prompt repeats until it is long enough.
    """
    return _prompts_and_failure(tokenizer, max_tokens)[0]


def _prompts_and_failure(tokenizer: Tokenizer, max_tokens: int) -> tuple[list[Prompt], str | None]:
    """`default_prompts`, and why the chat prompt is plain text; None where it is a chat turn, or left out."""
    longest = max(1, max_tokens - 1)
    texts, failure = {"code": CODE, "english": ENGLISH, "chinese": CHINESE}, None
    if tokenizer.has_chat_template:
        texts["chat"], failure = _chat_turn(tokenizer)
    prompts = [Prompt(name, text, tuple(tokenizer.encode(text)[:longest])) for name, text in texts.items()]
    prompts.append(Prompt("one token", CODE, tuple(tokenizer.encode(CODE)[:1])))
    long = tokenizer.beginning + list(islice(cycle(tokenizer.encode(LONG, add_bos=False)), LONG_TOKENS))
    return [*prompts, Prompt("long", LONG, tuple(long[: min(LONG_TOKENS, longest)]))], failure


def _chat_turn(tokenizer: Tokenizer) -> tuple[str, str | None]:
    """The question as a user's turn; as it is, and why, where the chat template fails."""
    try:
        text = tokenizer.chat([{"role": "user", "content": QUESTION}])
    except MalformedFile as failure:
        return QUESTION, str(failure)
    return (text, None) if text else (QUESTION, "the chat template writes nothing")
