"""Keys of the model card in a GGUF file, beside those that gguf-py makes of the same card; and README.md back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.metadata import Metadata

from quantkit.exporters.gguf.card.entries import size_label
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.layouts.front_matter import read_front_matter
from tests.support.gguf_models import EXPORTER, dense, write

CARDS = {
    "a model of the Hub": "license: apache-2.0\nlanguage:\n- en\n- zh\npipeline_tag: text-generation\n"
    "tags:\n- minicpm\n- chat\nbase_model: openbmb/MiniCPM4-0.5B\nmodel_name: My MiniCPM\n",
    "a merge": "base_model:\n- openbmb/MiniCPM-2B-sft-bf16\n- https://huggingface.co/a/b-chat\n- https://x.org/c\n"
    "datasets: [HuggingFaceFW/fineweb, wiki text]\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n",
    "all texts": "name: N\nauthor: A\nversion: v2\norganization: O\ndescription: D\nfinetune: chat\nbasename: B\n"
    "size_label: 9T\nurl: http://u\ndoi: d\nuuid: u\nrepo_url: r\nmodel_creator: C\nlicense: [mit, x]\nname_: x\n",
    "nothing": "model-index: []\n",
}
OWN = {"general.architecture", "general.type", "general.file_type", "general.quantization_version"}


def said(path: Path) -> dict[str, Any]:
    """Keys of the card as gguf-py reads them."""
    fields = gguf.GGUFReader(path).fields
    return {
        k: f.contents() for k, f in fields.items() if k.startswith("general.") and k not in OWN and "sampling" not in k
    }


def theirs(card: str, path: Path) -> dict[str, Any]:
    """Keys that gguf-py makes of a card; versions that it guesses from a base model's name are left out."""
    (path / "model").mkdir()
    (path / "model" / "README.md").write_text(f"---\n{card}---\n")
    writer = gguf.GGUFWriter(path / "theirs.gguf", "minicpm")
    metadata = Metadata.load(model_path=path / "model", total_params=0)
    metadata.size_label = metadata.size_label or size_label(1)
    metadata.set_gguf_meta_model(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {
        key: value
        for key, value in said(path / "theirs.gguf").items()
        if not key.endswith(".version") or ".0." not in key
    }


@pytest.mark.parametrize("case", CARDS)
def test_the_keys_are_those_that_gguf_py_makes_of_the_card(case: str, tmp_path: Path) -> None:
    source = dense(files={"README.md": f"---\n{CARDS[case]}---\n# Text\n".encode()})
    ours, wanted = said(write(source, tmp_path / "m.gguf")), theirs(CARDS[case], tmp_path)
    free = {"general.size_label"} | (set() if re.search("^(model_)?name: ", CARDS[case], re.M) else {"general.name"})
    assert ours.keys() == wanted.keys()
    assert {k: v for k, v in ours.items() if k not in free} == {k: v for k, v in wanted.items() if k not in free}
    assert ours["general.size_label"] == "0.8M" or ours["general.size_label"].endswith("K")


@pytest.mark.parametrize("case", [case for case in CARDS if case != "nothing"])
def test_the_card_comes_back_and_gives_the_same_keys(case: str, tmp_path: Path) -> None:
    one = write(dense(files={"README.md": f"---\n{CARDS[case]}---\n".encode()}), tmp_path / "one.gguf")
    back = EXPORTER.read(one)
    assert read_front_matter(back.files["README.md"]())
    assert said(write(back, tmp_path / "two.gguf")) == said(one)


def test_a_file_that_says_no_more_than_a_name_has_no_card(tmp_path: Path) -> None:
    assert "README.md" not in EXPORTER.read(write(dense(), tmp_path / "m.gguf")).files


@pytest.mark.parametrize(
    "weights",
    [1, 999, 1000, 99_500, 433_000_000, 999_999, 10**6, 1_000_001, 2.4e6, 9.96e6, 5_439_232, 10**9, 4.3e9, 8e12],
)
def test_the_label_of_a_size_is_gguf_pys(weights: float) -> None:
    assert size_label(int(weights)) == gguf.size_label(int(weights), 0, 0, 0)


def test_no_length_of_a_card_stops_a_model(tmp_path: Path) -> None:
    data = b"---\ntags:\n" + b"- a\n" * 100_000 + b"---\n"
    assert read_gguf(write(dense(files={"README.md": data}), tmp_path / "m.gguf")).metadata["general.name"]
