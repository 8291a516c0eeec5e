"""Write the tuned model as a GGUF file with a Modelfile, for llama.cpp and Ollama.

In: models/merged. Out: model.gguf with weights, vocabulary and chat template, and a Modelfile with the
template, the system prompt and the stop tokens; an empty folder if gguf.type is none. Written with llama.cpp's own
`gguf` package, for Llama, Mistral, Qwen2, Qwen3 and SmolLM3. (The packaged copies of llama.cpp's converter know
tokenizers by the hash of what they do to one text, and refuse the default base model, whose tokenizer came out of a
GGUF file itself.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import click

from stages.core import cli, params, strict_json
from stages.data import writing
from stages.model import loading

ARCHITECTURES = {
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
    "SmolLM3ForCausalLM": "SMOLLM3",
}
INTERLEAVED = ("LLAMA", "SMOLLM3")
# What llama.cpp calls a way to cut text before BPE. WORDS is GPT-2's own expression, built into `ByteLevel`.
WORDS, BYTES, DIGITS = "ByteLevel with expression", "ByteLevel", "Digits, one by one"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    (WORDS,): "gpt-2",
    (DIGITS, WORDS): "smollm",
    (_SPLIT % "{1,3}", BYTES): "llama-bpe",
    (_SPLIT % "", BYTES): "qwen2",
}


@dataclass(frozen=True)
class Params:
    type: Literal["F32", "F16", "Q8_0", "none"]


class GgufError(cli.InputError):
    """The model can't be written as GGUF here; the message says why, and how to go on without."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; to do without a GGUF file, set gguf.type to none in params.yaml")


def architecture(config: Any) -> Any:
    """The gguf package's name of the model class. Raises GgufError for a model that this file can't express."""
    from gguf import MODEL_ARCH

    name = config.architectures[0]
    if name not in ARCHITECTURES:
        raise GgufError(f"{name} is not one of {', '.join(ARCHITECTURES)}")
    if getattr(config, "sliding_window", None):
        raise GgufError(f"sliding window attention ({config.sliding_window} tokens) is not supported")
    if not all(rope == (layer % 4 > 0) for layer, rope in enumerate(getattr(config, "no_rope_layers", []), 1)):
        raise GgufError("llama.cpp leaves positions out in each fourth layer, and this model in others")
    return MODEL_ARCH[ARCHITECTURES[name]]


def cut(spec: dict[str, Any] | None) -> str:
    """llama.cpp's name of the pre-tokenizer in tokenizer.json. Raises GgufError for an unknown one: a wrong name would
    go unnoticed and cost accuracy."""
    spec = spec or {"type": "none"}
    steps = tuple(map(_step, spec.get("pretokenizers", [spec])))
    if steps not in CUTS:
        raise GgufError(f"the tokenizer cuts text by {' + '.join(steps)}, for which no name is known")
    return CUTS[steps]


def _step(step: dict[str, Any]) -> str:
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return WORDS if step["use_regex"] else BYTES
    if step["type"] == "Digits" and step["individual_digits"]:
        return DIGITS
    if step["type"] == "Split" and "Regex" in step["pattern"]:
        return str(step["pattern"]["Regex"])
    return str(step)


def add_shape(writer: Any, config: Any, scale: str) -> None:
    """The hyperparameters. `scale`: the type of the matrices."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType["ALL_F32" if scale == "F32" else f"MOSTLY_{scale}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def add_vocabulary(writer: Any, tokenizer: Any, size: int, stops: list[int]) -> None:
    """Tokens, merges, special tokens and the chat template. `size`: rows of the embedding; some may be spare."""
    from gguf import TokenType

    spec = strict_json.parse(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE":
        raise GgufError(f"the tokenizer is {spec['model']['type']}, only BPE is supported")
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {token["id"]: token["special"] for token in spec["added_tokens"]}
    kinds = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED, None: TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut(spec["pre_tokenizer"]))
    writer.add_token_list([known.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kinds[added.get(n)] if n in known else TokenType.UNUSED for n in range(size)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]])
    for name in ("bos", "eos", "pad", "unk"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    for other in stops[1:2]:  # GGUF has room for one beside EOS; the Modelfile names all
        writer.add_eot_token_id(other)
    writer.add_add_bos_token(False)  # the chat template writes it, where there is one
    writer.add_chat_template(tokenizer.chat_template)


def rope_factors(config: Any) -> Any:
    """How much each frequency of the rotary embedding is slowed down (Llama 3.1 and later), or None."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] != "llama3" or config.architectures != ["LlamaForCausalLM"]:
        raise GgufError(f"rotary embeddings of type {rope['rope_type']} are not supported")
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(len(slowed)) / len(slowed))
    return (plain / slowed).float().numpy()


