"""The child process of `vllm.py`: a script for the interpreter of vLLM's own environment, which has no quantkit.

It holds the engine and answers its questions (`quantkit.runtimes._engine_process`):

    {"do": "load", "path": P, "dtype": D, "max_model_len": N, "code": B}    {}
    {"do": "logits", "token_ids": [...]}                                    {"bytes": 4 * T * V} + float32 log-probs
    {"do": "next", "token_ids": [...]}                                      {"bytes": 4 * V} + float32 log-probs
    anything that the engine refuses                                        {"error": "one line"}

code: whether the configuration class that lies in the folder may be imported. Source of the settings: vLLM 0.32.0,
`entrypoints/llm.py`, `sampling_params.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

ALL = -1
MAX_MESSAGE = 300


class Rows(Protocol):
    """vLLM's `FlatLogprobs`: entries start_indices[i] to end_indices[i] belong to position i."""

    start_indices: Sequence[int]
    end_indices: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]


class Engine:
    """One loaded model in vLLM."""

    def __init__(self, *, path: str, dtype: str, max_model_len: int, code: bool) -> None:
        import vllm  # noqa: PLC0415 - ten seconds, and its failure is an answer

        self._sampling = vllm.SamplingParams
        self._model = vllm.LLM(
            model=path,
            trust_remote_code=code,
            load_format="safetensors",  # never a pickle
            config_format="hf",
            generation_config="vllm",  # not the folder's
            skip_tokenizer_init=True,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=1,
            max_logprobs=ALL,
            enforce_eager=True,
            disable_log_stats=True,
        )

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Log-probs [T, V]: all of the prompt's, and the first generated token's as the last row."""
        answer = self._generate(token_ids, prompt_logprobs=ALL)
        # The first prompt token has no predecessor: position 0 is empty.
        prompt = log_prob_rows(answer.prompt_logprobs)[1:] if len(token_ids) > 1 else []
        return np.stack([*prompt, *log_prob_rows(answer.outputs[0].logprobs)])

    def next(self, token_ids: list[int]) -> np.ndarray:
        """Log-probs [V] of the token after `token_ids`; the engine keeps the keys and values of a known prefix."""
        return log_prob_rows(self._generate(token_ids).outputs[0].logprobs)[0]

    def _generate(self, token_ids: list[int], **options: int) -> Any:  # noqa: ANN401 - vLLM is not typed here
        sampling = self._sampling(
            max_tokens=1, temperature=0, logprobs=ALL, flat_logprobs=True, detokenize=False, ignore_eos=True, **options
        )
        return self._model.generate([{"prompt_token_ids": token_ids}], sampling, use_tqdm=False)[0]


def log_prob_rows(rows: Rows) -> list[np.ndarray]:
    """Float32 log-probs by token id, one array per position; a position without entries gives an empty one.

    The token that came is listed twice; every other one once, in order of probability.
    """
    ids, values = np.asarray(rows.token_ids, np.int64), np.asarray(rows.logprobs, np.float32)
    by_token = []
    for start, stop in zip(rows.start_indices, rows.end_indices, strict=True):
        row = np.full(int(ids[start:stop].max(initial=-1)) + 1, np.nan, np.float32)
        row[ids[start:stop]] = values[start:stop]
        by_token.append(row)
    return by_token


def _answer(engine: Engine | None, request: dict[str, Any]) -> tuple[Engine, dict[str, Any], bytes]:
    do = request.pop("do")
    if do == "load":
        return Engine(**request), {}, b""
    assert engine is not None
    rows = engine.logits(**request) if do == "logits" else engine.next(**request)
    return engine, {"bytes": rows.nbytes}, rows.tobytes()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_MESSAGE] or type(error).__name__


def serve() -> None:
    """Answer requests until stdin ends. What the engine prints goes to stderr, stdout belongs to the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        try:
            engine, head, data = _answer(engine, json.loads(line))
        except Exception as error:  # the engine's own exceptions have no common base; the parent names the artifact
            head, data = {"error": _one_line(error)}, b""
        answers.write(json.dumps(head).encode() + b"\n" + data)
        answers.flush()


if __name__ == "__main__":
    serve()
