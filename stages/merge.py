"""Merge the adapter into the base: one plain folder, which is measured here and which any engine serves.

In: base model, adapter. Out: models/merged with safetensors, config, tokenizer, greedy generation config,
made_from.json, and a chat template that brings the system prompt of training along: a request without a system
message gets, token for token, the prompt that the model was trained on. The adapter has learnt to correct the quantised
weights, so it is merged into those, dequantised, and not into the original ones.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from stages.shared import chat, cli, generate, loading, params, quantised, strict_json, writing

# chat.with_prefix, in Jinja. The text may stand there already: the client sent it, or it was rendered twice.
# The empty expression at the end keeps Jinja from eating a newline that the template may begin with.
PROMPT = """{%%- set told = %s %%}
{%%- if not messages or messages[0]['role'] != 'system' %%}
{%%- set messages = [{'role': 'system', 'content': told}] + messages %%}
{%%- elif not messages[0]['content'].startswith(told) %%}
{%%- set both = told + '\\n' + messages[0]['content'] %%}
{%%- set messages = [{'role': 'system', 'content': both}] + messages[1:] %%}
{%%- endif %%}
{{- '' }}"""
PROBES: list[list[chat.Turn]] = [
    [{"role": "user", "content": "probe"}],
    [{"role": "system", "content": "own"}, {"role": "user", "content": "probe"}],
    [{"role": role, "content": "probe"} for role in ("user", "assistant", "user")],
]


@dataclass(frozen=True)
class Params:
    dtype: Literal["float32", "bfloat16", "float16"]


def with_prompt(template: str, prefix: list[chat.Turn]) -> str:
    """The chat template with `prefix`, one system turn, built in. Raises InputError for any other prefix."""
    if [turn["role"] for turn in prefix] != ["system"]:
        raise cli.InputError("made_from.json: only a prefix of one system turn can become part of a chat template")
    return PROMPT % json.dumps(prefix[0]["content"], ensure_ascii=False) + template


def check_template(tokenizer: Any, exported: Any, prefix: list[chat.Turn]) -> None:
    """A request must become the tokens that training would have made of it. Raises InputError when it does not."""
    for probe in PROBES:
        if chat.prompt_ids(exported, probe) != chat.prompt_ids(tokenizer, chat.with_prefix(prefix, probe)):
            roles = ", ".join(turn["role"] for turn in probe)
            raise cli.InputError(f"the merged chat template renders another prompt than training for turns {roles}")


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--out", "folder to write")
def main(base: Path, adapter: Path, out: Path) -> None:
    cli.end_with_caller()
    settings, predict = params.load("merge", Params), params.load("predict", generate.Params)
    import torch
    from peft import PeftModel

    prefix = strict_json.read(adapter / "made_from.json")["prefix"]
    tokenizer, exported = loading.load_tokenizer(base), loading.load_tokenizer(base)
    exported.chat_template = with_prompt(tokenizer.chat_template, prefix)
    check_template(tokenizer, exported, prefix)
    device = loading.device(params.load("compute", loading.Params).device)[1]
    plain = quantised.dequantised(base, device)
    with loading.reading(adapter, "adapter_config.json"):
        model = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    model.generation_config = generate.config(generate.stop_ids(model, tokenizer), predict.max_new_tokens)
    with writing.replacing_folder(out) as folder:
        model.to(getattr(torch, settings.dtype)).save_pretrained(folder)
        exported.save_pretrained(folder)
        shutil.copyfile(adapter / "made_from.json", folder / "made_from.json")
    click.echo(f"merge: {settings.dtype} -> {out}", err=True)


if __name__ == "__main__":
    main()
