"""Text to token ids and back.

Where tokenizer.json can be followed, the `tokenizers` library splits a text by it, as transformers does. Else, with a
SentencePiece `tokenizer.model` alone, special tokens are looked for in the text first, longest first, and each segment
between them is encoded by SentencePiece by itself, with its own dummy prefix, as transformers' legacy LlamaTokenizer
and llama.cpp do.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence

from quantkit.errors import BadOption, MalformedFile, MissingDependency, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.chat_template import PLAIN_CHAT, ChatOptions, Messages, chat_variables, chosen_template, render
from quantkit.text.sentencepiece_model import WORD_BOUNDARY, TokenKind
from quantkit.text.tokenizer_files import MODEL_FILE
from quantkit.text.tokenizers.bytes_as_letters import bytes_of_piece
from quantkit.text.tokenizers.pieces import read_pieces, splitter_of
from quantkit.text.tokenizers.translation import BYTE_LEVEL
from quantkit.text.vocabulary import Vocabulary, has_vocabulary, read_vocabulary, rules_beside

SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""What a chat template may name."""
LOG_ERRORS = 2
"""Of SentencePiece's levels: its warnings, which it writes to stderr itself, are left out."""
_SPECIAL_KINDS = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)
_HIDDEN_KINDS = (TokenKind.CONTROL, TokenKind.UNKNOWN)
"""Left out of what a model says."""


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that travels with a checkpoint.

    Raises:
        MissingDependency: the library that splits by the file that lies there is not installed.
        MalformedFile: SentencePiece refuses the model.
        Everything that `read_vocabulary` and `TextSplitter` raise.
    """
    vocabulary, files = read_vocabulary(checkpoint), checkpoint.files
    followed = MODEL_FILE not in files or rules_beside(files) is not None
    pieces = read_pieces(files, checkpoint.spec.vocab_size) if followed else None
    if pieces is None:
        return Tokenizer(vocabulary, _sentencepiece(vocabulary, files[MODEL_FILE]()))
    first = pieces.rules.first if vocabulary.add_bos else ()  # a config without a first token has the last word
    last = pieces.rules.last if vocabulary.add_eos else ()
    return Tokenizer(vocabulary, splitter_of(pieces).encode, first=first, last=last)


def find_tokenizer(checkpoint: Checkpoint) -> Tokenizer | str:
    """The tokenizer, or one line that says why there is none: for work that goes on with token ids.

    Raises:
        What `open_tokenizer` raises, but for a kind of tokenizer that is not supported.
    """
    if not has_vocabulary(checkpoint):
        return "the model has no tokenizer"
    try:
        return open_tokenizer(checkpoint)
    except UnsupportedModel as error:
        return f"the tokenizer cannot be read: {error}"


def _sentencepiece(vocabulary: Vocabulary, model: bytes) -> Callable[[str], list[int]]:
    """What splits a text by a SentencePiece model, special tokens first."""
    try:
        import sentencepiece  # noqa: PLC0415 - part of an extra
    except ImportError:
        raise MissingDependency("tokenizing needs sentencepiece", hint="pip install 'quantkit[text]'") from None
    sentencepiece.set_min_log_level(LOG_ERRORS)
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise MalformedFile(f"{MODEL_FILE}: SentencePiece refuses it: {str(error).splitlines()[0]}") from None
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    specials = {text: i for i, (text, kind) in enumerate(pairs) if text and kind in _SPECIAL_KINDS}
    longest_first = sorted(specials, key=len, reverse=True)
    splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for segment in splitter.split(text) if splitter else [text]:
            if segment in specials:
                ids.append(specials[segment])
            elif segment:
                ids.extend(pieces.encode(segment))
        return ids

    return encode


class Tokenizer:
    """A vocabulary, and what splits text into its pieces.

    split: text to ids, special tokens in it recognised. first, last: what tokenizer.json puts around a text; None where
    there is none, and the vocabulary says it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        split: Callable[[str], list[int]],
        *,
        first: Sequence[int] | None = None,
        last: Sequence[int] = (),
    ) -> None:
        self.vocabulary = vocabulary
        self._split = split
        bos = vocabulary.bos_token_id
        self._first = [bos] if vocabulary.add_bos and bos is not None else []
        if first is not None:
            self._first = list(first)
        self.ending = list(last)

    @property
    def beginning(self) -> list[int]:
        """What every text begins with: BOS, or nothing."""
        return [*self._first]

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
        return [*(self._first if add_bos else []), *self._split(text)]

    def decode(self, ids: Iterable[int], *, specials: bool = True) -> str:
        """The text of `ids`: decode(encode(text, add_bos=False)) == text. `specials`: write special tokens out.

        Bytes that are no UTF-8 become U+FFFD. Raises `BadOption` for an id outside the vocabulary.
        """
        decoder = StreamDecoder(self, specials=specials)
        return "".join(map(decoder.push, ids)) + decoder.finish()

    def is_special(self, token_id: int) -> bool:
        """Whether a token stands for itself in a text, outside the pieces."""
        return self.vocabulary.kinds[token_id] in _SPECIAL_KINDS

    def is_hidden(self, token_id: int) -> bool:
        """Whether a token is no part of what the model says; tags of tool calls are."""
        return self.vocabulary.kinds[token_id] in _HIDDEN_KINDS

    def bytes_of(self, token_id: int) -> bytes:
        """What a token contributes to the text, in UTF-8 or as a part of it; nothing for an unused id."""
        if not 0 <= token_id < len(self.vocabulary.tokens):
            raise BadOption(f"token {token_id} is not in the vocabulary of {len(self.vocabulary.tokens)}")
        token, kind = self.vocabulary.tokens[token_id], self.vocabulary.kinds[token_id]
        if kind is TokenKind.NORMAL and self.vocabulary.model == BYTE_LEVEL:
            return bytes_of_piece(token)
        if kind is TokenKind.BYTE:
            return bytes([int(token[3:5], 16)])  # <0xAB>
        if kind is TokenKind.UNUSED:
            return b""
        return (token.replace(WORD_BOUNDARY, " ") if kind is TokenKind.NORMAL else token).encode()

    def chat(self, messages: Messages, add_generation_prompt: bool = True, options: ChatOptions = PLAIN_CHAT) -> str:
        """A conversation as the text that the model was trained on; see `chats`."""
        return self.chats([messages], add_generation_prompt=add_generation_prompt, options=options)[0]

    def chats(
        self,
        conversations: Sequence[Messages],
        *,
        add_generation_prompt: bool,
        options: ChatOptions | Sequence[ChatOptions] = PLAIN_CHAT,
    ) -> list[str]:
        """Many conversations, rendered in one go as transformers does; without the BOS that `encode` adds.

        options: for all of them, or one for each; the template and the clock are those of the first.

        Raises:
            BadOption: the model has no chat template, or none of that name.
            MalformedFile, MissingDependency: see `quantkit.text.chat_template.render`.
        """
        each = [options] * len(conversations) if isinstance(options, ChatOptions) else options
        if not each:
            return []
        vocabulary = self.vocabulary
        template = chosen_template(vocabulary.chat_template, dict(vocabulary.named_templates), each[0])
        specials = {
            name: vocabulary.tokens[i] for name in SPECIALS if (i := getattr(vocabulary, f"{name}_id")) is not None
        }
        variables = [
            chat_variables(messages, given, specials=specials, add_generation_prompt=add_generation_prompt)
            for messages, given in zip(conversations, each, strict=True)
        ]
        bos = "".join(vocabulary.tokens[index] for index in self.beginning)
        return [text.removeprefix(bos) for text in render(template, variables, now=each[0].now)]


class StreamDecoder:
    """Turns token ids into text as they come; a character is given out when its last byte is there.

    tokenizer: whose ids they are. prompt: ids before the first one; what they end with decides whether the space
    that SentencePiece puts before a text is taken away. specials: write hidden tokens out, too.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, specials: bool = False) -> None:
        self._tokenizer = tokenizer
        self._specials = specials
        self._once = tokenizer.vocabulary.metaspace == "first"
        alone = self._once and list(prompt) == tokenizer.beginning
        self._at_start = not prompt or alone or (tokenizer.is_special(prompt[-1]) and not self._once)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete with this token, maybe none; raises `BadOption` for an unknown id."""
        data = self._tokenizer.bytes_of(token_id)
        if self._tokenizer.is_special(token_id):
            if not self._once or token_id not in self._tokenizer.beginning:
                self._at_start = not self._once
            return self._utf8.decode(data if self._specials or not self._tokenizer.is_hidden(token_id) else b"")
        if self._at_start and data:
            self._at_start = False
            if self._tokenizer.vocabulary.add_space_prefix:
                data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD when the last character is incomplete."""
        return self._utf8.decode(b"", final=True)
