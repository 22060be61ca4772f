#!/usr/bin/env python3
"""Makes tests/text's expectations with the reference implementation.

    python3 tests/text/make.py

chat.json: chat templates, messages, and what transformers renders. The templates are our own; between them they use the
constructs that published templates use. jinja/: one template a line (escapes as in Python) and what the chats of
chats.json make of it, expressions.txt with the first and statements.txt with the others; of refused.txt the reference makes
something too, but we say that we do not. continued.json: final messages to continue. byte_bpe/ and metaspace/: two small tokenizers trained on text made below, one as
Llama 3's (byte-level, split by a regular expression), one as Llama 2's (metaspace, byte fallback), each with an
expected.json of ids and decoded texts. Needs transformers, tokenizers and jinja2; no weights.
"""

import json
import pathlib
import random

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

PLAIN = [{"role": "user", "content": "  What is 2 < 3 & \"so\"?\n"}]
TURNS = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Héllo, wörld 🦊"},
    {"role": "assistant", "content": " Hi!\n"},
    {"role": "user", "content": "<b>tags</b> & 'quotes'"},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": [{"type": "text", "text": "four"}]},
]
CALLS = [
    {"role": "user", "content": "Weather in Köln?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "id": "call_1", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2, "wind": True, "at": None, "max": 1.5}}}]},
    {"role": "tool", "name": "weather", "tool_call_id": "call_1", "content": "{\"t\": 21}"},
    {"role": "user", "content": "Thanks"},
]
THOUGHTS = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "<think>\nlong\nthought\n</think>\n\nBecause."},
    {"role": "user", "content": "And?"},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city <daily>", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "a'b"]}, "days": {"type": "integer"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]

