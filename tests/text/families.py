#!/usr/bin/env python3
"""Makes families.json and settings.json of tests/text with the reference implementation.

    python3 tests/text/families.py

families.json: small tokenizers as the families of models have them, with ids and decoded texts. settings.json: what files
beside tokenizer.json make of the tokenizers that make.py wrote: added tokens with their flags, special tokens under their
names, truncation and padding, chat templates by name. Needs what make.py needs.
"""

import copy
import json
import pathlib
import tempfile

import transformers
from make import HERE, SPECIALS, corpus, write
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["", " ", "Hello world", " leading and  double  spaces ", "The fox ran.\nUnder the moon\n\n\nhouse", "don't we'll I'M",
         "1234567 3.14", "一念引擎", "🦊 👍🏽 é e\u0301 ﬁ", "a\t\r\nb\u00a0c\u200b", "<s> x</s>y <unk>", "▁meta ▁", "fox foxes"]
PROBES = ["a <|x|> b", "a<|x|>b", " <|x|>  <|x|> ", "the  fox foxes.", "zz top zz", "<s> a </s>b", "<img><pad>", "a . b , c"]
X = {"content": "<|x|>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
CHAT = {"messages": [{"role": "user", "content": "c"}]}
SHOW = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ image_token }}|{{ 'tools' if tools }}"


def byte_level(split, normalizer=None):
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder, t.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    t.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=330, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"]))
    return t


def pieces(scheme):
    """SentencePiece's BPE with byte fallback; `scheme` is where the leading space comes from."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "replace":
        t.normalizer, t.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    t.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=390, show_progress=False, limit_alphabet=60,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]))
    made = json.loads(t.to_str())
    made["added_tokens"] = [a for a in made["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(made))
    strip = [] if scheme == "replace" else [decoders.Strip(" ", 1, 0)]
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return t


def unigram():
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    t.train_from_iterator(corpus(), trainers.UnigramTrainer(
        vocab_size=160, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>"))
    return t


def word_pieces():
    t = Tokenizer(models.WordPiece(unk_token="<unk>"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=160, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"]))
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=None, special_tokens=[("<s>", 1), ("</s>", 2)])
    return t


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES = {"qwen": lambda: byte_level(QWEN, normalizers.NFC()), "mistral": lambda: pieces("first"), "yi": lambda: pieces("always"),
            "gemma": lambda: pieces("replace"), "unigram": unigram, "word_pieces": word_pieces}


def cases(tokenizer, texts):
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        found.append([text, ids, tokenizer(text, add_special_tokens=False)["input_ids"],
                      tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids)])
    return found


def open_with(tokenizer, files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"tokenizer.json": tokenizer, **files}.items():
            path = pathlib.Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def settings(vocabulary):
    """Files beside tokenizer.json; `change` is what becomes different in tokenizer.json itself."""
    def config(**more):
        return {"tokenizer_config.json": {**SPECIALS, "clean_up_tokenization_spaces": False, **more}}

    flags = [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}, {"special": True}]
    yield from (config(added_tokens_decoder={str(vocabulary): {**X, **f}, str(vocabulary + 1): {**X, **f, "content": "zz top"}})
                for f in flags)
    yield config(extra_special_tokens=["<|x|>", "fox"], image_token="<img>")
    yield config(extra_special_tokens={"image_token": "<|x|>"})
    yield config(additional_special_tokens=["<|x|>", "zz top"])
    yield config(pad_token="<pad>", add_bos_token=False, add_eos_token=True)
    yield config(split_special_tokens=True)
    yield config(added_tokens_decoder={}, pad_token={"__type": "AddedToken", **X, "content": "<pad>"})
    yield config(clean_up_tokenization_spaces=True)
    yield {}
    yield {"special_tokens_map.json": {"bos_token": {**X, "content": "<s>"}, "pad_token": "<|x|>"}}
    yield {**config(), "added_tokens.json": {"<|x|>": vocabulary}}
    padding = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
               "pad_token": "</s>"}
    yield {**config(), "change": {"truncation": {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
                                  "padding": padding}}
    named = [{"name": "tool_use", "template": "T" + SHOW}, {"name": "default", "template": "D" + SHOW}]
    yield config(chat_template=named)
    yield {**config(chat_template="C" + SHOW), "chat_template.jinja": "J" + SHOW}
    yield {**config(), "chat_template.jinja": "J" + SHOW, "additional_chat_templates/tool_use.jinja": "A" + SHOW}


def outcome(name, files):
    tokenizer = json.loads((HERE / name / "tokenizer.json").read_text())
    files = copy.deepcopy(files)
    tokenizer.update(files.pop("change", {}))
    made = open_with(tokenizer, files)
    chats = []
    for tools in (None, [{"type": "function"}]):
        template = None if made.chat_template else SHOW
        chats.append(made.apply_chat_template(CHAT["messages"], tools=tools, chat_template=template, tokenize=False))
    return {"cases": cases(made, PROBES), "chats": chats}


def main():
    versions = {"transformers": transformers.__version__}
    families = {}
    for name, make in FAMILIES.items():
        text = make().to_str()
        made = open_with(text, {"tokenizer_config.json": SPECIALS})
        families[name] = {"tokenizer": json.loads(text), "cases": cases(made, TEXTS)}
    write(HERE / "families.json", {"versions": versions, "specials": SPECIALS, "families": families})
    made = []
    for name in ("byte_bpe", "metaspace"):
        vocabulary = Tokenizer.from_file(str(HERE / name / "tokenizer.json")).get_vocab_size()
        made += [{"base": name, "files": files, **outcome(name, files)} for files in settings(vocabulary)]
    write(HERE / "settings.json", {"versions": versions, "chat": CHAT, "template": SHOW, "settings": made})


if __name__ == "__main__":
    main()
