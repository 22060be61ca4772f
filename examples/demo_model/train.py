#!/usr/bin/env python3
"""Trains the demo model: text, tokenizer, a small Llama, an exam on held-out stories, and the files an engine loads.

    python3 train.py --out DIR [--minutes 5.5] [--resume]     one GPU (bf16); falls back to the CPU

Writes config.json, generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json and
train_log.json into DIR. A checkpoint (state.pt) is written every minute into --work and --resume continues from it.
Needs torch, transformers, tokenizers, numpy.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import random
import time

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import make_text

PAD, BEGIN, END, SYSTEM, USER, ASSISTANT = SPECIAL = [
    "<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCAB, ROW = 2048, 1024
USER_WEIGHT = 0.1  # the user's words are mostly chance; a little of them still teaches the language
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


def render(turns):
    """The training text of a chat, exactly as the chat template renders it."""
    if turns[0][0] == "text":
        return BEGIN + turns[0][1] + END
    return BEGIN + "".join(f"<|{role}|>{text}{END}" for role, text in turns)


def train_tokenizer(path, chats):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    rng = random.Random(7)
    tokenizer.train_from_iterator((text for _ in range(chats) for _, text in make_text.chat(rng)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END, "pad_token": PAD,
        "add_bos_token": True, "model_max_length": ROW, "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    return tokenizer


def make_rows(job):
    """Whole chats packed into rows of ROW + 1 tokens: (tokens u16, weight class u8: 0 pad, 1 user, 2 assistant)."""
    path, seed, chats = job
    tokenizer, rng = Tokenizer.from_file(path), random.Random(seed)
    role_ids = [tokenizer.token_to_id(t) for t in SPECIAL]
    rows, kinds, row, kind = [], [], [], []
    for start in range(0, chats, 1000):
        texts = [render(make_text.chat(rng)) for _ in range(min(1000, chats - start))]
        for enc in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = np.array(enc.ids, dtype=np.uint16)
            if len(ids) > ROW:
                continue
            mark = np.where((ids >= role_ids[3]) & (ids <= role_ids[5]), np.arange(len(ids)), 0)
            last = ids[np.maximum.accumulate(mark)]
            learn = ((last == role_ids[5]) & (mark == 0)) | (last == role_ids[1])
            if sum(map(len, row)) + len(ids) > ROW + 1:
                rows.append(pad(row)), kinds.append(pad(kind))
                row, kind = [], []
            row.append(ids), kind.append(np.where(learn, 2, 1).astype(np.uint8))
    return np.stack(rows), np.stack(kinds)


def pad(parts):
    joined = np.concatenate(parts)
    return np.pad(joined, (0, ROW + 1 - len(joined)))


def build_data(path, chats, seed):
    cores = os.cpu_count() or 1
    pieces = 4 * cores
    jobs = [(str(path / "tokenizer.json"), seed * 100_000 + i, max(chats // pieces, 20)) for i in range(pieces)]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        parts = pool.map(make_rows, jobs, chunksize=1)
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def build_model(args):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=args.hidden, intermediate_size=args.inner, num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64, num_key_value_heads=args.hidden // 128, head_dim=64,
        max_position_embeddings=ROW, rms_norm_eps=1e-5, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation="sdpa")
    torch.manual_seed(11)
    return LlamaForCausalLM(config)


def loss_of(model, batch, kinds):
    import torch.nn.functional as F
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
    each = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    kind = kinds[:, 1:].flatten()
    answer = (kind == 2).float()
    weight = answer + USER_WEIGHT * (kind == 1).float()
    return (each * weight).sum() / weight.sum(), ((each * answer).sum() / answer.sum()).detach()


def train(args, model, rows, kinds, device):
    """Cosine over wall time, so the run always ends when promised. Returns a log for train_log.json."""
    import torch
    rows = torch.from_numpy(rows.astype(np.int16)).to(device)
    kinds = torch.from_numpy(kinds).to(device)
    model.to(device).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda")
    state, budget, before, step = args.work / "state.pt", args.minutes * 60, 0.0, 0
    if args.resume and state.exists():
        saved = torch.load(state, map_location=device)
        model.load_state_dict(saved["model"]), optimizer.load_state_dict(saved["optimizer"])
        before, step = saved["seconds"], saved["step"]
    compute = torch.compile(loss_of) if args.compile else loss_of
    generator = torch.Generator(device=device).manual_seed(step + 1)
    log, begun, saved_at, told_at = [], time.time() - before, time.time(), 0.0
    while (seconds := time.time() - begun) < budget and step < args.max_steps:
        rate = args.lr * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * seconds / budget)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(rows), (args.batch,), device=device, generator=generator)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss, answer_loss = compute(model, rows[pick].long(), kinds[pick])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0 and time.time() - told_at > 10:
            told_at = time.time()
            log.append({"step": step, "seconds": round(told_at - begun, 1), "loss": round(loss.item(), 4),
                        "answer_loss": round(answer_loss.item(), 4)})
            print(json.dumps(log[-1]), flush=True)
        if time.time() - saved_at > 60:
            saved_at = time.time()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "seconds": seconds,
                        "step": step}, state)
    return {"steps": step, "seconds": round(time.time() - begun, 1), "tokens_seen": step * args.batch * ROW,
            "final_loss": round(loss.item(), 4), "final_answer_loss": round(answer_loss.item(), 4), "log": log}


def save(model, path):
    """bf16 weights and a config in the layout of published checkpoints."""
    import torch
    model.to("cpu").to(torch.bfloat16).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config.pop("rope_parameters", None)
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    config["rope_theta"] = 10000.0
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (path / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0, "do_sample": False}, indent=2) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp"), help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=5.5)
    parser.add_argument("--chats", type=int, default=600_000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--inner", type=int, default=448)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    train_tokenizer(args.out, min(args.chats, 20_000))
    rows, kinds = build_data(args.out, args.chats, seed=1)
    prepared = time.time() - begun
    print(f"{len(rows)} rows of {ROW} tokens, {100 * (kinds == 2).mean():.0f} % answers, in {prepared:.0f} s", flush=True)
    import torch
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(args)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size} parameters on {device}", flush=True)
    log = train(args, model, rows, kinds, device)
    save(model, args.out)
    log.update(parameters=size, device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
               rows=len(rows), chats=args.chats, prepare_seconds=round(prepared, 1), torch=torch.__version__)
    (args.out / "train_log.json").write_text(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
