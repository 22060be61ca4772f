#!/usr/bin/env python3
"""Models in half precision with what the reference implementation computes for them, for the numeric mode "aligned".

    python3 tests/golden/aligned.py OUT [--device cuda] [--dtype bfloat16] [--only NAME ...] [--small]

Runs the reference with eager attention, teacher-forced on random prompts, and writes a folder for each model: config.json,
model.safetensors, and reference.safetensors with `tokens.N` (int32) and `logits.N` (the dtype) of prompt N. The models are the
golden ones of this folder, rounded, and random ones of published shapes; those with a few layers tell where differences
begin. `own` is how far the reference is from itself when the prompt stands in a batch of four, in units of the last place at
the largest logit of a row: sums in another order are all that changes there. OUT/ops has single ops with their results. OUT
is read by the golden tests `gpu_aligned` and `gpu_aligned_ops` through YN_ALIGNED_MODELS. Needs torch and transformers, no network.
"""

import argparse
import json
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.models.gemma2 import modeling_gemma2 as gemma
from transformers.models.llama import modeling_llama as plain

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).parent
SMALL = ["llama-mha", "llama-gqa", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "baichuan2"]
# The reference has other kernels for batched products where a length is odd, and others where it is no multiple of 8.
SMALL_PROMPTS = (32, 128, 200, 253, 118, 7)
LARGE_PROMPTS = (256, 320, 384, 333, 253, 500)
DIGITS = {torch.bfloat16: 7, torch.float16: 10}


def llama(layers, tied=True):
    return LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers,
                       num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
                       rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
                       rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                                        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                        "original_max_position_embeddings": 8192})


def qwen2(layers):
    return Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers,
                       num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768,
                       rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=False, bos_token_id=1, eos_token_id=2,
                       rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


LARGE = {
    "llama-1b-1-layer": llama(1),
    "llama-1b-4-layers": llama(4),
    "llama-1b": llama(16),
    "llama-1b-untied": llama(16, tied=False),
    "qwen2-05b": qwen2(24),
}


