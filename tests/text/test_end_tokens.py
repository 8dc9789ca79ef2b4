"""End tokens: the union of three files, in the spec, in every file that is written, and in llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import MalformedFile
from quantkit.exporters.gguf.vocabulary import END_TEXTS
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from quantkit.text.companions import with_companions
from quantkit.verification.generation import generated_tokens
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.tokenizer_folders import (
    IM_END,
    IM_START,
    Files,
    changed,
    config_with,
    golden_files,
    only_tokenizer_json,
    opened,
)


def generation(files: Files, eos: Any) -> Files:
    return {**files, "generation_config.json": json.dumps({"eos_token_id": eos, "top_p": 0.8}).encode()}


def with_generation(files: Files, **keys: Any) -> Files:
    return changed(generation(files, 2), "generation_config.json", lambda value: value.update(keys))


PLAIN = config_with(golden_files("tokenizer.model", "tokenizer.json", "tokenizer_config.json"), eos_token="</s>")
TURN = golden_files()  # its eos_token is <|im_end|>
WITHOUT_CONFIG = {"tokenizer.model": TURN["tokenizer.model"], "tokenizer.json": TURN["tokenizer.json"]}
MAP = {**WITHOUT_CONFIG, "special_tokens_map.json": json.dumps({"eos_token": {"content": "<|im_end|>"}}).encode()}

UNIONS: dict[str, tuple[Files, Any, tuple[int, ...]]] = {
    # files, eos_token_id of config.json, the union
    "config alone": (PLAIN, [2, 2041], (2, 2041)),
    "config says nothing": (TURN, None, (2, IM_END)),
    "generation_config only": (generation(PLAIN, [2, IM_END]), 2, (2, IM_END)),
    "generation_config, one": (generation(PLAIN, IM_END), 2, (2, IM_END)),
    "tokenizer only": (generation(TURN, 2), 2, (2, IM_END)),
    "tokenizer without generation_config": (TURN, 2, (2, IM_END)),
    "tokenizer.json only": (only_tokenizer_json(eos_token="<|im_end|>"), 2, (2, IM_END)),
    "the map of special tokens": (MAP, 2, (2, IM_END)),
    "an object": (config_with(TURN, eos_token={"content": "<|im_end|>"}), 2, (2, IM_END)),
    "an end of turn beside it": (config_with(PLAIN, eot_token="<|im_end|>"), 2, (2, IM_END)),
    "an ordinary piece": (config_with(PLAIN, eos_token="▁the"), 2, ()),  # whatever id the piece has
    "all three, in order": (generation(TURN, [2041, 2042]), 2, (2, 2041, 2042, IM_END)),
    "two files of the tokenizer": ({**config_with(TURN, eos_token="</s>")}, 2, (2, IM_END)),
    "a stop string that is a token": (with_generation(PLAIN, stop_strings=["<|im_end|>"]), 2, (2, IM_END)),
    "nothing new": (generation(TURN, [IM_END, 2]), [2, IM_END], (2, IM_END)),
    "none": (generation(PLAIN, -1), 2, (2,)),
    "null": (generation(PLAIN, None), 2, (2,)),
}


@pytest.mark.parametrize("case", UNIONS)
def test_the_union_is_taken_in_order_without_repetition(case: str) -> None:
    files, eos, union = UNIONS[case]
    checkpoint = opened(files, eos_token_id=eos)
    if case == "an ordinary piece":
        union = (2, json.loads(files["tokenizer.json"])["model"]["vocab"]["▁the"])
    assert checkpoint.spec.eos_token_ids == union
    assert parse_config(checkpoint.config).eos_token_ids == union
    if "generation_config.json" in files:
        says = json.loads(checkpoint.files["generation_config.json"]())
        assert says["top_p"] == 0.8
        assert set(says["eos_token_id"] if isinstance(says["eos_token_id"], list) else [says["eos_token_id"]]) == set(
            union
        )
    told = [note for note in checkpoint.notes if "are named by" in note]
    assert bool(told) == (union != parse_config(tiny_config(vocab_size=2048, eos_token_id=eos)).eos_token_ids)


def test_where_nothing_is_missing_every_byte_stays() -> None:
    files = generation(TURN, [IM_END, 2])
    checkpoint = opened(files)
    assert checkpoint.config == tiny_config(vocab_size=2048, eos_token_id=[2, IM_END])
    assert {name: read() for name, read in checkpoint.files.items()} == files
    assert checkpoint.notes == ()


SAID: dict[str, tuple[Files, str]] = {
    "an id beyond the vocabulary": (generation(PLAIN, [2, 4096]), "4096"),
    "a stop string of many tokens": (with_generation(PLAIN, stop_strings="User:"), "'User:'"),
    "tokens that are kept back": (with_generation(PLAIN, suppress_tokens=[5], bad_words_ids=[[7]]), "suppress_tokens"),
    "a turn's end that only the template names": (PLAIN, "<|im_end|>"),
    "a text without an id in the map": (
        {**PLAIN, "special_tokens_map.json": b'{"eos_token": "<|x|>"}'},
        "special_tokens_map.json: eos_token",
    ),
    "a text without an id": (config_with(PLAIN, eos_token="<|nowhere|>"), "'<|nowhere|>' is not in the vocabulary"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_no_token_is_meant_by_is_said(case: str) -> None:
    files, word = SAID[case]
    checkpoint = opened(files, eos_token_id=2)
    assert checkpoint.spec.eos_token_ids == (2,)
    assert any(word in note for note in checkpoint.notes), checkpoint.notes
    assert all(index < 2048 for index in parse_config(checkpoint.config).eos_token_ids)


@pytest.mark.parametrize("eos", ["</s>", [2, "</s>"], 2.5, [True], -2, {"id": 2}])
def test_what_is_no_id_is_refused(eos: Any) -> None:
    with pytest.raises(MalformedFile, match=r"generation_config\.json: eos_token_id"):
        opened(generation(PLAIN, eos))


@pytest.mark.parametrize("name", ["hf", "gguf"])
@pytest.mark.parametrize("arch", ["native", "llama"])
def test_what_is_written_names_every_end_token(name: str, arch: str, tmp_path: Path) -> None:
    checkpoint = opened(generation(TURN, [2041, 2042]), eos_token_id=2)
    out = tmp_path / "out"
    publish(registry.exporter(name).prepare(checkpoint, ExportOptions(arch=arch)), out)
    back = registry.exporter(name).read(out)
    assert back.spec.eos_token_ids == (2, 2041, 2042, IM_END)
    if name == "hf":
        from transformers import GenerationConfig  # noqa: PLC0415 - a second to import

        assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 2041, 2042, IM_END]
    assert not any("named by" in note for note in back.notes)


def always(token: int) -> Any:
    """The arrays of a Llama that always predicts `token`."""
    spec = parse_config(llama())
    arrays = random_arrays(spec)
    for name, values in arrays.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values[:] = 0
    arrays["model.embed_tokens.weight"][:, 0] = 1
    arrays["lm_head.weight"][:] = 0
    arrays["lm_head.weight"][token, 0] = 100
    return {name: np.abs(values) if "norm" in name else values for name, values in arrays.items()}


def llama(**changes: Any) -> dict[str, Any]:
    scalars = {"scale_emb": None, "scale_depth": None, "dim_model_base": None}
    family = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    return tiny_config(**{**scalars, **family, "vocab_size": 2048, "eos_token_id": 2, **changes})


STOPS = {
    "generation_config names the turn": (generation(PLAIN, [2, IM_END]), IM_END),
    "the tokenizer names the turn": (TURN, IM_END),
    "generation_config names another token": (generation(PLAIN, [2, 2044]), 2044),
    "and yet another": (generation(PLAIN, [2, 2044, IM_START]), IM_START),
}


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("case", STOPS)
def test_llama_cpp_stops_by_itself_and_so_does_run(case: str, tmp_path: Path) -> None:
    files, token = STOPS[case]
    checkpoint = with_companions(memory_checkpoint(llama(), always(token), files=files))
    path = tmp_path / "m.gguf"
    publish(registry.exporter("gguf").prepare(checkpoint, ExportOptions(type="f32")), path)
    back = registry.open_checkpoint(path)
    with registry.runtime("llama-cpp").open(path) as session:
        produced = list(generated_tokens(session, [1, 372], max_tokens=4, eos_token_ids=back.spec.eos_token_ids,
                                 temperature=0.0, top_p=1.0, seed=0))  # fmt: skip
    assert produced == []
    assert llama_cpp_ends(path)[token]


def llama_cpp_ends(path: Path) -> list[bool]:
    """Whether llama.cpp takes each id for the end of a generation, by its own C API, in a process of its own."""
    program = """
