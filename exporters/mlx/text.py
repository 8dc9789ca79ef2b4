"""What mlx-lm does to text before it is ids, where that is not what the model was trained with."""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.models.checkpoint import Checkpoint
from quantkit.text.templates import read_templates
from quantkit.text.tokenizer_config import flag
from quantkit.text.tokenizer_files import CONFIG_FILE, read_object

BOS_VARIABLE = "bos_token"
"""By which a template writes the token that texts begin with."""


def chat_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """A line where chats begin with a token that mlx-lm does not put there: it encodes what a template makes as it is.

    Raises:
        MalformedFile: a file of the tokenizer that breaks the rules of its format.
    """
    template = read_templates(checkpoint.files).default
    begins = flag(read_object(checkpoint.files, CONFIG_FILE), "add_bos_token", default=False)
    if template is not None and begins and BOS_VARIABLE not in template:
        yield (
            "mlx_lm.generate and mlx_lm.server put no beginning-of-sequence token before a chat, which this tokenizer "
            "adds to every text; they do add it to a plain prompt (--ignore-chat-template)"
        )