def weights(folder: Path, config: Any, arch: Any) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Any]]]:
    """(GGUF name, shape, what reads the float32 array) of each weight; nothing is read before it is asked for."""
    from gguf import get_tensor_name_map
    from safetensors import safe_open

    names = get_tensor_name_map(arch, config.num_hidden_layers)
    if (factors := rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors.shape, lambda: factors
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in sorted(shard.keys()):
                found = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if found is None:
                    raise GgufError(f"{file.name}: no name is known for {name}")
                yield found, tuple(shard.get_slice(name).get_shape()), partial(read, shard, name, config, arch)


def read(shard: Any, name: str, config: Any, arch: Any) -> Any:
    """One weight in float32, its rows in llama.cpp's order."""
    import torch

    value = shard.get_tensor(name).to(torch.float32).numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return interleaved(value, heads) if heads and arch.name in INTERLEAVED else value


def interleaved(value: Any, heads: int) -> Any:
    """Rows in the order of llama.cpp's Llama: it rotates neighbours, transformers the two halves of a head."""
    return value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def kind(shape: tuple[int, ...], scale: str) -> Any:
    """How a tensor is written: matrices as `scale`, vectors and what does not fill whole blocks as float32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = GGMLQuantizationType[scale]
    return GGMLQuantizationType.F32 if len(shape) < 2 or shape[-1] % GGML_QUANT_SIZES[wanted][0] else wanted


def write(folder: Path, tokenizer: Any, stops: list[int], scale: str, out: Path, adapter: str) -> None:
    """Write the model in `folder` to the GGUF file `out`; `adapter` is the hash that it is known by.

    First what the file holds, then one weight after the other, so that memory holds one.
    """
    import numpy as np
    from gguf import MODEL_ARCH_NAMES, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape, quantize
    from tqdm import tqdm
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    arch = architecture(config)
    writer = GGUFWriter(out, MODEL_ARCH_NAMES[arch])
    writer.add_string("lockstep.adapter", adapter)
    add_shape(writer, config, scale)
    add_vocabulary(writer, tokenizer, config.vocab_size, stops)
    for name, shape, _ in weights(folder, config, arch):
        size = np.prod(quant_shape_to_byte_shape(shape, kind(shape, scale)), dtype=int)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind(shape, scale))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, value in tqdm(weights(folder, config, arch), desc="gguf", unit=" tensors", delay=2):
        writer.write_tensor_data(quantize(value(), kind(shape, scale)))
    writer.close()


def ollama_template(tokenizer: Any, system: str) -> str:
    """The chat template in Go's language, as Ollama wants it. Raises GgufError when turns depend on each other.

    Found by rendering one request, and a conversation that goes on from it: what stands before, between and after the
    texts. Ollama renders the template for each request with its answer, the system prompt with the first only, and
    stops at the answer that it asks for.
    """

    def rendered(*texts: str) -> str:
        turns = [{"role": "system", "content": told}]
        turns += [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), texts)]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    told = f"{system}@system@"
    once, whole = rendered("@1@"), rendered("@1@", "@2@", "@3@")
    before, _, after = once.partition("@1@")
    between = whole.removeprefix(f"{once}@2@").removesuffix(f"@3@{after}")
    if f"{once}@2@{between}@3@{after}" != whole or before.count(told) != 1:
        raise GgufError("the chat template can't be put as an Ollama template: a turn changes those before it")
    opening = between.rpartition(tokenizer.eos_token)[2].lstrip()  # of a request, after an answer's end
    if not before.endswith(opening):  # the first request opens in another way: with the system prompt in it (Gemma 3)
        opening = ""
    first, last = before.removesuffix(opening).replace(told, "{{ .System }}"), between.removesuffix(opening)
    return f"{{{{ if .System }}}}{first}{{{{ end }}}}{opening}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}{last}"


def modelfile(template: str, system: str, stops: list[str], max_new_tokens: int) -> str:
    """Ollama's recipe: the prompt of training, and greedy answers without Ollama's own penalties."""
    if '"""' in template + system or system.endswith('"'):
        raise GgufError('the system prompt can\'t stand in a Modelfile: it holds """ or ends in a quotation mark')
    settings = ["temperature 0", "repeat_penalty 1", f"num_predict {max_new_tokens}"]
    lines = [
        "FROM ./model.gguf",
        f'TEMPLATE """{template}"""',
        f'SYSTEM """{system}"""',
        *(f"PARAMETER {setting}" for setting in settings),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"


def convert(merged: Path, scale: str, out: Path) -> None:
    """Write model.gguf and Modelfile for the merged model."""
    origin = strict_json.read(merged / "made_from.json")
    greedy = strict_json.read(merged / "generation_config.json")
    tokenizer = loading.load_tokenizer(merged)
    stops, (system,) = greedy["eos_token_id"], (turn["content"] for turn in origin["prefix"])
    words = tokenizer.convert_ids_to_tokens(stops)
    recipe = modelfile(ollama_template(tokenizer, system), system, words, greedy["max_new_tokens"])
    (out / "Modelfile").write_text(recipe, encoding="utf-8")
    write(merged, tokenizer, stops, scale, out / "model.gguf", origin["adapter"])


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--merged", "tuned model")
@cli.path_option("--out", "folder to write")
def main(merged: Path, out: Path) -> None:
    cli.end_with_caller()
    settings = params.load("gguf", Params)
    with writing.replacing_folder(out, "Modelfile") as folder:
        if settings.type != "none":
            convert(merged, settings.type, folder)
    click.echo(f"gguf: {settings.type} -> {out}", err=True)


if __name__ == "__main__":
    main()
