"""InfLLM-v2 token by token and head by head, in plain loops from the published formulas, in float64.

Nothing of it is quantkit's: the variants are written out again, and every mean is taken anew from all keys of a call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

INFINITE = math.inf


@dataclass
class Definition:
    """config: the numbers of `sparse_config`. variant: "minicpm4.1", "minicpm4" or "cpm.cu"."""

    config: Mapping[str, int]
    variant: str

    def outputs(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        calls: Sequence[int],
        *,
        unrotated: tuple[np.ndarray, np.ndarray] | None = None,
        prompt: int | None = None,
        every: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs (T, H * D) of tokens, which come in `calls` of so many, and how clearly each chose, (T,).

        q: (H, T, D); k, v: (G, T, D). every: of so many tokens the first is computed. prompt: length of the prompt that
        the first calls are pieces of, where a variant decides by the whole prompt; each call is its own where it is
        None. How clearly: the relative difference between the score of the last chosen block and the best that was left
        out, the least of all groups; equal ones are 1.
        """
        q, k, v = (x.astype(np.float64) for x in (q, k, v))
        by_q, by_k = (q, k) if unrotated is None else (x.astype(np.float64) for x in unrotated)
        out, clear, past = [], [], 0
        for new in calls:
            length = past + new
            part_of = prompt if prompt is not None and length <= prompt else None
            if part_of is None and (new > 1 or past == 0):
                part_of = length
            of = past if self.variant == "cpm.cu" else length
            fine, coarse = self.means(by_k[:, :of], 1), self.means(by_k[:, :of], 4)
            sparse = self.is_sparse(past, length if part_of is None else part_of, len(coarse[0]))
            for r in (r for r in range(past, length) if r % every == 0):
                rows, least = [], 1.0
                for h in range(len(q)):
                    g = h // (len(q) // len(k))
                    if h % (len(q) // len(k)) == 0 and sparse:
                        group = by_q[h : h + len(q) // len(k), r]
                        scores = self.block_scores(group, (fine[g], coarse[g]), r, part_of, past)
                        chosen, margin = self.choose(scores, r)
                        least = min(least, margin)
                    tokens = [t for t in range(r + 1) if not sparse or self.sees(r, t, chosen)]
                    rows.append(self.attend(q[h, r], k[g][tokens], v[g][tokens]))
                out.append(np.concatenate(rows))
                clear.append(least)
            past = length
        return np.array(out), np.array(clear)

    def means(self, keys: np.ndarray, times: int) -> list[list[np.ndarray]]:
        kernel, stride = times * self.config["kernel_size"], times * self.config["kernel_stride"]
        means = []
        for group in keys:
            starts = range(0, len(group) - kernel + 1, stride)
            means.append([group[start : start + kernel].mean(axis=0) for start in starts])
        return means

    def is_sparse(self, past: int, length: int, coarse: int) -> bool:
        if self.variant == "cpm.cu":
            return coarse > 0 and coarse * 4 * self.config["kernel_stride"] > self.config["dense_len"]
        return length >= self.config["dense_len"]

    def visible(self, r: int, times: int, count: int, prompt: int | None) -> int:
        """How many of the first means of `times` kernels token r is scored by."""
        if self.variant == "cpm.cu":
            return count
        kernel, stride = times * self.config["kernel_size"], times * self.config["kernel_stride"]
        if r + 1 < kernel:
            return 0
        whole = (r + 1 - kernel) // stride + 1
        if prompt is not None and prompt % stride == stride - 1:
            whole -= 1
        return min(whole, count)

    def block_scores(
        self,
        queries: np.ndarray,
        means: tuple[list[np.ndarray], list[np.ndarray]],
        r: int,
        prompt: int | None,
        past: int,
    ) -> list[float]:
        """A score for each block up to that of token r; -inf where it cannot be chosen."""
        fine, coarse = means
        block, stride = self.config["block_size"], self.config["kernel_stride"]
        scale = 1 / math.sqrt(queries.shape[1])
        n1, n2 = self.visible(r, 1, len(fine), prompt), self.visible(r, 4, len(coarse), prompt)
        over = fine[:n1] if self.variant == "minicpm4" else coarse[:n2]
        S = [0.0] * len(fine)
        for q in queries:
            if over:
                products = [scale * float(q @ mean) for mean in over]
                m = max(products)
                Z = sum(math.exp(product - m) for product in products)
                for i in range(n1):
                    S[i] += math.exp(scale * float(q @ fine[i]) - m) / Z
        scores = []
        own, local, init = r // block, self.config["window_size"] // block, self.config["init_blocks"]
        for b in range(own + 1):
            per_block = block // stride
            pooled = [S[i] for i in range(b * per_block - 1, (b + 1) * per_block) if 0 <= i < len(fine)]
            score = max(pooled) if pooled else -1.0
            if self.variant == "minicpm4.1":
                if b < init or own - local <= b:
                    score = INFINITE
            else:
                if own - local < b:
                    score = -INFINITE
                if b < init:
                    score = INFINITE
            if self.variant == "cpm.cu" and (b >= math.ceil(past / block) or score == -1.0):
                score = -INFINITE
            scores.append(score)
        return scores

    def choose(self, scores: list[float], r: int) -> tuple[set[int], float]:
        """The blocks with the highest scores, the first of equal ones, and how clear the choice was."""
        count = self.config["topk"]
        if self.variant == "minicpm4.1":
            count += self.config["window_size"] // self.config["block_size"]
        order = sorted((b for b, s in enumerate(scores) if s > -INFINITE), key=lambda b: (-scores[b], b))
        margin = 1.0
        if 0 < count < len(order):
            last, best = scores[order[count - 1]], scores[order[count]]
            if last != best and math.isfinite(last) and last > 0:
                margin = (last - best) / last
        return set(order[:count]), margin

    def sees(self, r: int, t: int, chosen: set[int]) -> bool:
        block, local = self.config["block_size"], self.config["window_size"] // self.config["block_size"]
        if t // block in chosen:
            return True
        if self.variant == "minicpm4":
            return t // block > r // block - local
        if self.variant == "cpm.cu":
            half = max(1, block // 2)
            return t // half >= math.ceil(r / half) - local
        return False

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        scores = [float(q @ key) / math.sqrt(len(q)) for key in k]
        m = max(scores)
        shares = [math.exp(score - m) for score in scores]
        mixed: np.ndarray = sum(share * value for share, value in zip(shares, v, strict=True)) / sum(shares)
        return mixed


def splits(total: int, first: int, piece: int) -> Iterator[int]:
    """A call of `first` tokens and then calls of `piece`, `total` in all."""
    done = min(first, total)
    yield done
    while done < total:
        yield min(piece, total - done)
        done += min(piece, total - done)
