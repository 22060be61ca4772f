#!/usr/bin/env python3
"""Loads the demo model with transformers, asks held-out questions and reports exact-answer accuracy.

    python3 check.py [--model DIR] [--questions 2000]

Writes accuracy.json into --out (default: the model folder) and prints a few answers. The exam's seeds are never used for training.
"""

import argparse
import collections
import json
import pathlib
import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import make_text

EXAM_SEED = 987_654_321
SHOWN = ["Tell me a story about a dragon.", "Tell me a story about a fox and a lantern.", "Who are you?",
         "Tell me a story about a brave girl named Lily.", "Hello!", "Count to seven.", "What is the capital of France?",
         "Tom has a red kite. Mia has a blue ball. Tom went to the park. Mia went to the river. Where is the kite?"]


def answers(model, tokenizer, chats, limit):
    """Greedy answers of equal-length-padded batches, without special tokens."""
    out = []
    for start in range(0, len(chats), 256):
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
                 for c in chats[start:start + 256]]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
                          return_token_type_ids=False).to(model.device)
        with torch.no_grad():
            ids = model.generate(**batch, max_new_tokens=limit, do_sample=False)
        out += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    return out


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, default=here)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--questions", type=int, default=2000)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device).eval()
    rng = random.Random(EXAM_SEED)
    exams = [make_text.exam(rng) for _ in range(args.questions)]
    given = answers(model, tokenizer, [e[0] for e in exams], 40)
    right, asked, wrong = collections.Counter(), collections.Counter(), []
    for (messages, expected, kind), answer in zip(exams, given):
        asked[kind] += 1
        right[kind] += answer.strip() == expected
        if answer.strip() != expected and len(wrong) < 10:
            wrong.append({"question": messages[0]["content"], "expected": expected, "answer": answer})
    total = sum(right.values()) / len(exams)
    report = {"questions": len(exams), "exact": round(total, 4),
              "by_kind": {k: {"asked": asked[k], "exact": round(right[k] / asked[k], 4)} for k in sorted(asked)},
              "wrong": wrong}
    ((args.out or args.model) / "accuracy.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "wrong"}, indent=1))
    for question, answer in zip(SHOWN, answers(model, tokenizer, [[{"role": "user", "content": q}] for q in SHOWN], 220)):
        print(f"> {question}\n{answer}\n")


if __name__ == "__main__":
    main()
