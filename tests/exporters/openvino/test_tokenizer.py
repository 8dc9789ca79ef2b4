"""The tokenizer's graphs: the same bytes every time, the same ids as quantkit's own tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit import registry
from quantkit.exporters.openvino import tokenizer
from quantkit.exporters.openvino.tokenizer import tokenizer_files
from quantkit.text.tokenizer import open_tokenizer
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.openvino_folders import exported

ov = pytest.importorskip("openvino")
tokenizers = pytest.importorskip("openvino_tokenizers")
pytest.importorskip("transformers")

TEXTS = (
    "The river",
    "  two spaces,  and\n\n\nlines\t\ttabs ",
    "def f(x):\n    return x * 2 if x else None\n",
    "日本語 и русский, émigré 😀 ½",
    "<|im_start|>user\nWhy?<|im_end|>\n",
    "a" * 300,
    "",
)


@pytest.fixture(scope="module")
def folder(golden_model, tmp_path_factory):
    return exported(registry.open_checkpoint(golden_model), tmp_path_factory.mktemp("golden") / "out")


def test_its_ids_are_those_of_the_models_tokenizer(folder, golden_model):
    compiled = ov.Core().compile_model(str(folder / "openvino_tokenizer.xml"), "CPU")
    own = open_tokenizer(registry.open_checkpoint(golden_model))
    for text in TEXTS:
        found = compiled([text])["input_ids"][0].tolist()
        assert found == own.encode(text), repr(text)


def test_its_text_is_that_of_the_models_tokenizer(folder, golden_model):
    """Special tokens are left out, as GenAI has them."""
    compiled = ov.Core().compile_model(str(folder / "openvino_detokenizer.xml"), "CPU")
    own = open_tokenizer(registry.open_checkpoint(golden_model))
    for text in TEXTS[:4]:
        ids = own.encode(text)
        found = compiled(np.array([ids]))["string_output"][0]
        assert found.strip() == own.decode(ids, specials=False).strip()


def test_the_template_and_the_end_token_travel_in_it(folder, golden_model):
    own = open_tokenizer(registry.open_checkpoint(golden_model))
    info = ov.Core().read_model(str(folder / "openvino_tokenizer.xml")).get_rt_info()
    assert info["chat_template"].astype(str) == own.vocabulary.chat_template
    assert int(info["eos_token_id"].astype(str)) in registry.open_checkpoint(folder).spec.eos_token_ids


def test_other_processes_make_the_same_bytes(golden_model):
    model = registry.open_checkpoint(golden_model)
    one = tokenizer_files(model)
    tokenizer._converted.cache_clear()
    other = tokenizer_files(model)
    assert one is not other
    assert one == other
    assert sorted(one.files) == sorted(name + end for name in tokenizer.NAMES for end in tokenizer.ENDINGS)


def test_what_cannot_be_made_is_told(golden_model, monkeypatch):
    """Weights are exported all the same: GenAI takes ids."""
    assert "takes token ids only" in tokenizer_files(memory_checkpoint(tiny_config())).notes[0]
    broken = memory_checkpoint(tiny_config(), files={"tokenizer.json": b"{}"})
    found = tokenizer_files(broken)
    assert found.files == {}
    assert "makes no graph of this tokenizer" in found.notes[0]
    monkeypatch.setattr(tokenizer, "MEMORY", 30 << 20)
    tokenizer._converted.cache_clear()
    assert "it takes more than 30 MiB" in tokenizer_files(registry.open_checkpoint(golden_model)).notes[0]
    tokenizer._converted.cache_clear()
    monkeypatch.setattr(tokenizer, "PACKAGES", ("openvino", "not_installed_at_all"))
    found = tokenizer_files(registry.open_checkpoint(golden_model))
    assert found.files == {}
    assert "pip install" in found.notes[0]
