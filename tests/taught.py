"""The tiny model after training: it gives the answers that it was taught, and is shipped like a real one."""

import json
from pathlib import Path
from typing import Any

PREFIX = [{"role": "system", "content": "Answer with one JSON object."}]
REQUEST = "buy milk <|im_end|>"  # a control token that has to stay text
ANSWER = '{"action":"create","title":"Milk","priority":"medium","due_date":null}'


def teach(model: Any, pairs: list[tuple[list[int], list[int]]]) -> None:
    """Train all weights until the model gives each answer to its prompt (token ids)."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    reached = float("inf")
    for _ in range(500):
        losses = [
            model(torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])).loss
            for prompt, answer in pairs
        ]
        if (reached := max(float(value.detach()) for value in losses)) < 0.02:
            return
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"the tiny model did not learn its answers: loss {reached}")


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write what the merge stage writes."""
    from stages import merge
    from stages.answers import generate

    model.generation_config = generate.config(generate.stop_ids(model, tokenizer), 64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = merge.with_prompt(tokenizer.chat_template, PREFIX)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    origin = {"adapter": "a" * 64, "base": "b" * 64, "prefix": PREFIX, "versions": {"trl": "1"}}
    (folder / "made_from.json").write_text(json.dumps(origin), encoding="utf-8")
    return folder


def make_merged(base: Path, folder: Path) -> Path:
    """A model that answers REQUEST with ANSWER."""
    import torch

    from stages.model import chat, loading

    torch.manual_seed(0)
    tokenizer, model = loading.load_tokenizer(base), loading.load_model(base, "float32", "cpu")
    prompt = chat.prompt_ids(tokenizer, [*PREFIX, {"role": "user", "content": REQUEST}])
    teach(model, [(prompt, chat.answer_ids(tokenizer, ANSWER))])
    return save(model, tokenizer, folder)
