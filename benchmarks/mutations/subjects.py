"""The files that are damaged: for each, the models that it lies in, and how a mutant of it is made.

Most lie in the golden model; what it lacks is made here from it. A tiny Llama has a byte-level tokenizer.json, trained
by the `tokenizers` package.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.mutations import json_mutants
from benchmarks.mutations.byte_mutants import damaged_bytes, damaged_template
from benchmarks.mutations.gguf_mutants import damaged_gguf
from benchmarks.mutations.gguf_values import EVERY_TYPE, every_type, write_source

GOLDEN = Path(__file__).resolve().parent.parent.parent / "golden"
BYTES_SHARE = 0.2
"""How many mutants of a file with structure are damaged in their bytes instead."""

RECIPE = b"""[[rule]]
role = ["gate", "up"]
bits = 8
group_size = 64
symmetric = false
scale_dtype = "float32"
[[rule]]
match = "model.layers.0.*"
keep = true
[[rule]]
role = "lm_head"
method = "rtn"
"""

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Subject:
    """One file. name: of the file. models: the folders, or the lone file, that it lies in. damage: makes a mutant."""

    name: str
    models: tuple[Files, ...]
    damage: Callable[[bytes, Random], bytes]

    def mutant(self, number: int) -> tuple[Files, bytes]:
        """Mutant `number`: the model that it lies in, and its bytes; the same whenever it is asked for."""
        model = self.models[number % len(self.models)]
        return model, self.damage(model[self.name], Random(f"{self.name} {number}"))


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "tokenizer.json": lambda _: Subject("tokenizer.json", (golden_model(), without_model(), byte_level()), _json),
    "tokenizer_config.json": lambda _: Subject("tokenizer_config.json", (golden_model(), byte_level()), _json),
    "config.json": lambda _: Subject("config.json", (golden_model(), byte_level()), _json),
    "generation_config.json": lambda _: Subject("generation_config.json", (golden_model(), byte_level()), _json),
    "special_tokens_map.json": lambda _: Subject("special_tokens_map.json", (golden_model(),), _json),
    "added_tokens.json": lambda _: Subject("added_tokens.json", (golden_model(),), _json),
    "chat_template.jinja": lambda _: Subject("chat_template.jinja", with_templates(), _template),
    "model.safetensors.index.json": lambda _: Subject("model.safetensors.index.json", (golden_model(),), _json),
    "model.safetensors": lambda _: Subject("model.safetensors", (byte_level(),), _safetensors),
    "tokenizer.model": lambda _: Subject("tokenizer.model", (golden_model(),), damaged_bytes),
    "quantkit.json": lambda scratch: Subject("quantkit.json", (exported("compressed-tensors", scratch),), _json),
    "quantize_config.json": lambda scratch: Subject("quantize_config.json", (old_gptq(scratch),), _json),
    "model.gguf": lambda scratch: Subject("model.gguf", (exported("gguf", scratch),), _gguf),
    EVERY_TYPE: lambda scratch: Subject(EVERY_TYPE, typed(scratch), damaged_gguf),
    "model.onnx": lambda scratch: Subject("model.onnx", (exported("onnx", scratch),), damaged_bytes),
    "model.onnx.data": lambda scratch: Subject("model.onnx.data", (exported("onnx", scratch),), damaged_bytes),
    "genai_config.json": lambda scratch: Subject("genai_config.json", (exported("onnx", scratch),), _json),
    "openvino_model.xml": lambda scratch: Subject("openvino_model.xml", (exported("openvino", scratch),), _xml),
    "openvino_model.bin": lambda scratch: Subject(
        "openvino_model.bin", (exported("openvino", scratch),), damaged_bytes
    ),
    "mlx/config.json": lambda scratch: Subject("config.json", (exported("mlx", scratch),), _mlx_config),
    "mlx/model.safetensors": lambda scratch: Subject("model.safetensors", (exported("mlx", scratch),), _safetensors),
    "golden.bin": lambda _: Subject("golden.bin", ({"golden.bin": (GOLDEN / "golden.bin").read_bytes()},), _golden),
    "recipe.toml": lambda _: Subject("recipe.toml", ({**golden_model(), "recipe.toml": RECIPE},), _recipe),
}
"""File name, with the container before it where two have one of that name, to what makes its subject in a folder."""


def files_of(path: Path) -> dict[str, bytes]:
    """Name and bytes of every file in the folder `path`."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