def fill(model, seed):
    """As trained models behave: attention that picks keys, a residual stream that grows from small embeddings."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, device=device, dtype=torch.float32)
            if p.dim() == 1:
                noise = noise * 0.1 + (0.0 if name.endswith("bias") else 0.7)
            elif "embed_tokens" in name or "lm_head" in name:
                noise *= 0.02
            else:
                gain = 1.0
                if "q_proj" in name or "k_proj" in name:
                    gain = 1.4
                if "o_proj" in name or "down_proj" in name:
                    gain = 1.0 / (2 * layers) ** 0.5
                noise *= gain / p.shape[1] ** 0.5
            p.copy_(noise)


def units(found, expected, dtype):
    """Largest distance of each row, in units of the last place at the largest logit of the row."""
    scale = expected.float().abs().amax(dim=-1)
    unit = torch.exp2(torch.floor(torch.log2(scale)) - DIGITS[dtype])
    return ((found.float() - expected.float()).abs().amax(dim=-1) / unit).max().item()


@torch.no_grad()
def references(model, lengths, dtype, seed):
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    vocab, tensors, own = model.config.vocab_size, {}, 0.0
    for i, length in enumerate(lengths):
        batch = torch.randint(3, vocab, (4, length), generator=generator)
        alone = model(batch[:1].to(device), use_cache=False).logits[0]
        assert alone.dtype == dtype and bool(torch.isfinite(alone.float()).all())
        beside = model(batch.to(device), use_cache=False).logits[0]
        own = max(own, units(beside, alone, dtype))
        tensors[f"tokens.{i}"] = batch[0].to(torch.int32)
        tensors[f"logits.{i}"] = alone.cpu().contiguous()
    spread = alone.float().std(dim=-1).mean().item()
    largest = alone.float().abs().amax(dim=-1).mean().item()
    return tensors, own, (spread, largest)


def reference_model(folder, dtype, device):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.to(device).eval()


def finish(folder, model, lengths, dtype, seed):
    begin = time.time()
    tensors, own, (spread, largest) = references(model, lengths, dtype, seed)
    save_file(tensors, folder / "reference.safetensors")
    (folder / "own.txt").write_text(f"{own}\n")
    print(f"{folder.name}: own {own:.2f}, logit spread {spread:.2f}, largest {largest:.2f}, "
          f"{time.time() - begin:.1f} s", flush=True)


def write_config(folder, source, dtype):
    data = json.loads(source.read_text())
    data.pop("dtype", None)
    data["torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(data, indent=1) + "\n")


def make_small(out, name, args):
    source, folder = HERE / f"tiny-{name}", out / f"tiny-{name}"
    folder.mkdir(parents=True)
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(path))
    tensors = {key: value.to(args.dtype) for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, source / "config.json", args.dtype)
    readable = folder if name != "baichuan2" else as_llama(folder, tensors)
    finish(folder, reference_model(readable, args.dtype, args.device), SMALL_PROMPTS, args.dtype, 5)


def as_llama(folder, tensors):
    """The reference has no Baichuan 2: its Llama with the packed matrix split and the rows of the head of length 1."""
    config = json.loads((folder / "config.json").read_text())
    packed = [key for key in tensors if "W_pack" in key]
    for key in packed:
        for part, rows in zip("qkv", tensors.pop(key).chunk(3)):
            tensors[key.replace("W_pack", f"{part}_proj")] = rows.contiguous()
    head = tensors["lm_head.weight"].double()
    length = head.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    tensors["lm_head.weight"] = (head / length).float().to(tensors["lm_head.weight"].dtype)
    readable = folder / "as_llama"
    readable.mkdir()
    save_file(tensors, readable / "model.safetensors", metadata={"format": "pt"})
    config.update(architectures=["LlamaForCausalLM"], model_type="llama")
    (readable / "config.json").write_text(json.dumps(config))
    return readable


def make_large(out, name, args):
    folder, config = out / name, LARGE[name]
    config.architectures = ["Qwen2ForCausalLM" if config.model_type == "qwen2" else "LlamaForCausalLM"]
    config.dtype = args.dtype
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=args.dtype, attn_implementation="eager").eval()
    fill(model, 7)
    folder.mkdir(parents=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    state = {key: value.contiguous() for key, value in model.state_dict().items() if key not in tied}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.to_json_file(folder / "config.json", use_diff=False)
    write_config(folder, folder / "config.json", args.dtype)
    del model, state
    # Read back, so that both sides see the same files.
    finish(folder, reference_model(folder, args.dtype, args.device), LARGE_PROMPTS, args.dtype, 6)


class Ops:
    """Single ops of the reference, a file each: inputs, the result `y`, and numbers as metadata."""

    def __init__(self, folder, dtype, device):
        folder.mkdir(parents=True)
        self.folder, self.dtype, self.device = folder, dtype, device
        self.generator = torch.Generator().manual_seed(11)

    def noise(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def save(self, name, tensors, numbers=()):
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(tensors, self.folder / f"{name}.safetensors", metadata={key: str(value) for key, value in numbers})

    def products(self):
        shapes = [(2048, 2048, False), (512, 2048, False), (8192, 2048, False), (2048, 8192, False), (32000, 2048, False),
                  (896, 896, True), (128, 896, True), (4864, 896, False), (896, 4864, False), (96, 64, False)]
        for n, k, biased in shapes:
            w, b = self.noise(n, k) / k**0.5, self.noise(n) if biased else None
            for m in (1, 16, 256, 333):
                x = self.noise(1, m, k)
                tensors = {"x": x[0], "w": w, "y": torch.nn.functional.linear(x, w, b)[0]}
                self.save(f"linear-{m}x{n}x{k}", tensors | ({"b": b} if biased else {}))

    def norms(self):
        for cols in (64, 128, 896, 2048, 8192):
            x, w = 3 * self.noise(1, 256, cols), self.noise(cols)
            for name, norm in (("plain", plain.LlamaRMSNorm(cols, 1e-5)), ("gemma", gemma.Gemma2RMSNorm(cols, 1e-5))):
                norm.weight.data = w
                self.save(f"norm-{name}-{cols}", {"x": x[0], "w": w, "y": norm(x)[0]})

    def activations(self):
        for name in ("silu", "gelu_pytorch_tanh"):
            x = 3 * self.noise(64, 2 * 1024)
            gate, up = x.chunk(2, dim=-1)
            y = plain.ACT2FN[name](gate) * up
            self.save(f"act-{name}", {"x": x, "y": y})

    def attention(self):
        cases = [(32, 8, 64, 256), (32, 8, 64, 333), (14, 2, 64, 320), (4, 4, 128, 384), (4, 2, 256, 192), (4, 2, 24, 100),
                 (4, 4, 16, 128), (14, 2, 64, 253), (32, 8, 64, 500), (4, 4, 128, 33), (4, 1, 16, 77), (14, 2, 64, 1004)]
        for heads, kv_heads, dim, length in cases:
            self.attention_case((heads, kv_heads, dim, length), None)
        self.attention_case((8, 4, 128, 256), 50.0)

    def attention_case(self, shape, cap):
        heads, kv_heads, dim, length = shape
        x = self.noise(1, length, (heads + 2 * kv_heads) * dim)
        # As projections leave them: the reference's kernels hang on how tensors lie.
        split = x.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q, k, v = (part.contiguous().view(1, length, -1, dim).transpose(1, 2) for part in split)
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
        angles = torch.arange(length, dtype=torch.float)[:, None] * frequencies[None, :]
        table = torch.cat((angles.cos(), angles.sin()), dim=-1)
        cos, sin = (torch.cat((part, part), dim=-1).to(self.device, self.dtype)[None]
                    for part in (angles.cos(), angles.sin()))
        q, k = plain.apply_rotary_pos_emb(q, k, cos, sin)
        mask = torch.full((length, length), torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device).triu(1)
        module = torch.nn.Module().eval()
        module.num_key_value_groups = heads // kv_heads
        more = {"softcap": cap} if cap else {}
        forward = gemma.eager_attention_forward if cap else plain.eager_attention_forward
        y, _ = forward(module, q, k, v, mask[None, None], scaling=dim**-0.5, **more)
        turned = q[0].transpose(0, 1).reshape(length, -1)
        numbers = [("heads", heads), ("kv_heads", kv_heads), ("scale", dim**-0.5), ("cap", cap or 0)]
        name = f"attention-{heads}-{kv_heads}-{dim}-{length}" + ("-cap" if cap else "")
        self.save(name, {"x": x[0], "table": table, "q": turned, "y": y[0].reshape(length, -1)}, numbers)


@torch.no_grad()
def make_ops(args):
    ops = Ops(args.out / "ops", args.dtype, args.device)
    ops.norms()
    ops.activations()
    ops.attention()
    ops.products()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", type=lambda name: getattr(torch, name))
    parser.add_argument("--only", nargs="*", help="make these models alone")
    parser.add_argument("--small", action="store_true", help="the golden models alone")
    args = parser.parse_args()
    begin = time.time()
    if not args.only:
        make_ops(args)
    for name in SMALL:
        if not args.only or f"tiny-{name}" in args.only:
            make_small(args.out, name, args)
    for name in [] if args.small else LARGE:
        if not args.only or name in args.only:
            make_large(args.out, name, args)
    print(f"all in {time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
