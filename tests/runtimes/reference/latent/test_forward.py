"""Latent attention: the reference and the torch model against loops from the formulas, and transformers' own class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.models.architectures.minicpm3 import with_shared_eps
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.reference.session import ReferenceSession
from tests.support.latent_definition import FACTORS, TINY, latent_arrays, latent_logits, write_latent
from tests.support.memory import memory_checkpoint

SMALL = {
    **TINY,
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
    "rope_scaling": None,
}
IDS = np.random.default_rng(0).integers(0, 97, 24).tolist()
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "values of another width": {"v_head_dim": 12},
    "untied, plain rope": {"tie_word_embeddings": False, "rope_theta": 5e4},
    "short factors and long ones": {
        "max_position_embeddings": 16,
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": FACTORS[:4], "long_factor": FACTORS[4:8],
            "original_max_position_embeddings": 16,
        },
    },
}  # fmt: skip
CLOSE = 2e-6


def model(**changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], Checkpoint]:
    config = {**SMALL, **changes}
    arrays = latent_arrays(config, seed=3)
    return config, arrays, memory_checkpoint(config, arrays)


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_computes_the_formulas(variant: str) -> None:
    config, arrays, checkpoint = model(**VARIANTS[variant])
    ids = IDS[: config["max_position_embeddings"]]
    assert apart(ReferenceSession(checkpoint).logits(ids), latent_logits(config, arrays, ids)) < CLOSE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_torch_model_computes_them_at_once_and_step_by_step(variant: str) -> None:
    torch = pytest.importorskip("torch")
    from quantkit.models.loading import load_model  # noqa: PLC0415 - imports torch

    config, arrays, checkpoint = model(**VARIANTS[variant])
    ids = IDS[: config["max_position_embeddings"]]
    wanted = latent_logits(config, arrays, ids)
    network = load_model(checkpoint)
    assert apart(network(torch.tensor([ids]))[0].numpy(), wanted) < CLOSE
    cache = network.cache(1, len(ids))
    parts = [network.head(network.states(torch.tensor([part]), cache)) for part in (ids[:7], ids[7:8], ids[8:])]
    assert apart(torch.cat(parts, dim=1)[0].numpy(), wanted) < CLOSE


def test_tokens_are_decoded_as_they_are_read() -> None:
    _, _, checkpoint = model()
    whole = ReferenceSession(checkpoint).logits(IDS)
    session = ReferenceSession(checkpoint)
    for length in (1, 2, 17, 18, 24, 9):
        assert apart(session.next_logits(IDS[:length]), whole[length - 1]) < CLOSE


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_what_norms_of_latents_add_is_told_apart_by_measurement(eps: float) -> None:
    """The two epsilons that engines take move predictions by some hundred times what float32 does."""
    config, arrays, checkpoint = model()
    small = {name: values * (0.03 if "_a_proj" in name else 1) for name, values in arrays.items()}
    checkpoint = memory_checkpoint(config, small)
    spec = checkpoint.spec if eps == 1e-6 else with_shared_eps(checkpoint.spec)
    found = ReferenceSession(replace(checkpoint, spec=spec)).logits(IDS)
    other = 1.1e-5 - eps
    assert apart(found, latent_logits(config, small, IDS, norm_eps=eps)) < CLOSE
    assert apart(found, latent_logits(config, small, IDS, norm_eps=other)) > 100 * CLOSE


def test_transformers_own_class_is_a_second_witness(tmp_path: Path) -> None:
    """It adds 1e-6 in the norms of the latents: with the other epsilon the comparison fails (see above)."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "MiniCPM3ForCausalLM"):
        pytest.skip("this transformers has no class for MiniCPM3")
    from quantkit import registry  # noqa: PLC0415

    config = {**SMALL, "v_head_dim": 12, "rms_norm_eps": 1e-3}
    arrays = latent_arrays(config, seed=3)
    small = {name: (values * (0.03 if "_a_proj" in name else 1)).astype(np.float32) for name, values in arrays.items()}
    folder = write_latent(tmp_path / "m", config, arrays=small)
    with registry.runtime("transformers").open(folder) as session:
        theirs = session.logits(IDS)
    assert apart(theirs, latent_logits(config, small, IDS)) < CLOSE
    with registry.runtime("reference").open(folder) as session:
        assert apart(session.logits(IDS), theirs) < CLOSE


def test_every_group_of_layers_reads_what_its_layers_are_given() -> None:
    torch = pytest.importorskip("torch")
    from quantkit.models.loading import load_block  # noqa: PLC0415 - imports torch
    from quantkit.models.torch_model import rotary_tables  # noqa: PLC0415

    _, _, checkpoint = model()
    spec, block = checkpoint.spec, load_block(checkpoint, 1)
    x = torch.randn(9, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    rotary = rotary_tables(spec, 0, 9, x.device)
    given: dict[Any, Any] = {}
    for role in spec.linear_roles:
        block.layer(role).register_forward_hook(lambda _, inputs, __, role=role: given.update({role: inputs[0]}))
    after = block(x[None], *rotary)[0]
    wanted, read = dict(given), x
    for number, group in enumerate(spec.groups):
        read = block.reads(number, x, read, rotary)
        for role in group.roles:
            assert torch.allclose(read, wanted[role].reshape(read.shape), atol=1e-5), role
        if group.writes:
            x = x + block.layer(group.writer)(read) * spec.residual_scale
    assert torch.allclose(x, after, atol=1e-5)
