"""The proof: an artifact still is the model that it was made from, and the engine computes what the artifact says.

    files        every file is the one that its manifest describes; a model card may be edited
    identity     every scalar of the model, its tokenizer, template and end tokens are the original's
    numbers      every tensor holds the original's numbers, or what the run recorded that it made of them
    predictions  the reference runtime on the artifact predicts what the original predicts
    engine       the real engine on the artifact predicts what the reference predicts on it, and the original

The first three read; they accuse files, config and tensors by name. `predictions` is for what none of them knows of.
`engine` accuses the engine. What would take long is left out once an earlier step has failed.
docs/decisions/0010-what-verify-proves.md tells what each limit rests on.
"""

from __future__ import annotations

from pathlib import Path

from quantkit import registry
from quantkit.errors import BadOption, QuantkitError
from quantkit.models.layouts.unreadable import unreadable
from quantkit.progress import Progress
from quantkit.verification.engines import NO_ENGINE, engine_name
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.report import Report
from quantkit.verification.sparse.oracle import DENSE, SPARSE, checked_attention
from quantkit.verification.sparse.proof import SparseProof
from quantkit.verification.steps.sequence import Proof, VerifyOptions


def verify(
    path: str | Path,
    *,
    golden: str | Path | Golden | None = None,
    against: str | Path | None = None,
    engine: str = "auto",
    max_kl: float | None = None,
    prompts: int | None = None,
    needs_manifest: bool = True,
    attention: str | None = None,
    variant: str | None = None,
    context: int = 32768,
    progress: Progress | None = None,
) -> Report:
    """Prove that an artifact still is the model that it was made from, or say in which step it is not.

    Args:
        path: the artifact, a folder or a single file.
        golden: what was recorded of the original, or the file that holds it; its prompts are used.
        against: the original itself, or the quantized model that the artifact was exported from. Where a step fails, it
            is traced to find where the artifact leaves it.
        engine: "auto" = the first real engine that is installed and knows the model, else the reference alone;
            "reference" = no other; "none" = nothing is run.
        max_kl: largest mean KL from the original over all prompts, in nats, on top of the limits of each prompt.
        prompts: only so many, the first ones.
        needs_manifest: whether an artifact without a manifest fails.
        attention: "sparse" = what it does on a long prompt when it attends as its `sparse_config` says, which blocks it
            chooses, and whether it finds needles in a long context (`quantkit.verification.sparse`); "dense"; None = as
            the container attends by itself.
        variant: as which published code it attends sparsely, one of the reference's; None = the golden file's, or the
            default.
        context: tokens in which needles are hidden.
        progress: told how much of the work is done.

    Raises:
        BadOption: no such artifact, an unknown attention or variant, a context without room for needles, or nothing to
            compare with: neither an original nor an engine.
        UnsupportedModel: sparse attention of a model that has none.
        GoldenMismatch: sparse attention, and the golden file has nothing of it.
        MissingDependency, EngineFailed: the engine that was asked for is not there, or does not take such artifacts.
        What opening `against` raises.
    """
    path = Path(path)
    if not path.exists():
        raise unreadable(path, registry.names("exporters"))
    if isinstance(golden, (str, Path)) and Path(golden).is_dir():
        raise BadOption(f"{golden} is a folder, not a golden file", hint=f"compare with a model by --against {golden}")
    recorded = read_golden(Path(golden)) if isinstance(golden, (str, Path)) else golden
    checked_attention(attention, variant)
    options = VerifyOptions(
        engine=engine_name(engine, NO_ENGINE),
        max_kl=max_kl,
        prompts=prompts,
        needs_manifest=needs_manifest,
        variant=variant,
        context=context,
    )
    kind = SparseProof if _attends_sparsely(path, attention, variant) else Proof
    return kind(path, recorded, Path(against) if against is not None else None, options, progress).report()


def _attends_sparsely(path: Path, attention: str | None, variant: str | None) -> bool:
    """Whether sparse attention is to be verified: as was asked for, else as the container attends."""
    if attention == SPARSE or (attention is None and variant is not None):
        return True
    try:
        own = registry.open_checkpoint(path).attention
    except QuantkitError:
        return False  # the proof will tell
    if attention == DENSE and own == SPARSE:
        raise BadOption(f"{path} attends sparsely by itself", hint=f"leave --attention {DENSE} out")
    return own == SPARSE
