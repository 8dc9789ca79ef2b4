"""tokenizer.json in the words of llama.cpp: which of its two tokenizers splits as the file does, and what is lost.

    llama   SentencePiece: joins the two neighbours whose whole has the highest score, falls back to bytes
    gpt2    byte-level BPE: cuts a text by a rule that has a name (`splitting.py`), joins by the order of merges

The scores of `llama` are made of the merges' order. That gives the same ids only where the file has every merge that
SentencePiece would try, all merges that make a piece beside each other; a file made from a SentencePiece model has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from quantkit.text.sentencepiece_model import WORD_BOUNDARY, joined_pairs
from quantkit.text.tokenizers.bytes_as_letters import BYTES
from quantkit.text.tokenizers.library import SoughtToken, TextSplitter
from quantkit.text.tokenizers.parsing import TokenizerJson
from quantkit.text.tokenizers.rules import SPACE_BEFORE, SPACES_MARKED, Step, TextRules, is_byte_level
from quantkit.text.tokenizers.splitting import splitting_of

SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"
BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, slots=True)
class Translation:
    """A tokenizer as llama.cpp has it.

    model: `SENTENCEPIECE` or `BYTE_LEVEL`. pre: the name of the cutting rule. add_space_prefix: a space is put before
    a text. metaspace: "always" or "first" where tokenizer.json puts that space only where there is none, or only
    before the first text; else empty. obstacle: why llama.cpp cannot split as the file does, or None.
    notes: where it splits otherwise at the edges, one line each.
    """

    model: str
    pre: str
    add_space_prefix: bool
    metaspace: str
    obstacle: str | None
    notes: tuple[str, ...]


def metaspace_scheme(rules: TextRules) -> str:
    """Where a Metaspace puts a space: "always" or "first"; empty where it puts none or there is no such rule."""
    schemes = [step["prepend_scheme"] for step in rules.cuts if step["type"] == "Metaspace"]
    return schemes[0] if schemes and schemes[0] != "never" else ""


def translated(rules: TextRules, tokenizer: TokenizerJson, sought: Sequence[SoughtToken]) -> Translation:
    """What llama.cpp can make of the rules."""
    notes, apart = tuple(_added_notes(rules, sought)), {token.text for token in sought}
    if is_byte_level(rules):
        pre, obstacle = _byte_level(rules, tokenizer, apart)
        return Translation(BYTE_LEVEL, pre, False, "", obstacle, (*notes, *_form_notes(rules)))
    scheme = metaspace_scheme(rules)
    return Translation(
        SENTENCEPIECE,
        "default",
        add_space_prefix=bool(scheme) or SPACE_BEFORE in rules.normalizers,
        metaspace=scheme,
        obstacle=_spaces_obstacle(rules) or _pieces_obstacle(rules, tokenizer, apart),
        notes=(*notes, *_form_notes(rules)),
    )


def _form_notes(rules: TextRules) -> Iterator[str]:
    for step in rules.normalizers:
        if step["type"] == "NFC":
            yield "the tokenizer puts text into the form NFC, llama.cpp does not: text in another form gets other ids"


def _added_notes(rules: TextRules, sought: Sequence[SoughtToken]) -> Iterator[str]:
    """Lines about added tokens that llama.cpp looks for otherwise."""
    for rule in ("lstrip", "rstrip", "single_word"):
        names = [token.text for token in sought if token.flags[rule]]
        if names:
            yield f"{_listed(names)} ask for {rule}, which llama.cpp lacks: text beside them gets other ids"
    names = [token.text for token in sought if token.flags["normalized"]]
    if names and any(step["type"] != "NFC" for step in rules.normalizers):
        yield f"{_listed(names)} are looked for after the normalizer (normalized), in llama.cpp before it"
    names = _overlapping([token.text for token in sought])
    if names:
        yield f"{_listed(names)} can overlap in a text: llama.cpp takes the longest first, transformers the first"


def _overlapping(texts: Sequence[str]) -> list[str]:
    """Texts that end as another one begins."""
    starts = {text[:size]: text for text in texts for size in range(1, len(text))}
    return [
        text
        for text in texts
        if any(text[place:] in starts and starts[text[place:]] != text for place in range(1, len(text)))
    ]


def _listed(names: Sequence[str]) -> str:
    return f"added tokens {', '.join(map(repr, names[:4]))}{' ...' if len(names) > 4 else ''}"


def _byte_level(rules: TextRules, tokenizer: TokenizerJson, apart: Set[str]) -> tuple[str, str | None]:
    """llama.cpp's name for the cutting rule, and why it does not serve."""
    for step in rules.normalizers:
        if step["type"] != "NFC":
            return "", f"it changes text by the rule {step['type']!r}"
    if rules.byte_fallback:
        return "", "it has byte-level pieces and falls back to bytes as well"
    lacking = [letter for letter in BYTES if letter not in tokenizer.ids]
    if lacking and rules.unk_token is not None:  # both leave out what is lacking, where there is no such token
        return "", f"it has {rules.unk_token!r} for the {len(lacking)} of 256 bytes that it lacks"
    found = splitting_of(rules.cuts)
    if not found:
        return "", f"llama.cpp has no name for the rule by which it cuts text: {_shown(rules.cuts)}"
    same = [splitting for splitting in found if splitting.whole_words == rules.ignore_merges]
    if same or _merges_make_every_piece(tokenizer, apart):
        return (same or list(found))[0].pre, None
    return "", (
        f"its ignore_merges is {str(rules.ignore_merges).lower()}, which llama.cpp does not have for its way of "
        "cutting text, and some of its pieces are not made by its merges"
    )