import ctypes, glob, json, os, sys, xllamacpp
library = ctypes.CDLL(glob.glob(os.path.dirname(xllamacpp.__file__) + "/*.so")[0])
class Params(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 512)]  # larger than the struct: the callee reads its own part
library.llama_model_default_params.restype = Params
library.llama_model_load_from_file.restype = ctypes.c_void_p
library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
library.llama_model_get_vocab.restype = ctypes.c_void_p
library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
library.llama_vocab_is_eog.restype = ctypes.c_bool
library.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
model = library.llama_model_load_from_file(sys.argv[1].encode(), library.llama_model_default_params())
vocab = library.llama_model_get_vocab(model)
print(json.dumps([library.llama_vocab_is_eog(vocab, index) for index in range(2048)]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, timeout=120)
    ends: list[bool] = json.loads(done.stdout)
    return ends


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_knows_by_their_text_the_tokens_that_get_no_key(tmp_path: Path) -> None:
    texts = [text for text in END_TEXTS if text != "</s>"]
    added = {str(2041 + place): {"content": text, "special": True} for place, text in enumerate(texts)}
    config = json.dumps({"eos_token": "</s>", "added_tokens_decoder": added}).encode()
    checkpoint = opened(
        {"tokenizer.model": TURN["tokenizer.model"], "tokenizer_config.json": config}, eos_token_id=1500
    )
    path = tmp_path / "m.gguf"
    publish(registry.exporter("gguf").prepare(checkpoint, ExportOptions(type="f16")), path)
    ends = llama_cpp_ends(path)
    assert [index for index, end in enumerate(ends) if end] == [2, 1500, *range(2041, 2041 + len(texts))]


def test_end_tokens_that_find_no_key_in_gguf_are_said() -> None:
    checkpoint = opened(generation(TURN, [2041, 2042, 2043, 2044]), eos_token_id=2)
    notes = registry.exporter("gguf").prepare(checkpoint, ExportOptions(type="f16")).notes
    assert any("no key for the end tokens 2043, 2044" in note for note in notes), notes
