"""Families of models, tiny and with random weights: from fetch to the export, or to a refusal with its reason."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import SCHEMA, configure, invoke, write_rows
from taught import PREFIX
from test_gguf import directives, llama_cpp, ollama

from stages import build, fetch, gguf, merge, predict, replay, train
from stages.answers import generate
from stages.model import chat, loading, prefix_sharing

# Chat templates in the shape of the families' own: what each of them does beside putting turns into markers.
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message['role'] != 'system' %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TEMPLATES = {
    # today's date in the system turn, and every text trimmed
    "llama": "{{- bos_token }}{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set told = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set told = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '\n\n' + told + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    "qwen2": CHATML,
    # thoughts are cut out of earlier answers; only the last answer keeps a block for them
    "qwen3": "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}"
    "{%- for message in messages[::-1] %}{%- set index = messages | length - 1 - loop.index0 %}"
    "{%- if message.role == 'user' and ns.last < 0 %}{%- set ns.last = index %}{%- endif %}"
    "{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'user' or message.role == 'system' and not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set said = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>assistant\n' }}{%- if loop.index0 > ns.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- said + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}",
    # a page of its own before the system prompt, with the date
    "smollm3": "{%- set today = strftime_now('%d %B %Y') %}{{- '<|im_start|>system\n## Metadata\n\n"
    "Knowledge Cutoff Date: June 2025\nToday Date: ' + today + '\nReasoning Mode: /no_think\n\n"
    "## Custom Instructions\n\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content }}"
    "{%- else %}{{- 'You are a helpful AI assistant.' }}{%- endif %}{{- '\n\n<|im_end|>\n' }}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{%- elif message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n' }}{%- endif %}",
    # no marker of its own for the system prompt: it stands in the user's turn; turns must alternate
    "gemma3": "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set told = messages[0]['content'] + '\n\n' %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set told = '' %}{%- set rest = messages %}{%- endif %}{%- for message in rest %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\n' + (told if loop.first else '') }}"
    "{{- message['content'] | trim }}{{- '<end_of_turn>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}",
    "gemma2": "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{{- raise_exception('System role not supported') }}{%- endif %}{%- for message in messages %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}",
    # the system prompt stands in the last user turn, so earlier turns change as a conversation grows
    "mistral": "{%- if messages[0]['role'] == 'system' %}{%- set told = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in rest %}{%- if message['role'] == 'user' %}{%- if loop.last and told is defined %}"
    "{{- '[INST] ' + told + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}",
    "phi3": "{%- for message in messages %}{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}",
}
SPECIAL = {
    "llama": "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|>",
    "qwen2": "<|endoftext|> <|im_end|> <|im_start|>",
    "qwen3": "<|endoftext|> <|im_end|> <|im_start|>",
    "smollm3": "<|begin_of_text|> <|im_end|> <|im_start|>",
    "gemma2": "<bos> <eos> <start_of_turn> <end_of_turn>",
    "gemma3": "<bos> <eos> <start_of_turn> <end_of_turn>",
    "mistral": "<s> </s> [INST] [/INST]",
    "phi3": "<s> <|end|> <|system|> <|user|> <|assistant|>",
}
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 8192, "initializer_range": 0.2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3": {"head_dim": 16, "model_type": "gemma3_text"},
    "mistral": {"sliding_window": None},
}


def make_tokenizer(family: str) -> Any:
    """Byte-level BPE as in Llama 3, Qwen and SmolLM3; SentencePiece's BPE with spaces as ▁ in the others."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL[family].split()
    spaces = family in ("gemma2", "gemma3", "mistral", "phi3")
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    if spaces:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        replace = normalizers.Replace(" ", "▁")
        prepend = [] if family.startswith("gemma") else [normalizers.Prepend("▁")]
        tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
        strip = [] if family.startswith("gemma") else [decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        special = [*special, "<unk>"]
    else:
        tokenizer = Tokenizer(models.BPE())
        digits = "" if family.startswith("qwen") else "{1,3}"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(gguf._SPLIT % digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [*map(chr, range(33, 127)), "▁"] if spaces else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special + byte_names * spaces, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SCHEMA.read_text(encoding="utf-8").split("\n"), trainer)
    eos = special[3] if family.startswith("gemma") else special[1]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=eos, pad_token=eos)
    fast.chat_template = TEMPLATES[family]
    return fast


