"""The config class that travels with a native MiniCPM, so that engines can load it under transformers 5.

transformers has no model type "minicpm". Engines that bring their own model code (vLLM) still ask it to parse
config.json, and find the class through `auto_map`. OpenBMB's own `configuration_minicpm.py` is not copied, because
code of a stranger's folder is never carried along; this one holds the config class only, no model code.
"""

from __future__ import annotations

CONFIG_CLASS_FILE = "configuration_minicpm.py"
AUTO_MAP = {"AutoConfig": "configuration_minicpm.MiniCPMConfig"}
"""What a native folder of ours says about code: the config class beside it."""

CONFIG_CLASS = '''\
"""The configuration of MiniCPM, for loaders that bring their own model code.

The defaults are the family's: embeddings are tied and rope_theta is 10000 where config.json says nothing.
Works with transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).
"""

from transformers import PretrainedConfig


class MiniCPMConfig(PretrainedConfig):
    model_type = "minicpm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        head_dim=None,
        hidden_act="silu",
        max_position_embeddings=2048,
        initializer_range=0.02,
        rms_norm_eps=1e-6,
        use_cache=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_parameters=None,
        attention_bias=False,
        attention_dropout=0.0,
        scale_emb=1,
        dim_model_base=1,
        scale_depth=1,
        mup_denominator=None,
        sparse_config=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.scale_emb = scale_emb
        self.dim_model_base = dim_model_base
        self.scale_depth = scale_depth
        self.mup_denominator = mup_denominator
        self.sparse_config = sparse_config
        scaling = dict(rope_parameters or rope_scaling or {})
        rope_theta = scaling.get("rope_theta", rope_theta)
        self.rope_theta = rope_theta
        if not hasattr(type(self), "rope_scaling"):  # transformers 5 makes it another name of rope_parameters
            self.rope_scaling = scaling or None
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        self.rope_parameters = {**scaling, "rope_type": kind, "rope_theta": rope_theta}
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
'''
"""Source of `configuration_minicpm.py`."""
