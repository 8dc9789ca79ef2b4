"""The golden model's tokenizer: a small SentencePiece BPE with MiniCPM4's eight specials after its last piece.

`train_sentencepiece` learns 2040 pieces from the training side of the corpus. `write_tokenizer` puts the same
files into the checkpoint folder that MiniCPM4 has. `GoldenTokenizer` is the rule that all of them must agree on,
in a few lines: SentencePiece encodes each stretch of text between specials by itself, with its own dummy prefix.

The bytes of every file depend on the corpus only: one thread, fixed order, text and model kept in memory.

    python golden/tokenizer.py [--out golden/model]
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers.tokenization_utils_base import generate_merges

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden.corpus import read_corpus, split_corpus

PIECES = 2040
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIALS = (
    "<|im_end|>",
    "<|im_start|>",
    "<|tool_call|>",
    "<|execute_start|>",
    "<|execute_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
)
SPECIAL_IDS = {text: PIECES + index for index, text in enumerate(SPECIALS)}
CONTROL_IDS = {UNK: 0, BOS: 1, EOS: 2}
ALL_SPECIAL_IDS = {**CONTROL_IDS, **SPECIAL_IDS}
VOCAB_SIZE = PIECES + len(SPECIALS)
IM_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# MiniCPM4 itself says "LlamaTokenizer". With that, transformers 5 ignores the normaliser in `tokenizer.json` and
# leaves out the dummy prefix of a segment that begins with a space, unlike SentencePiece (and llama.cpp). With
# this class it takes the file as it stands.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"

# Every printable ASCII character is a piece; Chinese and the rest of Unicode go through the 256 byte pieces.
REQUIRED_CHARS = "".join(map(chr, range(33, 127))) + "\n"


class GoldenTokenizer:
    """Text to token ids and back, from a `tokenizer.model` and the eight specials."""

    def __init__(self, model: bytes) -> None:
        """Read a serialised SentencePiece model."""
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.splitter = re.compile("(" + "|".join(map(re.escape, ALL_SPECIAL_IDS)) + ")")

    @classmethod
    def from_folder(cls, folder: Path) -> "GoldenTokenizer":
        """Read `tokenizer.model` from a checkpoint folder."""
        return cls((folder / "tokenizer.model").read_bytes())

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the ids of `text`; specials inside it are recognised."""
        ids = [CONTROL_IDS[BOS]] if bos else []
        for part in self.splitter.split(text):
            if part in ALL_SPECIAL_IDS:
                ids.append(ALL_SPECIAL_IDS[part])
            elif part:
                ids.extend(self.pieces.encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; specials are written out, BOS and EOS are not."""
        names = {index: text for text, index in SPECIAL_IDS.items()}
        out: list[str] = []
        run: list[int] = []
        for index in [*ids, -1]:
            if 0 <= index < PIECES:
                run.append(index)
                continue
            out.append(self.pieces.decode(run))
            out.append(names.get(index, ""))
            run = []
        return "".join(out)


def train_sentencepiece(texts: Iterable[str]) -> bytes:
    """Train the BPE model and return it serialised."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=writer,
        model_type="bpe",
        vocab_size=PIECES,
        unk_id=CONTROL_IDS[UNK],
        bos_id=CONTROL_IDS[BOS],
        eos_id=CONTROL_IDS[EOS],
        pad_id=-1,
        byte_fallback=True,
        character_coverage=0.9995,
        required_chars=REQUIRED_CHARS,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        max_sentence_length=1 << 24,
        minloglevel=1,
    )
    return writer.getvalue()


def added_token(text: str) -> AddedToken:
    """Return a special token that is matched as it stands: no stripping, no normalisation."""
    return AddedToken(text, lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)


def convert_to_fast(model: bytes) -> Tokenizer:
    """Turn a SentencePiece model into a `tokenizers.Tokenizer` by transformers' rules for a legacy Llama tokenizer.

    The merges come from transformers' own `generate_merges`. The normaliser puts ▁ before every segment between
    specials and turns spaces into ▁; there is no pre-tokeniser; the post-processor adds BOS. These are the parts
    that `transformers.convert_slow_tokenizer.LlamaConverter` would make, which itself needs protobuf.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    bpe = BPE(vocab, generate_merges(vocab), unk_token=UNK, fuse_unk=True, byte_fallback=True)
    fast = Tokenizer(bpe)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    fast.add_special_tokens([added_token(text) for text in ALL_SPECIAL_IDS])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, CONTROL_IDS[BOS])]
    )
    return fast


def token_entry(text: str) -> dict[str, Any]:
    """Describe a special token as transformers' JSON files do."""
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def tokenizer_config() -> dict[str, Any]:
    """Return `tokenizer_config.json`, key for key that of MiniCPM4."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(index): {**token_entry(text), "special": True} for text, index in ALL_SPECIAL_IDS.items()
        },
        "additional_special_tokens": list(SPECIALS),
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": TOKENIZER_CLASS,
        "unk_token": UNK,
        "use_default_system_prompt": False,
    }


def special_tokens_map() -> dict[str, Any]:
    """Return `special_tokens_map.json`."""
    return {
        "additional_special_tokens": [token_entry(text) for text in SPECIALS],
        "bos_token": token_entry(BOS),
        "eos_token": token_entry(IM_END),
        "unk_token": token_entry(UNK),
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON the way transformers does: two spaces, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(model: bytes, folder: Path) -> None:
    """Write all tokenizer files of a MiniCPM4 checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    write_json(folder / "added_tokens.json", SPECIAL_IDS)
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "special_tokens_map.json", special_tokens_map())
    text = convert_to_fast(model).to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer on the training side of the corpus and write its files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="checkpoint folder")
    options = parser.parse_args()
    train, held_out = split_corpus(read_corpus())
    model = train_sentencepiece(document.text for document in train if document.kind == "source")
    write_tokenizer(model, options.out)
    tokenizer = GoldenTokenizer(model)
    sources = [document.text for document in held_out if document.kind == "source"]
    tokens = sum(len(tokenizer.encode(text, bos=False)) for text in sources)
    ratio = sum(map(len, sources)) / tokens
    print(f"{VOCAB_SIZE} tokens, {ratio:.3f} characters per token on held-out source")


if __name__ == "__main__":
    main()
