#!/usr/bin/env python3
"""Makes the tiny golden models and their expected outputs with the reference implementation.

    python3 tests/golden/make.py [--out tests/golden] [--only NAME ...] [--demo examples/demo_model]

Random-weight models in float32, each with an expected.json beside the weights. Two of them are Llamas:

  tiny-llama-mha   as Llama-2: one key head per query head, untied output head, plain rope, one weight file
  tiny-llama-gqa   as Llama-3: two query heads per key head, tied output head, explicit head_dim,
                   llama3 rope scaling that already matters within 128 positions, sharded weights

and one, under 1 MB, stands for each other family, with windows of 8 tokens, soft caps that bite, and
random biases and norm weights: see families.py.

With --demo DIR it also writes demo.json: chat prompts rendered by the demo model's template, their
token ids, and greedy answers computed from the bf16 weights widened to float32.
Everything is computed on the CPU in float32 with eager attention. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

sys.dont_write_bytecode = True
import families  # noqa: E402

GREEDY_TOKENS = 64
PROMPT_LENGTHS = (1, 17, 40, 100)
# A greedy step whose best two logits are closer than this (relative to the largest magnitude) could
# flip under another summation order; the seed is advanced until no step of any prompt is that close.
MIN_RELATIVE_MARGIN = 2e-3

MODELS = {
    "tiny-llama-mha": {
        "config": dict(
            vocab_size=320, hidden_size=64, intermediate_size=176, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
            rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "extra": {"rope_theta": 10000.0},
        "shard_size": "50MB",
    },
    "tiny-llama-gqa": {
        "config": dict(
            vocab_size=448, hidden_size=96, intermediate_size=160, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
            rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 50000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        ),
        # The layout that published checkpoints use; readers of either layout find their keys.
        "extra": {
            "rope_theta": 50000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
        "shard_size": "400KB",
    },
    **families.MODELS,
}

DEMO_CHATS = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "user", "content": "Tell me a story about a dragon."}],
    [{"role": "user", "content": "Tom has a red kite. Mia has a blue ball. Tom went to the park. "
                                 "Mia went to the river. Where is Mia?"}],
    [
        {"role": "system", "content": "You are a helpful storyteller."},
        {"role": "user", "content": "Tell me a story about a fox and a lantern."},
    ],
    [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am the Yinian demo model, a very small language model."},
        {"role": "user", "content": "Anna found three shells. Anna gave the green cup to Ben. Who has the cup?"},
    ],
    [{"role": "user", "content": "Ciao, che cos'è una \u706b\u9f99? \U0001f409"}],
]


def nine_digits(values):
    return [float(f"{v:.9g}") for v in values]


def random_model(config, seed):
    """Weights scaled so that attention is peaked and logits are spread over several units."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                middle = 0.0 if name.endswith("bias") or config.model_type.startswith("gemma") else 1.0
                middle += 0.6 if "q_norm" in name or "k_norm" in name else 0.0
                p.copy_(middle + 0.25 * torch.randn(p.shape, generator=generator))
                continue
            fan_in = p.shape[1]
            gain = 1.0
            if "q_proj" in name or "k_proj" in name:
                gain = 1.6
            if "embed" in name:
                gain = fan_in**0.5 * (0.35 if config.tie_word_embeddings else 1.0)
                if config.model_type.startswith("gemma"):
                    gain = 0.3
            if "lm_head" in name:
                gain = 3.0
            p.copy_(torch.randn(p.shape, generator=generator) * gain / fan_in**0.5)
    return model


def greedy(model, prompt, count):
    """Plain recomputation from position 0 at each step, so no cache code is part of the reference."""
    ids, smallest = list(prompt), float("inf")
    with torch.no_grad():
        for _ in range(count):
            last = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            best = torch.topk(last, 2)
            margin = (best.values[0] - best.values[1]).item()
            smallest = min(smallest, margin / last.abs().max().item())
            ids.append(int(best.indices[0]))
    return ids[len(prompt):], smallest


