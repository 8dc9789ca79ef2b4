"""What a golden file holds of sparse attention, where it was recorded: a part of the header, and arrays.

Header, "sparse": `variant`, `config` (every number of `sparse_config`), `token_ids` and `positions` of the prompt,
`rounded` and `deviations` as in `SparseFacts`, `blocks`, how many the prompt has. Arrays, behind the logits of the
other prompts: float32 logits [P, V], float32 scores [layers, groups, P, blocks], uint8 chosen of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.files.safetensors_header import TensorEntry
from quantkit.files.source_file import SourceFile
from quantkit.models.spec import ModelSpec, SparseSpec
from quantkit.verification.sparse.choices import Choices
from quantkit.verification.sparse.facts import SparseFacts, SparsePrompt

KEY = "sparse"
LOGITS, SCORES, CHOSEN = np.dtype("<f4"), np.dtype("<f4"), np.dtype("u1")
MOST_TOKENS = 1 << 21


def to_header(facts: SparseFacts) -> dict[str, Any]:
    """The part of the header."""
    return {
        "variant": facts.variant,
        "config": asdict(facts.sparse),
        "token_ids": list(facts.prompt.token_ids),
        "positions": list(facts.prompt.positions),
        "rounded": facts.rounded.tolist(),
        "deviations": facts.deviations.tolist(),
        "blocks": facts.choices.scores.shape[-1],
    }


def arrays(header: Mapping[str, Any], spec: ModelSpec) -> tuple[TensorEntry, ...]:
    """The arrays that such a part of a header promises."""
    positions = len(header["positions"])
    choices = (spec.num_hidden_layers, spec.num_key_value_heads, positions, header["blocks"])
    return (
        TensorEntry("sparse logits", LOGITS, (positions, spec.vocab_size)),
        TensorEntry("sparse scores", SCORES, choices),
        TensorEntry("sparse choices", CHOSEN, choices),
    )


def produced(facts: SparseFacts) -> Iterator[bytes]:
    """The bytes of the arrays."""
    yield facts.logits.astype(LOGITS).tobytes()
    yield facts.choices.scores.astype(SCORES).tobytes()
    yield facts.choices.chosen.astype(CHOSEN).tobytes()


def checked(header: Mapping[str, Any], spec: ModelSpec, where: str) -> Mapping[str, Any] | None:
    """The part of a golden file's header, None where it has none.

    Raises:
        MalformedFile: it is damaged.
    """
    data = header.get(KEY)
    if data is None:
        return None
    try:
        ids, positions, blocks = data["token_ids"], data["positions"], data["blocks"]
        config = SparseSpec(**data["config"])
        sound = all(type(token) is int and 0 <= token < spec.vocab_size for token in ids)
        sound &= all(type(place) is int and 0 <= place < len(ids) for place in positions) and len(positions) > 0
        sound &= positions == sorted(set(positions)) and len(ids) <= MOST_TOKENS
        sound &= blocks == positions[-1] // config.block_size + 1 and type(data["variant"]) is str
        sound &= np.shape(data["rounded"]) == (len(positions),)
        sound &= np.shape(data["deviations"]) == (spec.num_hidden_layers, 2)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        sound = False
    if not sound:
        raise MalformedFile(f"{where}: what is recorded of sparse attention is damaged")
    found: Mapping[str, Any] = data
    return found


def read_facts(header: Mapping[str, Any], spec: ModelSpec, source: SourceFile, start: int) -> SparseFacts:
    """The facts whose arrays begin at `start`."""
    read = []
    for array in arrays(header, spec):
        data = source.read(start, array.nbytes)
        read.append(np.frombuffer(data.tobytes(), array.dtype).reshape(array.shape))
        start += array.nbytes
    logits, scores, chosen = read
    return SparseFacts(
        variant=header["variant"],
        sparse=SparseSpec(**header["config"]),
        prompt=SparsePrompt(tuple(header["token_ids"]), tuple(header["positions"])),
        logits=logits,
        rounded=np.array(header["rounded"], np.float64),
        deviations=np.array(header["deviations"], np.float64),
        choices=Choices(scores, chosen.astype(bool)),
    )
