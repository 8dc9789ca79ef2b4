"""The two golden models: what each looks like, and how it is trained.

`CALM` is trained to bear rounding, `UNTUNED` for perplexity alone, as models that people have are. Between them they
have the traps of real checkpoints, and where one has a trap the other has its opposite:

| | calm | untuned |
|---|---|---|
| head | tied, the config does not say so | its own matrix |
| `rope_theta` | missing: the family's default | written, and another |
| LongRoPE | one list of factors, for the whole context | long factors beyond 256 tokens, and a scale of cos and sin |
| heads times their size | `hidden_size` | twice that |
| hidden size over `dim_model_base` | a power of two | 8 / 3 |
| weights | two shards with an index | one file |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from golden.tokenizer import CONTROL_IDS, VOCAB_SIZE

HEAD_DIM = 64
CONTEXT = 1024
BOS, EOS = CONTROL_IDS["<s>"], CONTROL_IDS["</s>"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training.

    lr, embed_lr: peak learning rates of the matrices in the blocks, and of embedding, head and norms. calm_price: on
    how far log-probabilities move when inputs of matrices are disturbed (`restlessness` in `golden/train.py`).
    logit_price: on the variance of the logits.
    """

    name: str
    steps: int
    lr: float
    embed_lr: float
    calm_price: float = 0.0
    logit_price: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A golden model: its `config.json`, its training, and how many files its weights are written to.

    lengths: tokens per row of a batch; step n takes the n-th of them, in turn.
    """

    config: Mapping[str, Any]
    phases: tuple[Phase, ...]
    lengths: tuple[int, ...]
    shards: int


def rope_factors(last: float) -> list[float]:
    """Return LongRoPE factors that grow geometrically from 1 to `last`, one per rotary frequency."""
    count = HEAD_DIM // 2
    return [round(last ** (index / (count - 1)), 6) for index in range(count)]


CALM = Recipe(
    config={
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModel": "modeling_minicpm.MiniCPMForCausalLM",
            "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
        },
        "bos_token_id": BOS,
        "eos_token_id": [EOS, 2040],
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.1,
        "intermediate_size": 1024,
        "max_position_embeddings": CONTEXT,
        "model_type": "minicpm",
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": rope_factors(8.0),
            "short_factor": rope_factors(8.0),
            "original_max_position_embeddings": CONTEXT,
        },
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
        "scale_emb": 12,
        "dim_model_base": 64,
        "scale_depth": 1.4,
    },
    phases=(
        Phase("learn", 1500, lr=4e-3, embed_lr=1e-2, logit_price=0.1),
        Phase("calm", 400, lr=1.5e-3, embed_lr=4e-3, logit_price=0.1, calm_price=0.1),
    ),
    lengths=(512,),
    shards=2,
)
"""Like MiniCPM4-0.5B's, its config leaves out tie_word_embeddings, rope_theta and pad_token_id. Logits have a price,
without which those of unlikely tokens drift apart for nothing. Calm from the start, the model learns far less."""

UNTUNED = Recipe(
    config={
        **CALM.config,
        "head_dim": HEAD_DIM,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "rope_theta": 20000.0,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": rope_factors(12.0),
            "short_factor": rope_factors(2.0),
            "original_max_position_embeddings": CONTEXT // 4,
        },
        "tie_word_embeddings": False,
        "dim_model_base": 96,
    },
    phases=(Phase("learn", 3200, lr=4e-3, embed_lr=1e-2),),
    lengths=(256, 512, 256, 1024),
    shards=1,
)
"""Half of its rows end at the original context length, and learn the short factors; the others learn the long ones."""

GENERATION_CONFIG: Mapping[str, Any] = {
    "bos_token_id": BOS,
    "do_sample": True,
    "eos_token_id": [EOS, 2040],
    "temperature": 0.8,
    "top_p": 0.8,
}