def make_model(family: str, folder: Path, **change: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(family)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0, "pad_token_id": tokenizer.eos_token_id}
    own = {"model_type": family} | OWN.get(family, {}) | change
    config = AutoConfig.for_model(vocab_size=len(tokenizer), **SMALL, **ids, **own)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(first: int, count: int) -> list[dict[str, Any]]:
    made = []
    for number in range(first, first + count):
        answer = {"action": "create", "title": f"Errand {number}", "priority": "medium", "due_date": None}
        said = [f"do errand {number}", json.dumps(answer)] + ["drop it", '{"action":"delete","title":"It"}'] * (
            number % 2
        )
        turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
        made.append({"id": f"r{number}", "source": f"rows.jsonl:{number}", "turns": turns})
    return made


def pipeline(here: Path, source: Path) -> tuple[Any, Result]:
    """From fetch to the export. The stage that refuses ends it and is returned, None for none, with what it said."""
    configure(
        here,
        fetch={"source": "path", "path": str(source)}, compute={"device": "cpu-fp32"}, chat={"max_length": 400},
        train={"epochs": 0.1}, build={"valid_share": 0.3}, predict={"max_new_tokens": 60}, gguf={"type": "F32"},
    )  # fmt: skip
    for split, (first, count) in {"train": (0, 12), "test": (50, 2)}.items():
        write_rows(here / f"{split}.jsonl", rows(first, count))
    (here / "behaviour").mkdir()
    write_rows(here / "prompts.jsonl", [{"id": "p", "prompt": "Say hello."}])
    base, merged, chats = "models/base", "models/merged", Path("data/chat")
    answer = {"model": merged, "rows": chats / "test.jsonl", "answered": "kept", "timings": "p.json"}
    stages: list[tuple[Any, dict[str, Any]]] = [
        (fetch, {"out": base}),
        (build, {"train": "train.jsonl", "test": "test.jsonl", "behaviour": "behaviour", "schema": SCHEMA, "base": base,
                 "out": chats, "metrics": "build.json"}),
        (replay, {"prompts": "prompts.jsonl", "base": base, "out": chats / "replay.jsonl"}),
        (train, {"train": chats / "train.jsonl", "valid": chats / "valid.jsonl", "prefix": chats / "prefix/tuned.json",
                 "replay": chats / "replay.jsonl", "base": base, "out": "models/adapter", "metrics": "train.json",
                 "train_loss": "t.csv", "valid_loss": "v.csv", "row_losses": "r.csv", "timings": "timing.json",
                 "launch": "launch", "checkpoint_folder": "checkpoints"}),
        (merge, {"base": base, "adapter": "models/adapter", "out": merged}),
        (predict, answer | {"out": "tuned.jsonl"}),
        (predict, answer | {"out": "constrained.jsonl", "schema": SCHEMA}),
        (gguf, {"merged": merged, "out": "models/gguf"}),
    ]  # fmt: skip
    for stage, options in stages:
        ran = invoke(stage.main, **options)
        if ran.exit_code:
            return stage, ran
    return None, ran


def asked(server: Any, path: str, **content: Any) -> Any:
    """What llama.cpp's own server answers."""
    body = json.dumps(content).encode()
    with urllib.request.urlopen(f"{server.listening_address}{path}", body) as answer:  # noqa: S310
        return json.load(answer)


