"""The config class beside a native MiniCPM, run in the transformers that is installed, as an engine would run it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.artifacts.publishing import publish
from quantkit.exporters._hf_config import config_files, native_config
from quantkit.models.recognition import parse_config
from quantkit.models.remote_config import CONFIG_CLASS
from quantkit.protocols import ExportOptions
from quantkit.registry import exporter, open_checkpoint
from tests.support.memory import memory_checkpoint
from tests.support.tiny import tiny_config, write_tiny_checkpoint


@pytest.fixture(scope="module")
def config_class() -> Any:
    pytest.importorskip("transformers")
    namespace: dict[str, Any] = {"__name__": "configuration_minicpm"}
    exec(compile(CONFIG_CLASS, "configuration_minicpm.py", "exec"), namespace)
    return namespace["MiniCPMConfig"]


def test_silent_keys_get_the_defaults_of_the_family(config_class: Any) -> None:
    config = config_class(**tiny_config())
    assert config.tie_word_embeddings is True
    assert config.rope_theta == config.rope_parameters["rope_theta"] == 10000.0
    assert config.head_dim == 64
    bare = config_class(num_attention_heads=8, hidden_size=64)
    assert (bare.num_key_value_heads, bare.scale_emb, bare.scale_depth, bare.dim_model_base) == (8, 1, 1, 1)
    assert bare.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_longrope_is_seen_under_every_name(config_class: Any, key: str, name: str) -> None:
    config = tiny_config()
    scaling = config.pop("rope_scaling")
    scaling[name] = scaling.pop("rope_type")
    found = config_class(**{**config, key: scaling, "rope_theta": 5000.0})
    for view in (found.rope_parameters, found.rope_scaling):
        assert view["long_factor"] == scaling["long_factor"]
        assert view["original_max_position_embeddings"] == 1024
    assert found.rope_parameters["rope_type"] == "longrope"
    assert found.rope_parameters["rope_theta"] == 5000.0


def test_what_it_saves_reads_back_to_the_same_model(config_class: Any) -> None:
    config = tiny_config(tie=False)
    saved = json.loads(config_class(**config).to_json_string(use_diff=False))
    assert parse_config({**saved, "architectures": config["architectures"]}) == parse_config(config)


def test_a_native_folder_names_the_class_and_a_llama_has_none(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny_checkpoint(tmp_path / "in"))
    for arch in ("native", "llama"):
        publish(exporter("hf").prepare(source, ExportOptions(arch=arch)), tmp_path / arch, inputs=source.inputs)
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_minicpm.MiniCPMConfig"}
    assert config["model_type"] == "minicpm"
    assert (tmp_path / "native" / "configuration_minicpm.py").read_text() == CONFIG_CLASS
    assert not (tmp_path / "llama" / "configuration_minicpm.py").exists()
    assert open_checkpoint(tmp_path / "native").notes == ()


def test_a_config_without_a_model_type_gets_one() -> None:
    config = {key: value for key, value in tiny_config().items() if key != "model_type"}
    file, _ = config_files(parse_config(config), native_config(memory_checkpoint(config)))
    assert json.loads(b"".join(map(bytes, file.units[0].produce())))["model_type"] == "minicpm"


def test_it_imports_nothing_but_transformers() -> None:
    imports = [node for node in ast.walk(ast.parse(CONFIG_CLASS)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imports] == ["from transformers import PretrainedConfig"]
