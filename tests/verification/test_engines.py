"""Which engine is chosen for an artifact, with engines that only say what they take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from quantkit import registry
from quantkit.errors import BadOption, MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.verification import engines
from quantkit.verification.engines import choose_engine, real_engine
from tests.support.memory import TINY_CONFIG, memory_checkpoint


@dataclass
class Engine:
    """Stands in for a runtime."""

    name: str
    formats: tuple[str, ...] = ("compressed-tensors",)
    architectures: tuple[str, ...] = ("minicpm", "llama")
    absent: str | None = None
    refusal: str | None = None

    def missing(self) -> str | None:
        return self.absent

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        return self.refusal


@pytest.fixture
def artifact() -> Checkpoint:
    return replace(memory_checkpoint(TINY_CONFIG), format="compressed-tensors")


@pytest.fixture
def installed(monkeypatch):
    """Puts stand-ins in the place of the runtimes that load compressed-tensors, in its order: transformers, vllm."""

    def install(*fakes: Engine) -> None:
        known = {fake.name: fake for fake in fakes}
        real = registry.runtime
        monkeypatch.setattr(engines.registry, "runtime", lambda name: known.get(name) or real(name))

    return install


def test_auto_takes_the_first_engine_of_the_exporters_order(installed, artifact):
    installed(Engine("vllm"), Engine("transformers"))
    assert choose_engine("auto", artifact).name == "transformers"


@pytest.mark.parametrize(
    "unable",
    [
        {"absent": "pip install it"},
        {"refusal": "8 bits"},
        {"architectures": ("llama",)},
        {"formats": ("gguf",)},
    ],
    ids=lambda unable: next(iter(unable)),
)
def test_auto_passes_over_an_engine_that_cannot(installed, artifact, unable):
    installed(Engine("transformers", **unable), Engine("vllm"))
    assert choose_engine("auto", artifact).name == "vllm"
    installed(Engine("transformers", **unable), Engine("vllm", **unable))
    assert choose_engine("auto", artifact).name == "reference"
    assert real_engine(artifact) is None


def test_an_engine_that_is_asked_for_by_name_says_itself_what_it_refuses(installed, artifact):
    installed(Engine("vllm", refusal="8 bits"))
    assert choose_engine("vllm", artifact).name == "vllm"


def test_an_engine_that_cannot_load_the_container_or_is_absent_is_an_error(installed, artifact):
    installed(Engine("vllm", absent="run make conformance"))
    with pytest.raises(MissingDependency, match="run make conformance"):
        choose_engine("vllm", artifact)
    with pytest.raises(BadOption, match="does not load compressed-tensors") as caught:
        choose_engine("llama-cpp", artifact)
    assert "transformers, vllm, reference" in str(caught.value.hint)
    with pytest.raises(BadOption, match="unknown engine"):
        choose_engine("warp", artifact)
