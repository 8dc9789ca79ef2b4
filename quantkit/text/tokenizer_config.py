"""tokenizer_config.json: what it says about encoding a text, and what of it nobody here follows.

Every key is followed, known to change no id, or told: none is silently ignored. Source: `PreTrainedTokenizerBase`,
`LlamaTokenizer` and `TokenizersBackend` of transformers 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.text.tokenizer_files import CONFIG_FILE, SPECIALS_FILE, TOKENIZER_FILE, Files, read_object, token_text

CLASSES = (
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "MiniCPMTokenizer",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "SentencePieceBackend",
    "TokenizersBackend",
)
"""Classes that do with `tokenizer.model` or tokenizer.json what is done here."""

FOLLOWED = ("add_bos_token", "add_eos_token", "added_tokens_decoder", "chat_template")
HARMLESS = (
    "additional_special_tokens",
    "backend",
    "device_map",
    "extra_special_tokens",
    "fast_tokenizer_files",
    "is_local",
    "local_files_only",
    "max_length",
    "model_input_names",
    "model_max_length",
    "model_specific_special_tokens",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "processor_class",
    "spaces_between_special_tokens",
    "special_tokens",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "transformers_version",
    "truncation_side",
    "truncation_strategy",
    "verbose",
)
"""Keys that change no id of a text; lists of special tokens are looked at elsewhere."""

_NEUTRAL: Mapping[str, tuple[tuple[object, ...], str]] = {
    "legacy": ((True, None), "text after a special token gets other ids in transformers than here and in llama.cpp"),
    "add_prefix_space": ((True, None), "transformers puts no space before a text, quantkit and llama.cpp do"),
    "add_dummy_prefix_space": ((True, None), "transformers puts no space before a text, quantkit and llama.cpp do"),
    "split_special_tokens": ((False, None), "special tokens in a text are found here, not split as the key asks"),
    "clean_up_tokenization_spaces": ((False, None), "it drops spaces when decoding, which quantkit does not"),
    "sp_model_kwargs": (({}, None), "SentencePiece is used without them"),
    "use_default_system_prompt": ((False, None), "no system prompt is added that the chat template does not have"),
    "add_eos_token": ((False, None), "transformers ends every text with the end token, quantkit's prompts do not"),
    "auto_map": (({}, None), "it names a tokenizer that is code, which is never run"),
    "trust_remote_code": ((False, None), "code is never run"),
    "from_slow": ((True, False, None), ""),
}
"""Key to the values that change nothing, and what any other value means."""

_BY_CLASS = ("legacy", "add_prefix_space", "add_eos_token")
"""Keys that matter as `quantkit.text.tokenizers.classes` has it where there is a tokenizer.json."""

_LOWERCASE = ("do_lower_case", "do_lowercase")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that changes the text before it is split; raises `UnsupportedModel`."""
    for key in _LOWERCASE:
        if config.get(key):
            raise UnsupportedModel(
                f"{CONFIG_FILE}: {key} {str(config[key])[:40]} is not supported",
                hint="remove the key if the model was trained without it",
            )


def config_notes(files: Files) -> Iterator[str]:
    """Lines about keys that are not followed, each by its name."""
    config = read_object(files, CONFIG_FILE)
    told_elsewhere = _BY_CLASS if TOKENIZER_FILE in files else ()
    for key, (values, meaning) in _NEUTRAL.items():
        if config.get(key) not in values and key not in told_elsewhere:
            yield f"{CONFIG_FILE}: {key} {str(config[key])[:60]} is not followed: {meaning}"
    for key in _LOWERCASE:
        if config.get(key):
            yield f"{CONFIG_FILE}: {key} {str(config[key])[:40]} is not followed; text cannot be encoded"
    kind = config.get("tokenizer_class")
    if kind is not None and kind not in CLASSES:
        yield f"{CONFIG_FILE}: tokenizer_class {str(kind)[:60]!r} is not known; rules of its own are not followed"
    known = {*FOLLOWED, *HARMLESS, *_NEUTRAL, *_LOWERCASE, "tokenizer_class"}
    unknown = [key for key in config if key not in known and not key.endswith("_token")]
    if unknown:
        yield f"{CONFIG_FILE}: keys that are not understood are left aside: {', '.join(unknown)[:120]}"


def flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """True or false; raises `MalformedFile` for anything else."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise MalformedFile(f"{CONFIG_FILE}: {key} must be true or false, is {str(value)[:80]!r}")
    return default if value is None else value


def named_token(files: Files, key: str) -> tuple[str, str] | None:
    """The text that `key` ("eos_token") names, and the file that says so: the config, else the map of specials.

    Raises:
        MalformedFile: neither a string nor an object with `content`.
    """
    for name in (CONFIG_FILE, SPECIALS_FILE):
        text = token_text(read_object(files, name).get(key), f"{name}: {key}")
        if text is not None:
            return text, name
    return None


def further_specials(files: Files) -> dict[str, str]:
    """Text to file of every token in the lists of special tokens, whatever the version of transformers calls them.

    Raises:
        MalformedFile: a list that holds something else.
    """
    found: dict[str, str] = {}
    for name in (CONFIG_FILE, SPECIALS_FILE):
        content = read_object(files, name)
        for key in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
            listed = content.get(key) or []
            values = list(listed.values()) if isinstance(listed, Mapping) else listed
            if not isinstance(values, list):
                raise MalformedFile(f"{name}: {key} must be a list, is {str(values)[:80]!r}")
            for value in values:
                text = token_text(value, f"{name}: {key}")
                if text is not None:
                    found.setdefault(text, name)
    return found