def _shown(cuts: Sequence[Step]) -> str:
    names = [
        f"{step['type']} {next(iter(step['pattern'].values()))[:40]!r}" if step["type"] == "Split" else step["type"]
        for step in cuts
    ]
    return " + ".join(names) or "none"


def _merges_make_every_piece(tokenizer: TokenizerJson, apart: Set[str]) -> bool:
    """Whether merging makes each piece of its own letters, tokens `apart` aside.

    If so, taking whole words first changes nothing.
    """
    plain = TextRules((), (), None, False, False, False, (), ())
    pieces = [piece for piece in tokenizer.ids if piece not in apart and all(letter in BYTES for letter in piece)]
    made = TextSplitter(plain, tokenizer.ids, merge_pairs(tokenizer), ()).words(pieces)
    return all(ids == [tokenizer.ids[piece]] for piece, ids in zip(pieces, made, strict=True))


def merge_pairs(tokenizer: TokenizerJson) -> list[tuple[str, str]]:
    """The merges as pairs of pieces, in their order."""
    names = {index: piece for piece, index in tokenizer.ids.items()}
    return [(names[left], names[right]) for left, right in tokenizer.merges[:, :2].tolist()]


def _spaces_obstacle(rules: TextRules) -> str | None:
    """Why SentencePiece does not write spaces as the rules do."""
    steps = [step for step in rules.normalizers if step["type"] != "NFC"]
    for step in steps:
        if step not in (SPACES_MARKED, SPACE_BEFORE):
            return f"it changes text by the rule {step['type']!r}"
    for step in rules.cuts:
        if step["type"] != "Metaspace" or step["replacement"] != WORD_BOUNDARY:
            return f"llama.cpp has no name for the rule by which it cuts text: {_shown(rules.cuts)}"
    marked = SPACES_MARKED in steps or bool(rules.cuts)
    prefixes = steps.count(SPACE_BEFORE) + bool(metaspace_scheme(rules))
    if not marked or prefixes > 1 or len(rules.cuts) > 1 or (SPACE_BEFORE in steps and steps[0] != SPACE_BEFORE):
        return "it writes spaces otherwise than SentencePiece"
    return None


def _pieces_obstacle(rules: TextRules, tokenizer: TokenizerJson, apart: Set[str]) -> str | None:
    """Why SentencePiece does not join pieces as the merges do; `apart`: tokens that are looked for before."""
    lacking = sorted(piece for piece in BYTE_PIECES if piece not in tokenizer.ids)
    if not rules.byte_fallback or lacking:
        return "it does not fall back to bytes" if not rules.byte_fallback else f"it lacks the byte {lacking[0]}"
    if rules.ignore_merges:
        return "it takes whole words before any merge (ignore_merges), which SentencePiece does not"
    names = {index: piece for piece, index in tokenizer.ids.items()}
    if any(step.get("split") for step in rules.cuts):
        crossing = next((names[i] for i in tokenizer.merges[:, 2].tolist() if WORD_BOUNDARY in names[i][1:]), None)
        if crossing is not None:
            return f"it cuts text at every space, but has the piece {crossing!r}"
    ranks = first_ranks(tokenizer)
    order = np.array([ranks[whole] for whole in tokenizer.merges[:, 2].tolist()], np.int64)
    late = np.flatnonzero(np.diff(order) < 0)
    if late.size:
        whole = names[int(tokenizer.merges[late[0] + 1, 2])]
        return f"it makes the piece {whole!r} by merges that stand apart, which SentencePiece's scores cannot say"
    known = set(map(tuple, tokenizer.merges[:, :2].tolist()))
    ordinary = {piece: i for piece, i in tokenizer.ids.items() if piece not in BYTE_PIECES and piece not in apart}
    pair = next((pair for pair in joined_pairs(ordinary, ordinary) if pair not in known), None)
    if pair is not None:
        return f"it does not join {names[pair[0]]!r} and {names[pair[1]]!r}, which SentencePiece does"
    return None


def first_ranks(tokenizer: TokenizerJson) -> dict[int, int]:
    """Id of each piece that merges make to the place of the first merge that makes it."""
    ranks: dict[int, int] = {}
    for rank, whole in enumerate(tokenizer.merges[:, 2].tolist()):
        ranks.setdefault(whole, rank)
    return ranks
