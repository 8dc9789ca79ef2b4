"""Small tokenizers of every kind, as folders: byte-level ones trained here, SentencePiece's from the golden model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quantkit.calibration.own_text.prompts import bundled_text
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizers.splitting import SPLITTINGS, isolated
from quantkit.text.tokenizers.splitting import byte_level as byte_step
from tests.support.strings import STRINGS
from tests.support.tokenizer_folders import Files, changed, golden_files, opened

SIZE = 900
"""Ids of the models that the byte-level tokenizers are for; some are left unused."""
CHAT = ("<|im_start|>", "<|im_end|>", "<|tool_call|>", "<|fim_prefix|>")
SPECIALS = ("<unk>", "<s>", "</s>", *CHAT)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: Mapping[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "chat_template": TEMPLATE,
}
Edit = Callable[[dict[str, Any]], object]


@cache
def byte_level(cuts: Callable[[], Any], size: int = 800) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE that cuts text by `cuts`, trained on a few texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cuts()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = bundled_text()
    tokenizer.train_from_iterator([*STRINGS, text, text], trainer)
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    return value


def byte_level_files(cuts: Callable[[], Any], edit: Edit = lambda _: None, **config: Any) -> Files:
    """A folder's files around such a tokenizer.json, changed by `edit`."""
    value = json.loads(json.dumps(byte_level(cuts)))
    edit(value)
    return {
        "tokenizer.json": json.dumps(value, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps({**CONFIG, **config}).encode(),
    }


def steps(written: Sequence[Mapping[str, Any]]) -> Callable[[], Any]:
    """The library's pre-tokenizers for rules in tokenizer.json's own words."""

    def made() -> Any:
        return pre_tokenizers.Sequence([_step(step) for step in written])

    return made


def _step(step: Mapping[str, Any]) -> Any:
    if step["type"] == "ByteLevel":
        return pre_tokenizers.ByteLevel(add_prefix_space=step["add_prefix_space"], use_regex=step["use_regex"])
    if step["type"] == "Digits":
        return pre_tokenizers.Digits(individual_digits=step["individual_digits"])
    return pre_tokenizers.Split(Regex(step["pattern"]["Regex"]), step["behavior"].lower(), invert=step["invert"])


CUTS: Mapping[str, Callable[[], Any]] = {splitting.pre: steps(splitting.cuts) for splitting in SPLITTINGS}
"""llama.cpp's name to pre-tokenizers that cut so."""


def named(pre: str, edit: Edit = lambda _: None, **config: Any) -> Files:
    """A byte-level tokenizer of the kind that llama.cpp calls `pre`."""
    whole = next(splitting.whole_words for splitting in SPLITTINGS if splitting.pre == pre)

    def both(value: dict[str, Any]) -> None:
        value["model"]["ignore_merges"] = whole
        edit(value)

    return byte_level_files(CUTS[pre], both, **config)


def spaces(edit: Edit, **config: Any) -> Files:
    """The golden model's tokenizer.json alone, changed by `edit`."""
    files = changed(golden_files("tokenizer.json"), "tokenizer.json", edit)
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    return {**files, "tokenizer_config.json": json.dumps({**keys, **config}).encode()}


def metaspace(scheme: str, *, split: bool = False) -> Edit:
    """No normalizer, and spaces written by the rule Metaspace."""
    rule = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return lambda value: value.update(normalizer=None, pre_tokenizer=rule)


def with_flags(text: str, **flags: bool) -> Edit:
    """One added token that is looked for in another way."""

    def edit(value: dict[str, Any]) -> None:
        token = next(token for token in value["added_tokens"] if token["content"] == text)
        token.update(flags)

    return edit


def checkpoint_of(files: Mapping[str, bytes], **config: Any) -> Checkpoint:
    """A tiny Llama with these files, as a reader of folders completes it."""
    plain = {"scale_emb": None, "scale_depth": None, "dim_model_base": None}
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **plain}
    size = 2048 if b'"ByteLevel"' not in files["tokenizer.json"] else SIZE
    return opened(files, **{"vocab_size": size, "eos_token_id": [2], **llama, **config})


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
EXACT: Mapping[str, Callable[[], Files]] = {
    **{f"byte-level {pre}": lambda pre=pre: named(pre) for pre in CUTS},
    "byte-level, BOS and EOS": lambda: named("llama-bpe", around("<s>", "<|im_end|>")),
    "SentencePiece": lambda: spaces(lambda _: None),
    "SentencePiece, no space before": lambda: spaces(lambda v: v.update(normalizer=REPLACE)),
    "Metaspace never": lambda: spaces(metaspace("never")),
    "LlamaTokenizer without a prefix": lambda: spaces(
        lambda _: None, tokenizer_class="LlamaTokenizer", add_prefix_space=False
    ),
}
"""Kinds that llama.cpp splits exactly as transformers does."""
EDGES: Mapping[str, tuple[Callable[[], Files], str]] = {
    "Metaspace always": (lambda: spaces(metaspace("always")), "puts a space before a text"),
    "Metaspace first": (lambda: spaces(metaspace("first")), "puts a space before a text"),
    "LlamaTokenizer of transformers 5": (
        lambda: spaces(lambda _: None, tokenizer_class="LlamaTokenizer"),
        "none after a special token",
    ),
    "LlamaTokenizer, legacy": (
        lambda: spaces(lambda _: None, tokenizer_class="LlamaTokenizer", legacy=True),
        "only where there is none",
    ),
    "NFC": (lambda: named("qwen2", lambda v: v.update(normalizer={"type": "NFC"})), "the form NFC"),
    "Qwen2Tokenizer": (lambda: named("qwen2", tokenizer_class="Qwen2Tokenizer"), "the form NFC"),
}
"""Kinds that llama.cpp splits otherwise at the edges, and what is said of it."""
OTHERS: Mapping[str, Callable[[], Files]] = {
    "byte-level with a prefix": lambda: byte_level_files(
        lambda: pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    ),
    "byte-level, GPT2Tokenizer": lambda: named("smollm", tokenizer_class="GPT2Tokenizer"),
    "byte-level, LlamaTokenizer": lambda: named("llama-bpe", tokenizer_class="LlamaTokenizerFast"),
    "byte-level by words": lambda: byte_level_files(
        lambda: pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False, use_regex=True)])
    ),
    "byte-level by an expression of its own": lambda: byte_level_files(
        steps([isolated(r"\w+|[^\w\s]+|\s+"), byte_step(regex=False)])
    ),
    "byte-level, letters put together": lambda: named("gpt-2", lambda v: v.update(normalizer={"type": "NFKC"})),
    "Metaspace that cuts": lambda: spaces(metaspace("first", split=True)),
    "Metaspace that cuts always": lambda: spaces(metaspace("always", split=True)),
    "lower case": lambda: spaces(
        lambda v: v.update(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}, REPLACE]})
    ),
    "tokens that take spaces along": lambda: spaces(with_flags("<|im_end|>", lstrip=True, rstrip=True)),
    "byte-level tokens that take spaces along": lambda: named("gpt-2", with_flags("<|im_end|>", lstrip=True)),
    "tokens that are words": lambda: spaces(with_flags("<|im_end|>", single_word=True)),
    "tokens after the normalizer": lambda: spaces(with_flags("<|im_end|>", normalized=True, special=False)),
}
"""Kinds that llama.cpp cannot hold, or that it splits otherwise beside some tokens."""


def around(first: str, last: str | None = None) -> Edit:
    """Tokens before and after every text."""

    def edit(value: dict[str, Any]) -> None:
        ids = value["model"]["vocab"]
        names = [name for name in (first, last) if name is not None]
        tokens = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [tokens[0], {"Sequence": {"id": "A", "type_id": 0}}, *tokens[1:]],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names},
        }

    return edit
