"""The child process of `server_session.py`: drives the server of xllamacpp and answers questions (`_engine_child.py`).

{"do": "load", "path": P, "n_ctx": N, "threads": N, "folder": F}        {}
{"do": "row", "token_ids": [...], "count": N, "size": V}                {"entries": n} + float32 row [V]
{"do": "tokenize", "text": T, "add_special": B, "parse_special": B}     {"token_ids": [...]}
anything that the engine refuses                                        {"error": "one line"}
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket

import numpy as np
import xllamacpp

from quantkit.runtimes._engine_child import Reply, ids_reply, serve_engine

ERRORS_ONLY = 1
FORCED_BIAS = 1e9


class Engine:
    """One loaded model in llama.cpp's server."""

    def __init__(self, *, path: str, n_ctx: int, threads: int, folder: str) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = n_ctx
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # The server would parse and run the file's own chat template, without limits, though nobody asks for a chat.
        params.chat_template, params.use_jinja = "chatml", False
        params.verbosity = ERRORS_ONLY
        params.warmup = params.fit_params = params.ui = False
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        # Float32 keys and values, and no flash attention (it rounds them to float16): what is left of the
        # difference from exact arithmetic is then the artifact's own.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # The server also listens. Nobody else may call: a key, and a socket in a private folder where there are such.
        self._key = secrets.token_hex()
        params.api_keys = [self._key]
        if hasattr(socket, "AF_UNIX"):
            params.hostnames = [os.path.join(folder, "llama.sock")]  # noqa: PTH118 - a plain string for C++
        self._server = xllamacpp.Server(params)
        self._plain = self.tokenize(text="a", add_special=False, parse_special=False)[-1]

    def row(self, *, token_ids: list[int], count: int, size: int) -> tuple[int, np.ndarray]:
        """How many log-probs were reported, at most `count`, and a float32 row of `size` with -inf for the others.

        The engine keeps its state, so a longer prefix is cheap. The server reports log-probs of every token only
        beside one that it samples, and drops them when that one ends inside a UTF-8 character; so the letter "a" is
        forced, which leaves the reported values untouched.
        """
        answer = self._server.handle_completions(
            {
                "prompt": token_ids,
                "n_predict": 1,
                "n_probs": count,
                "temperature": 0,
                "cache_prompt": True,
                "logit_bias": [[self._plain, FORCED_BIAS]],
            }
        )
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        row = np.full(size, -np.inf, np.float32)
        row[[entry["id"] for entry in entries]] = [entry["logprob"] for entry in entries]
        row[row == np.finfo(np.float32).min] = -np.inf  # what the server writes for a probability that is 0 in float32
        return len(entries), row

    def tokenize(self, *, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text` by the vocabulary inside the GGUF; only the server's HTTP side can tell."""
        connection = _connect(self._server.listening_address)
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        connection.request("POST", "/tokenize", json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        tokens: list[int] = answer["tokens"]
        return tokens


def _connect(address: str) -> http.client.HTTPConnection:
    kind, _, place = address.partition("://")
    connection = http.client.HTTPConnection("localhost" if kind == "unix" else place)
    if kind == "unix":
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(place)
    return connection


def _entries(found: tuple[int, np.ndarray]) -> Reply:
    return {"entries": found[0]}, found[1]


def main() -> None:
    """Answer requests until stdin ends."""
    serve_engine(Engine, {"row": _entries, "tokenize": ids_reply})
