#!/usr/bin/env python3
"""Makes processors.json: what transformers' logits processors leave of random rows.

    python3 tests/conformance/make.py

A thousand rows for each processor and a thousand for all together, in the order of `sample`: repetition penalty,
temperature, top_k, top_p, min_p. The logits are made from the row's seed here and in the test alike. A row is
[seed, scale, repetition, temperature, top_k, top_p, min_p, mask of the tokens that are left, probability of the largest].
Rows on which rounding could decide are left out. Needs torch and transformers.
"""

import json
import pathlib
import random

import torch
import transformers
from transformers import (MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
                          TopKLogitsWarper, TopPLogitsWarper)

VOCABULARY = 32
ROWS = 1000
MASK = (1 << 64) - 1


class SplitMix64:
    """The same stream as base::rng."""

    def __init__(self, state):
        self.state = state

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def unit(self):
        return (self.next() >> 40) / 16777216.0


def row(seed, scale):
    """Logits, then eight tokens that came before."""
    rng = SplitMix64(seed)
    logits = [(2.0 * rng.unit() - 1.0) * scale for _ in range(VOCABULARY)]
    return torch.tensor([logits], dtype=torch.float32), [rng.next() % VOCABULARY for _ in range(8)]


def process(logits, seen, p, nudge=0.0):
    x = logits
    if p["repetition"] != 1.0:
        x = RepetitionPenaltyLogitsProcessor(p["repetition"])(torch.tensor([seen]), x)
    x = TemperatureLogitsWarper(p["temperature"])(None, x)
    if p["top_k"]:
        x = TopKLogitsWarper(p["top_k"])(None, x)
    if p["top_p"] < 1.0:
        x = TopPLogitsWarper(min(1.0, p["top_p"] + nudge))(None, x)
    if p["min_p"] > 0.0:
        x = MinPLogitsWarper(min(1.0, max(0.0, p["min_p"] + nudge)))(None, x)
    return torch.softmax(x, dim=-1)[0]


def kept(probabilities):
    return sum(1 << i for i, p in enumerate(probabilities.tolist()) if p > 0.0)


def rows(kind, first_seed):
    rng = random.Random(kind)
    out = []
    seed = first_seed
    while len(out) < ROWS:
        seed += 1
        scale = rng.choice([2.0, 5.0, 12.0])
        wants = lambda name: kind in (name, "all")
        p = {
            "repetition": rng.choice([0.7, 1.1, 1.3, 2.0]) if wants("repetition") else 1.0,
            "temperature": rng.choice([0.3, 0.7, 1.0, 1.5, 4.0]) if wants("temperature") else 1.0,
            "top_k": rng.randint(1, VOCABULARY + 4) if wants("top_k") else 0,
            "top_p": rng.choice([0.1, 0.5, 0.8, 0.95, 0.999]) if wants("top_p") else 1.0,
            "min_p": rng.choice([0.01, 0.05, 0.2, 0.6]) if wants("min_p") else 0.0,
        }
        logits, seen = row(seed, scale)
        plain = process(logits, seen, p)
        if any(kept(process(logits, seen, p, nudge)) != kept(plain) for nudge in (-1e-5, 1e-5)):
            continue
        out.append([seed, scale, *p.values(), f"{kept(plain):x}", round(plain.max().item(), 6)])
    return out


def main():
    kinds = ["repetition", "temperature", "top_k", "top_p", "min_p", "all"]
    made = {kind: rows(kind, 1_000_000 * i) for i, kind in enumerate(kinds)}
    path = pathlib.Path(__file__).with_name("processors.json")
    text = ",\n".join(f'"{kind}": [\n' + ",\n".join(json.dumps(r, separators=(",", ":")) for r in made[kind]) + "\n]" for kind in kinds)
    path.write_text(f'{{"transformers": "{transformers.__version__}",\n{text}}}\n')
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
