"""Export the tuned model as one plain safetensors folder, which any engine serves without adapter or quantisation.

In: base model, adapter. Out: the weights merged as prediction merges them, config, tokenizer, greedy generation config,
made_from.json, and a chat template that brings the system prompt of training along: a request without a system
message gets, token for token, the prompt that the model was trained on.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from stages.shared import chat, cli, generate, model, params, strict_json

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
            raise cli.InputError(f"the exported chat template renders another prompt than training for turns {roles}")


def generation(stops: list[int], max_new_tokens: int) -> Any:
    """What an engine does unless a request says otherwise: what prediction does."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0])


@click.command(help=__doc__)
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--out", "folder to write")
def main(base: Path, adapter: Path, out: Path) -> None:
    settings, predict = params.load("export", Params), params.load("predict", params.Predict)
    import torch

    prefix = strict_json.parse((adapter / "made_from.json").read_text(encoding="utf-8"))["prefix"]
    tokenizer, exported = model.load_tokenizer(base), model.load_tokenizer(base)
    exported.chat_template = with_prompt(tokenizer.chat_template, prefix)
    check_template(tokenizer, exported, prefix)
    click.echo("export: merging the adapter into the base model", err=True)
    network = model.load_for_generation(base, adapter, model.device(predict.device)[1])
    network.generation_config = generation(generate.stop_ids(network, tokenizer), predict.max_new_tokens)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    network.to(getattr(torch, settings.dtype)).save_pretrained(part)
    exported.save_pretrained(part)
    shutil.copyfile(adapter / "made_from.json", part / "made_from.json")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    click.echo(f"export: {settings.dtype} -> {out}", err=True)


if __name__ == "__main__":
    main()