TEMPLATES = {
    "brackets": "{% if messages[0]['role'] == 'system' %}{% set lead = '((' + messages[0]['content'] + '))\\n' %}{% else %}{% set lead = '' %}{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[Q] ' + (lead if loop.index0 < 2 else '') + m['content'].strip() + ' [/Q]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% elif not loop.first %}{{ raise_exception('no ' + m['role'] + ' here') }}{% endif %}{% endfor %}",
    "headers": """{%- macro head(who) -%}{{ '[h]' ~ who ~ '[/h]\n\n' }}{%- endmacro -%}
{{- bos_token }}
{%- set date = date_string if date_string is defined else '1 Jan 2024' %}
{%- set said = (messages | first).content | trim if (messages | first).role == 'system' else '' %}
{{- head('system') ~ 'It is ' ~ date ~ '.\n' ~ said }}
{%- if tools is not none and tools is sequence %}
    {%- for tool in tools %}
        {{- '\n' ~ (tool | tojson(indent=4)) }}
    {%- endfor %}
{%- endif %}
{{- '[stop]' }}
{%- for m in (messages[1:] if said else messages) %}
    {%- if m.tool_calls is defined %}
        {%- if (m.tool_calls | length) > 1 %}{{ raise_exception('more than one call') }}{% endif %}
        {%- with call = m['tool_calls'][0]['function'] %}
            {{- head(m.role) ~ call.name ~ '(' ~ (call.arguments | tojson) ~ ')' }}
        {%- endwith %}
    {%- elif m.content is string %}
        {{- head('python' if m.role in ['tool', 'function'] else m.role) }}{{ m.content | trim }}
    {%- elif m.content is iterable or m.content is mapping %}
        {{- head(m.role) ~ (m.content | tojson) }}
    {%- endif %}
    {{- '[stop]' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}
""",
    "im": """{#- the question that the last answers belong to -#}
{%- set seen = namespace(asked=-1) %}
{%- for m in messages | reverse %}
    {%- if seen.asked < 0 and m.role == 'user' %}
        {%- set seen.asked = (messages | length) - loop.index %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '@system\nYou may call:' }}
    {%- for tool in tools %}{{ '\n- ' + tool | tojson }}{% endfor %}
    {{- '@@\n' }}
{%- endif %}
{%- for m in messages %}
    {%- set body = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' and '</think>' in body %}
        {%- set parts = body.split('</think>') %}
        {%- set body = parts[-1].lstrip('\n') %}
        {%- if loop.index0 > seen.asked %}
            {%- set body = '[' + parts[0].split('<think>')[-1].strip('\n').rstrip() + ']' + body %}
        {%- endif %}
    {%- endif %}
    {%- if m.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{ '@user' }}{% endif %}
        {{- '\n<' + body + '>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '@@\n' }}{% endif %}
    {%- else %}
        {{- '@' + m.role + '\n' + body }}
        {%- for call in m.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if body or not loop.first %}{{ '\n' }}{% endif %}
            {{- '!' + call.name + ' ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
        {%- endfor %}
        {{- '@@\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '@assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '[]' }}{% endif %}
{%- endif %}""",
    "turns": """{{ bos_token }}
{%- set intro = '' -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set intro = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) + '\n\n' -%}
{%- endif -%}
{%- for m in (messages[1:] if intro else messages) -%}
    {%- if loop.index is even and m['role'] == 'user' or loop.index is odd and m['role'] != 'user' -%}
        {{ raise_exception('turns must alternate, found ' + m['role']) }}
    {%- endif -%}
    {{ '<t>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (intro if loop.first else '') }}
    {%- if m['content'] is string -%}
        {{ m['content'] | trim }}
    {%- elif m['content'] is none -%}
        {{ raise_exception('no content') }}
    {%- else -%}
        {%- for part in m['content'] -%}
            {{ '<pic>' if part['type'] == 'image' else part['text'] | trim }}
        {%- endfor -%}
    {%- endif -%}
    {{ '</t>\n' }}
{%- endfor -%}
{{ '<t>model\n' if add_generation_prompt }}""",
    "macros": "{%- macro kind(spec) -%}\n{%- if spec.type == 'string' -%}{{ 'str' }}{%- elif spec.enum is defined -%}{{ spec.enum | join(' | ') }}{%- else -%}{{ spec.type | upper }}{%- endif -%}\n{%- endmacro -%}\n{%- macro field(name, spec, required=[]) -%}\n  {{ name }}{{ '' if name in required else '?' }}: {{ kind(spec) }}\n{%- endmacro -%}\n{%- for tool in tools or [] %}\nfn {{ tool.function.name }}({% for name, spec in tool.function.parameters.properties.items() %}{{ field(name, spec, tool.function.parameters.get('required', [])) }}{{ ', ' if not loop.last }}{% endfor %})\n{%- if tool.function.description %} # {{ tool.function.description | replace('<', '[') }}{% endif %}\n{%- endfor %}\n{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role | title }}: {{ m.content | default('nothing', true) }}\n{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }}|{{ (messages | first).role }}|{{ (messages | last).role | upper }}|{{ [3, 1, 2] | sort | join('-') }}|{{ [1, 2] + [3] }}|{{ 'a b  c'.split() }}|{{ 'x,y'.split(',') | list }}|{{ '%s=%d' | format('n', 5) }}|{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 4 }} {{ 2 ** 5 }}|{{ 1 == 1.0 }}|{{ none }}|{{ true }}|{{ {'a': [1, 'b', none, true, 1.5]} }}|{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ 'abc'[-1] }}|{{ 'a' ~ 1 ~ none }}|{{ 1.0 }} {{ 100000000.0 }} {{ 0.1 + 0.2 }}|{{ 'Hello'.lower() }} {{ 'hello world'.title() }} {{ ' x '.strip() }}.|{{ 'a-b-c'.replace('-', '+') }}|{{ 'é' | length }}|{{ 'abc'.find('c') }} {{ 'abca'.count('a') }}|{{ undefined_thing | default('d') }}|{{ undefined_thing is defined }}|{{ (1, 2) }}|{{ 'x' * 3 }}|{{ not [] }}|{{ 'b' in 'abc' }}|{{ 5 if false }}|",
    "loops": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}\n  {%- set text = m.content if m.content is string else 'parts' %}\n{{ loop.index0 }}:{{ text | trim }}{% if not loop.last %};{% endif %}\n{% else %}empty{% endfor %}\n{% set block %}\nset {{ messages | length }}\n{% endset %}{{ block | trim }}\n{# a comment #}\n    {% if true %}\nindented\n    {% endif %}\nend {{- ' x ' -}}\n  y\n",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}<u>{{ m.content }}{% endif %}\n{% endfor %}",
    "json": "{{ tools | tojson }}\n{{ tools | tojson(indent=2) }}\n{{ messages | tojson }}\n{{ {'k': 'é\\n\\t\"\\\\/<>&\\''} | tojson }}{{ [1, 2.0, 1e20, -0.5, true, none] | tojson }}{{ 'plain' | tojson }}",
    "escapes": "{{ messages[0].content }}|{{ messages[0].content | trim | e if false else '' }}{{ '<&>\"' }}|{{ '\\n' }}|{{ \"it's\" }}|{% raw %}{{ raw }}{% endraw %}|{{ 'tab\\there' }}",
    "unknown_attribute": "{{ messages[0].nothing }}|{{ messages[0]['nothing'] }}|{{ messages[0].get('nothing', 'd') }}|{{ messages[0].content.nothing }}",
    "raises": "{{ raise_exception('always') }}",
    "missing_call": "{{ nothing_like_it('x') }}",
    "bad_operands": "{{ 'a' + 1 }}",
}
CHATS = {"plain": PLAIN, "turns": TURNS, "parts": PARTS, "calls": CALLS, "thoughts": THOUGHTS}


