"""Text to token ids and back, for checkpoints with a SentencePiece `tokenizer.model`.

Special tokens are looked for in the text first, longest first; each segment between them is encoded by SentencePiece
by itself, with its own dummy prefix. That is what transformers' legacy LlamaTokenizer and llama.cpp do.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

from quantkit.errors import BadOption, MalformedFile, MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.added_tokens import WORD_BOUNDARY
from quantkit.text.chat_template import PLAIN_CHAT, ChatOptions, Messages, chat_variables, chosen_template, render
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizer_files import MODEL_FILE
from quantkit.text.vocabulary import Vocabulary, read_vocabulary

SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""What a chat template may name."""
_SPECIAL_KINDS = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that travels with a checkpoint.

    Raises:
        MissingDependency: sentencepiece is not installed.
        MalformedFile: SentencePiece refuses the model.
        Everything that `read_vocabulary` raises.
    """
    return Tokenizer(read_vocabulary(checkpoint), checkpoint.files[MODEL_FILE]())


class Tokenizer:
    """A vocabulary and the SentencePiece model that splits text into its pieces."""

    def __init__(self, vocabulary: Vocabulary, model: bytes) -> None:
        try:
            from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - part of an extra
        except ImportError:
            raise MissingDependency("tokenizing needs sentencepiece", hint="pip install 'quantkit[text]'") from None
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise MalformedFile(f"{MODEL_FILE}: SentencePiece refuses it: {str(error).splitlines()[0]}") from None
        self.vocabulary = vocabulary
        pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        self._specials = {text: i for i, (text, kind) in enumerate(pairs) if text and kind in _SPECIAL_KINDS}
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    @property
    def beginning(self) -> list[int]:
        """What every text begins with: BOS, or nothing."""
        bos = self.vocabulary.bos_token_id
        return [bos] if self.vocabulary.add_bos and bos is not None else []

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can work."""
        return self.vocabulary.chat_template is not None

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Token ids of `text`, special tokens in it recognised; with the model's `beginning` unless told otherwise.

        Raises:
            BadOption: half of a surrogate pair, as from bytes that are not UTF-8.
        """
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadOption("the text is not valid Unicode", hint="give the text in UTF-8")
        ids = self.beginning if add_bos else []
        for segment in self._splitter.split(text) if self._splitter else [text]:
            if segment in self._specials:
                ids.append(self._specials[segment])
            elif segment:
                ids.extend(self._pieces.encode(segment))
        return ids

    def decode(self, ids: Iterable[int], *, specials: bool = True) -> str:
        """The text of `ids`: decode(encode(text, add_bos=False)) == text. `specials`: write special tokens out.

        Bytes that are no UTF-8 become U+FFFD. Raises `BadOption` for an id outside the vocabulary.
        """
        decoder = StreamDecoder(self, specials=specials)
        return "".join(map(decoder.push, ids)) + decoder.finish()

    def is_special(self, token_id: int) -> bool:
        """Whether a token stands for itself in a text, outside SentencePiece's pieces."""
        return self.vocabulary.kinds[token_id] in _SPECIAL_KINDS

    def bytes_of(self, token_id: int) -> bytes:
        """What a token contributes to the text, in UTF-8 or as a part of it; nothing for an unused id."""
        if not 0 <= token_id < len(self.vocabulary.tokens):
            raise BadOption(f"token {token_id} is not in the vocabulary of {len(self.vocabulary.tokens)}")
        token, kind = self.vocabulary.tokens[token_id], self.vocabulary.kinds[token_id]
        if kind is TokenKind.BYTE:
            return bytes([int(token[3:5], 16)])  # <0xAB>
        if kind is TokenKind.UNUSED:
            return b""
        return (token.replace(WORD_BOUNDARY, " ") if kind is TokenKind.NORMAL else token).encode()

    def chat(self, messages: Messages, add_generation_prompt: bool = True, options: ChatOptions = PLAIN_CHAT) -> str:
        """A conversation as the text that the model was trained on; see `chats`."""
        return self.chats([messages], add_generation_prompt=add_generation_prompt, options=options)[0]

    def chats(
        self, conversations: Sequence[Messages], *, add_generation_prompt: bool, options: ChatOptions = PLAIN_CHAT
    ) -> list[str]:
        """Many conversations, rendered in one go as transformers does; without the BOS that `encode` adds.

        Raises:
            BadOption: the model has no chat template, or none of that name.
            MalformedFile, MissingDependency: see `quantkit.text.chat_template.render`.
        """
        vocabulary = self.vocabulary
        template = chosen_template(vocabulary.chat_template, dict(vocabulary.named_templates), options)
        specials = {
            name: vocabulary.tokens[i] for name in SPECIALS if (i := getattr(vocabulary, f"{name}_id")) is not None
        }
        variables = [
            chat_variables(messages, options, specials=specials, add_generation_prompt=add_generation_prompt)
            for messages in conversations
        ]
        bos = "".join(vocabulary.tokens[index] for index in self.beginning)
        return [text.removeprefix(bos) for text in render(template, variables, now=options.now)]


class StreamDecoder:
    """Turns token ids into text as they come; a character is given out when its last byte is there.

    tokenizer: whose ids they are. prompt: ids before the first one; what they end with decides whether the space
    that SentencePiece puts before a text is taken away. specials: write special tokens out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, specials: bool = False) -> None:
        self._tokenizer = tokenizer
        self._specials = specials
        self._at_start = not prompt or tokenizer.is_special(prompt[-1])
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete with this token, maybe none; raises `BadOption` for an unknown id."""
        data = self._tokenizer.bytes_of(token_id)
        if self._tokenizer.is_special(token_id):
            self._at_start = True
            return self._utf8.decode(data if self._specials else b"")
        if self._at_start and data:
            self._at_start = False
            if self._tokenizer.vocabulary.add_space_prefix:
                data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD when the last character is incomplete."""
        return self._utf8.decode(b"", final=True)