@cache
def golden_model() -> Files:
    """The golden model: MiniCPM4 with tokenizer.model and a tokenizer.json that agrees with it."""
    return files_of(GOLDEN / "model")


def without_model() -> Files:
    """The golden model with tokenizer.json alone."""
    return {name: data for name, data in golden_model().items() if name != "tokenizer.model"}


def with_templates() -> tuple[Files, ...]:
    """The golden model with chat templates of several kinds."""
    own = json.loads(golden_model()["tokenizer_config.json"])["chat_template"]
    return tuple({**golden_model(), "chat_template.jinja": text.encode()} for text in (own, *TEMPLATES))


TEMPLATES = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = ns.last - loop.index0 %}"
    "{%- if message.role == 'user' and not message.content.startswith('<tool>') %}{%- set ns.last = index %}"
    "{%- endif %}{%- endfor %}{%- for message in messages %}{%- if message['role'] not in ['user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' ~ message.role) }}{%- else %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "{% macro turn(role, text='') -%}<|im_start|>{{ role }}\n{{ text | replace('a', 'b') | upper }}<|im_end|>"
    "{%- endmacro %}"
    "{{ bos_token }}{% for m in messages if m.content is defined %}{{ turn(m.role, m.content) }}"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}",
)


@cache
def byte_level() -> Files:
    """A random Llama of two blocks in one file of weights, with a byte-level tokenizer.json and nothing else."""
    from safetensors.numpy import save  # noqa: PLC0415 - extras, needed for these subjects alone
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers  # noqa: PLC0415
    from tokenizers.models import BPE  # noqa: PLC0415

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [AddedToken(text, special=True) for text in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator((GOLDEN / "corpus.py").read_text().splitlines(), trainer)
    size, hidden, inner = tokenizer.get_vocab_size(), 64, 128
    shapes = {"model.embed_tokens.weight": (size, hidden), "model.norm.weight": (hidden,)}
    for layer in ("model.layers.0", "model.layers.1"):
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in norms}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": size, "hidden_size": hidden},
        **{"intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
        **{"head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6},
        **{"rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": True, "torch_dtype": "float16"},
        **{"bos_token_id": 0, "eos_token_id": [1, 3], "attention_bias": False, "mlp_bias": False},
    }
    own = json.loads(golden_model()["tokenizer_config.json"])["chat_template"]
    settings = {
        **{
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "add_bos_token": True,
        },
        **{"chat_template": own, "model_max_length": 512, "clean_up_tokenization_spaces": False},
    }
    generation = {"bos_token_id": 0, "eos_token_id": [1, 3], "temperature": 0.7, "top_p": 0.8, "stop_strings": ["</s>"]}
    return {
        "config.json": _encoded(config),
        "generation_config.json": _encoded(generation),
        "model.safetensors": save(weights, {"format": "pt"}),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _encoded(settings),
    }


def exported(container: str, scratch: Path) -> Files:
    """The golden model in 4 bits in a container, with its manifest."""
    from quantkit import AffineGroups, QuantizeOptions, export, quantize  # noqa: PLC0415

    run = scratch / "run"
    if not run.exists():
        scheme = AffineGroups(bits=4, group_size=32)
        quantize(GOLDEN / "model", run, QuantizeOptions(method="rtn", scheme=scheme))
    if container == "compressed-tensors":
        return files_of(run)
    out = scratch / container / ("model.gguf" if container == "gguf" else "folder")
    if not out.exists():
        out.parent.mkdir(exist_ok=True)
        export(container, run, out)
    return files_of(out if out.is_dir() else out.parent)


def typed(scratch: Path) -> tuple[Files, ...]:
    """A small model in a GGUF file of each type."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    source = write_source(scratch / "typed", {name: byte_level()[name] for name in names})
    return tuple({EVERY_TYPE: data} for data in every_type(source, scratch).values())


def old_gptq(scratch: Path) -> Files:
    """The golden model as older AutoGPTQ writes it: settings in quantize_config.json alone."""
    files = dict(exported("gptq", scratch))
    config = json.loads(files["config.json"])
    settings = config.pop("quantization_config")
    return {**files, "config.json": _encoded(config), "quantize_config.json": _encoded(settings)}


def _encoded(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _json(data: bytes, random: Random) -> bytes:
    if random.random() < BYTES_SHARE:
        return damaged_bytes(data, random)
    return json_mutants.written(json_mutants.damaged(json.loads(data), random))


def _mlx_config(data: bytes, random: Random) -> bytes:
    """Damage in what tells how weights are quantized, most of the time in both places alike."""
    if random.random() < BYTES_SHARE:
        return _json(data, random)
    config = json.loads(data)
    config["quantization"] = json_mutants.damaged(config["quantization"], random)
    if random.random() > BYTES_SHARE:
        config["quantization_config"] = config["quantization"]
    return json_mutants.written(config)


def _template(data: bytes, random: Random) -> bytes:
    if random.random() < BYTES_SHARE:
        return damaged_bytes(data, random)
    return damaged_template(data.decode(), random).encode("utf-8", "surrogatepass")


def _safetensors(data: bytes, random: Random) -> bytes:
    """Damage in the header's JSON, with the right length before it, or in the bytes of both."""
    (length,) = struct.unpack_from("<Q", data)
    if random.random() < BYTES_SHARE:
        return damaged_bytes(data, random, reach=8 + length)
    header = _json(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _golden(data: bytes, random: Random) -> bytes:
    """Damage in the header's JSON, with length and digest made to fit, or in the first bytes."""
    (length,) = struct.unpack_from("<I", data, 12)
    if random.random() < BYTES_SHARE:
        return damaged_bytes(data, random, reach=16 + length)
    header = _json(data[16 : 16 + length], random)
    body = data[:12] + struct.pack("<I", len(header)) + header + data[16 + length : -32]
    return body + hashlib.sha256(body).digest()


def _gguf(data: bytes, random: Random) -> bytes:
    """Damage in the keys, or in the infos of tensors: the header ends behind the last name of a tensor."""
    reach = data.rfind(b"output_norm.weight", 0, 1 << 20) + 64
    return damaged_bytes(data, random, reach=random.choice((400, 2_000, reach)))


_XML = (
    *(b'"%s"' % value for value in (b"-1", b"0", b"18446744073709551616", b"1e9", b"", b"4294967295", b"\xd9\xa4")),
    *(b"<!DOCTYPE a>", b'<!ENTITY a "b">', b"<a>" * 500, b"</layer>", b"&a;", b"<![CDATA[", b"<?xml?>", b"\0"),
)
"""What is put in the place of a value, or of nothing, in a graph."""


def _xml(data: bytes, random: Random) -> bytes:
    """Damage in bytes, or a value of an attribute replaced by a hostile one."""
    if random.random() < 0.5:
        return damaged_bytes(data, random)
    place = data.find(b'"', random.randrange(len(data)))
    end = data.find(b'"', place + 1) + 1
    if place < 0 or not end:
        return data[:-1]
    return data[:place] + random.choice(_XML) + data[end:]


_TOML = (
    b"= 1e999",
    b"= nan",
    b"= -9223372036854775809",
    b"= 0x" + b"f" * 5_000,
    b"= " + b"9" * 5_000,
    b"= [[]]",
    b"= ''",
)
_TOML_LINES = (
    b"[a.b.c]",
    b"[[rule.x]]",
    b"a" * 5_000,
    b"x = " + b"[" * 3_000,
    b"match = '''",
    b"bits = 1979-05-27",
    b"\x1b",
)


def _recipe(data: bytes, random: Random) -> bytes:
    if random.random() < 2 * BYTES_SHARE:
        return damaged_bytes(data, random)
    lines = data.splitlines()
    place = random.randrange(len(lines))
    if random.random() < 0.6:
        lines[place] = lines[place].split(b"=")[0] + random.choice(_TOML)
    else:
        lines.insert(place, random.choice((*_TOML_LINES, random.choice(lines))))
    return b"\n".join(lines)