EACH = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{{ 'GEN' if add_generation_prompt }}"
THINK = "{% for m in messages %}{{ m.role }}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"


def final(**message):
    return [{"role": "user", "content": "a"}, {"role": "assistant", **message}]


CONTINUED = [
    (EACH, final(content="b c "), {"continue_final_message": True}),
    (EACH, final(content="b"), {"continue_final_message": True, "add_generation_prompt": True}),
    (EACH, final(content="b"), {"continue_final_message": True, "add_generation_prompt": False}),
    (EACH, final(content="b"), {"continue_final_message": False}),
    (EACH, final(), {"continue_final_message": True}),
    (EACH, final(content=[{"type": "text", "text": "q "}, {"type": "image"}]), {"continue_final_message": True}),
    (EACH, final(content=[{"type": "image"}]), {"continue_final_message": True}),
    (EACH, final(content="", thinking="t"), {"continue_final_message": "thinking"}),
    (EACH, final(content="x"), {"continue_final_message": "role"}),
    ("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", final(content=" b c \n"), {"continue_final_message": True}),
    ("{% for m in messages %}{{ m.content.upper() }}{% endfor %}", final(content="b"), {"continue_final_message": True}),
    ("{{ messages[0].content }}", final(content="b"), {"continue_final_message": True}),
    ("{{ messages[-1].content.strip() }} x", final(content=" b "), {"continue_final_message": True}),
    ("x", final(content="b"), {"continue_final_message": True}),
    *((THINK, final(content="x", reasoning="r"), {"continue_final_message": field})
      for field in ("reasoning", "thinking", "reasoning_content", "content", "nothing")),
]


def chat_cases():
    cases = []
    for name, template in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for tools in (None, TOOLS) if name in ("headers", "im", "macros", "json") else (None,):
                for kwargs in ({}, {"enable_thinking": False}) if name == "im" else ({},):
                    prompt = name != "generation" and (tools is None)
                    rendered = outcome(template, {"messages": messages, "tools": tools, "add_generation_prompt": prompt,
                                                  "chat_template_kwargs": kwargs})
                    cases.append({"template": name, "chat": chat, "tools": tools is not None,
                                  "add_generation_prompt": prompt, "kwargs": kwargs, "rendered": rendered})
    return {"versions": {"transformers": transformers.__version__}, "specials": SPECIALS, "templates": TEMPLATES,
            "chats": CHATS, "tools": TOOLS, "cases": cases}


def outcome(template, chat):
    """What a caller of apply_chat_template gets; None for an error."""
    chat = dict(chat)
    kwargs, messages = chat.pop("chat_template_kwargs", {}), chat.pop("messages")
    chat.setdefault("add_generation_prompt", not chat.get("continue_final_message"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIALS)
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **chat, **kwargs)
    except Exception:  # whatever the reference refuses, we refuse
        return None