TALK = ["don't forget 12 tasks, Zoë — 3.5€", "done", "drop\n\nit"]
REFUSALS = {
    "gemma2": (build, "the chat template refuses a system prompt or an earlier turn: System role not supported"),
    "gemma3": (gguf, "Gemma3ForCausalLM is not one of LlamaForCausalLM"),
    "mistral": (gguf, "the chat template can't be put as an Ollama template: a turn changes those before it"),
    "phi3": (gguf, "Phi3ForCausalLM is not one of LlamaForCausalLM"),
}


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_family_is_exported_with_the_prompt_of_training_or_refused(here: Path, family: str) -> None:
    stage, ran = pipeline(here, make_model(family, here / "source"))
    if family in REFUSALS:
        refused_by, reason = REFUSALS[family]
        assert stage is refused_by
        assert reason in ran.stderr.rstrip("\n").split("\n")[-1]
        return
    assert (stage, ran.stderr.rstrip("\n").split("\n")[-1]) == (None, "gguf: F32 -> models/gguf")
    trained, merged = (loading.load_tokenizer(Path("models", name)) for name in ("base", "merged"))
    server, found = llama_cpp(Path("models/gguf/model.gguf")), directives(Path("models/gguf"))
    for texts in (TALK[:1], TALK):
        turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
        prefix = [PREFIX[0] | {"content": found["SYSTEM"]}]
        prompt = chat.prompt_ids(trained, chat.with_prefix(prefix, turns))
        assert chat.prompt_ids(merged, turns) == prompt
        assert trained.encode(ollama(found["TEMPLATE"], found["SYSTEM"], *texts), add_special_tokens=False) == prompt
        text = asked(server, "/apply-template", messages=turns)["prompt"]
        assert asked(server, "/tokenize", content=text, parse_special=True)["tokens"] == prompt


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("gemma3", {"sliding_window": 8}, r"sliding_window = 8 for a row of \d+ tokens"),
        ("mistral", {"sliding_window": 8}, r"sliding_window = 8 for a row of \d+ tokens"),
        ("gemma2", {}, "softcap"),
    ],
)
def test_attention_that_training_ignores_is_refused(
    here: Path, family: str, change: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "gemma2", TEMPLATES["gemma3"])
    configure(here, replay={"prompts": 0})  # or that stage would refuse the model
    stage, ran = pipeline(here, make_model(family, here / "source", **change))
    assert stage is train
    assert re.search(reason, ran.stderr.rstrip("\n").split("\n")[-1])
    configure(here, replay={"prompts": 1})
    ran = invoke(replay.main, prompts="prompts.jsonl", base="models/base", out="replay.jsonl")
    assert re.search(reason, ran.stderr.rstrip("\n").split("\n")[-1])


@pytest.mark.parametrize("family", [family for family in TEMPLATES if family != "gemma2"])
def test_sharing_a_prefix_changes_neither_loss_nor_answers(tmp_path: Path, family: str) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from stages.model.trainer import labelled_loss

    folder = make_model(family, tmp_path)
    tokenizer, model = loading.load_tokenizer(folder), loading.load_model(folder, "float32", "cpu")
    prompts = [[*range(300, 320), *range(start, start + 3 + start % 3)] for start in (400, 410, 421)]
    lines = [{"input_ids": [*ids, 7, 8, 9], "labels": [-100] * len(ids) + [7, 8, 9]} for ids in prompts]
    with torch.inference_mode():
        plain = [cross_entropy(model(torch.tensor([[*ids, 7, 8, 9]])).logits[0, -4:-1], torch.tensor([7, 8, 9]))
                 for ids in prompts]  # fmt: skip
        with prefix_sharing.attention(model):
            shared = labelled_loss(model, prefix_sharing.collate(lines), None)
    assert float(shared) == pytest.approx(sum(map(float, plain)) / 3, abs=1e-4)
    settings = generate.config(generate.stop_ids(model, tokenizer), 8)
    for index, answer in list(generate.greedy(model, tokenizer, prompts, 8, 2)):
        ids = torch.tensor([prompts[index]])
        known = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, ids.shape[1] :]
        kept = [token for token in known.tolist() if token != tokenizer.eos_token_id]
        assert answer.text == tokenizer.decode(kept, clean_up_tokenization_spaces=False)