def find_prompt(model, vocab, length, seed):
    """A random prompt whose whole greedy answer is clear of near-ties; advances the seed until one is."""
    for attempt in range(200):
        generator = torch.Generator().manual_seed(seed * 1000 + attempt)
        prompt = torch.randint(3, vocab, (length,), generator=generator).tolist()
        answer, margin = greedy(model, prompt, GREEDY_TOKENS)
        if margin > MIN_RELATIVE_MARGIN and len(set(answer)) > 8:
            return prompt, answer, margin
    raise SystemExit(f"no clear prompt of length {length} in 200 tries")


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__,
            "dtype": "float32", "attention": "eager", "device": "cpu"}


def make_model(out, name, seed):
    spec = MODELS[name]
    config = spec.get("class", LlamaConfig)(**spec["config"], bos_token_id=1, eos_token_id=2, torch_dtype="float32",
                                            attn_implementation="eager")
    model = random_model(config, seed)
    raw_head = families.unit_head(model) if name == "tiny-baichuan2" else None
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    model.save_pretrained(folder, max_shard_size=spec.get("shard_size", "50MB"))
    patch_config(folder / "config.json", spec.get("drop", ["rope_parameters"]), spec["extra"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for length in PROMPT_LENGTHS:
        prompt, answer, margin = find_prompt(model, config.vocab_size, length, seed + length)
        positions = sorted({0, length // 2, length - 1})
        with torch.no_grad():
            logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
        cases.append({"prompt": prompt, "logit_positions": positions,
                      "logits": [nine_digits(logits[p].tolist()) for p in positions],
                      "greedy": answer, "min_margin": nine_digits([margin])[0]})
    write_json(folder / "expected.json", {
        "made_with": versions(), "seed": seed,
        "margin": "smallest (best - second) / largest |logit| over all greedy steps of the case",
        "cases": cases})
    if raw_head is not None:
        families.as_baichuan(folder, raw_head)
    size = sum(f.stat().st_size for f in folder.iterdir())
    spread = logits.std(dim=-1).mean().item()
    print(f"{name}: {size} bytes, {len(cases)} cases, logit spread {spread:.2f}, "
          f"smallest margin {min(c['min_margin'] for c in cases):.4f}")


def patch_config(path, drop, extra):
    """Writes the keys in the layout of published checkpoints (top-level rope_theta, rope_scaling)."""
    data = json.loads(path.read_text())
    for key in drop:
        data.pop(key, None)
    data.update(extra)
    data.setdefault("torch_dtype", data.pop("dtype", "float32"))
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def write_json(path, data):
    """One case per line: short diffs without a line per number."""
    head = {k: v for k, v in data.items() if k != "cases"}
    lines = [json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in data["cases"]]
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    path.write_text(text + ',\n "cases": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def make_demo(out, demo):
    tokenizer = AutoTokenizer.from_pretrained(demo)
    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for messages in DEMO_CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        answer, margin = greedy(model, ids, GREEDY_TOKENS)
        cases.append({"messages": messages, "rendered": text, "prompt": ids, "greedy": answer,
                      "greedy_text": tokenizer.decode(answer, skip_special_tokens=False),
                      "min_margin": nine_digits([margin])[0]})
    write_json(out / "demo.json", {"made_with": versions(), "model": "examples/demo_model",
                                   "note": "greedy ignores end tokens; text keeps special tokens", "cases": cases})
    print(f"demo.json: {len(cases)} chats, smallest margin {min(c['min_margin'] for c in cases):.5f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="make these models alone")
    parser.add_argument("--demo", type=pathlib.Path, help="write demo.json from this model folder only")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    if args.demo:
        make_demo(args.out, args.demo)
        return
    for index, name in enumerate(MODELS):
        if name in args.only:
            make_model(args.out, name, args.seed + index)


if __name__ == "__main__":
    main()