def jinja_cases():
    chats = json.loads((HERE / "jinja/chats.json").read_text())
    expected = {}
    for name, part in (("expressions", chats[:1]), ("statements", chats[1:])):
        lines = (HERE / f"jinja/{name}.txt").read_text().splitlines()
        expected[name] = [[outcome(json.loads(f'"{quoted(line)}"'), chat) for chat in part] for line in lines]
    return {"versions": {"transformers": transformers.__version__}, "specials": SPECIALS, **expected}


def quoted(line):
    return line.replace('"', '\\"').replace("\\v", "\\u000b")


def continued():
    cases = []
    for template, messages, more in CONTINUED:
        chat = {"messages": messages, **more}
        cases.append({"template": template, "chat": chat, "rendered": outcome(template, chat)})
    return {"versions": {"transformers": transformers.__version__}, "cases": cases}


def corpus():
    rng = random.Random(7)
    words = ("the fox river lantern ran under moon and found a small grey stone near water light house winter garden "
             "letters über café naïve 一念 推理 引擎 こんにちは привет 안녕 🦊 👍🏽 don't we'll 1234 3.14 hello world").split()
    for _ in range(4000):
        yield " ".join(rng.choice(words) for _ in range(rng.randint(3, 14))).capitalize() + rng.choice([".", "!", "?\n", "...", " "])


TEXTS = [
    "", " ", "Hello world", " leading and  double  spaces ", "The fox ran.\nUnder the moon\n\n\nhouse", "don't we'll I'M",
    "1234567 3.14", "一念引擎推理", "こんにちは привет 안녕", "🦊 👍🏽 👩‍👩‍👧 é", "naïve café e\u0301 ﬁ Å",
    "tabs\tand\r\nreturns\u00a0nbsp\u200bzero", "\u0007bell \u007f", "<s>special</s> in <|user|> text", "a" * 50, "𝔘𝔫𝔦 ₿ ∑",
    "mixed 一 a 🦊b", "  \n  ", "▁metaspace ▁", "x\n", "\n\nstart",
]


def expectations(tokenizer, vocab):
    encode = []
    for text in TEXTS:
        with_special = tokenizer.encode(text).ids
        encode.append({"text": text, "ids": with_special,
                       "plain": tokenizer.encode(text, add_special_tokens=False).ids,
                       "decoded": tokenizer.decode(with_special, skip_special_tokens=True),
                       "shown": tokenizer.decode(with_special, skip_special_tokens=False)})
    rng = random.Random(11)
    decode = []
    for n in range(120):
        ids = [rng.randrange(vocab) for _ in range(rng.randint(1, 24))]
        if n % 3 == 0:  # lone bytes and special tokens among the rest
            ids = [rng.choice(ids + list(range(min(vocab, 260)))) for _ in ids]
        decode.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    return {"versions": {"tokenizers": tokenizers.__version__}, "encode": encode, "decode": decode}


def byte_bpe():
    t = Tokenizer(models.BPE())
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<s>", "</s>", "<|user|>"])
    t.train_from_iterator(corpus(), trainer)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def metaspace():
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False,
                                  special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)],
                                  limit_alphabet=90)
    t.train_from_iterator(corpus(), trainer)
    # Bytes are pieces that text falls back to, not special tokens.
    made = json.loads(t.to_str())
    made["added_tokens"] = [a for a in made["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(made))
    t.add_special_tokens([AddedToken("<|user|>", special=True)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=0 if {"cases", "expressions"} & set(value) else None) + "\n")
    print(path.name, path.stat().st_size)


def main():
    write(HERE / "chat.json", chat_cases())
    write(HERE / "jinja/expected.json", jinja_cases())
    write(HERE / "jinja/continued.json", continued())
    for name, make in (("byte_bpe", byte_bpe), ("metaspace", metaspace)):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        tokenizer = make()
        (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n")
        write(folder / "expected.json", expectations(tokenizer, tokenizer.get_vocab_size()))


if __name__ == "__main__":
    main()
