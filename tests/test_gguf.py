"""The GGUF file is the merged model, in the eyes of transformers and of llama.cpp; what can't be written is refused."""

import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from conftest import KNOBS, read_json

from stages import fetch, gguf
from stages.core import cli, hashes
from stages.model import chat, loading

REQUEST: list[chat.Turn] = [{"role": "user", "content": "don't forget 12 tasks, Zoë — 3.5€"}]
CONVERSATIONS: list[list[chat.Turn]] = [
    REQUEST,
    [{"role": "system", "content": "Today is Monday."}, {"role": "user", "content": "  drop\n\nit "}],
    [{"role": role, "content": "buy milk"} for role in ("user", "assistant", "user")],
]


def run(folder: Path, merged: Path, scale: str) -> Path:
    """Run the stage in `folder`; returns what it wrote."""
    text = KNOBS.read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(re.sub(r"  type: \w+", f"  type: {scale}", text), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = CliRunner().invoke(gguf.main, ["--merged", str(merged), "--out", "gguf"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return folder / "gguf"


@pytest.fixture(scope="module")
def exact(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("exact"), merged, "F32")


@pytest.fixture(scope="module")
def small(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("small"), merged, "Q8_0")


def load(folder: Path, gguf_file: str | None = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32).eval()


def logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def test_the_file_loads_back_with_the_same_logits(exact: Path, merged: Path) -> None:
    import torch

    ids = chat.prompt_ids(loading.load_tokenizer(merged), REQUEST)
    assert torch.allclose(logits(load(exact, "model.gguf"), ids), logits(load(merged), ids), atol=1e-5)


def test_what_lies_beside_a_file_that_is_fetched_has_no_say(exact: Path, merged: Path, tmp_path: Path) -> None:
    shutil.copyfile(exact / "model.gguf", tmp_path / "model.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}', encoding="utf-8")
    fetch.convert(tmp_path / "model.gguf", tmp_path / "out")
    ids = chat.prompt_ids(loading.load_tokenizer(merged), REQUEST)
    back, kept = logits(load(tmp_path / "out"), ids), logits(load(merged), ids)
    assert (back - kept).abs().max() < 0.1 * kept.std()
    assert read_json(tmp_path / "out/config.json")["dtype"] == "bfloat16"


def test_eight_bits_keep_the_logits_near(small: Path, merged: Path) -> None:
    import torch

    ids = chat.prompt_ids(loading.load_tokenizer(merged), REQUEST)
    back, kept = logits(load(small, "model.gguf"), ids), logits(load(merged), ids)
    assert not torch.equal(back, kept)
    assert (back - kept).abs().max() < 0.1 * kept.std()


def test_a_repeat_gives_the_same_bytes_with_one_weight_in_memory_at_a_time(
    merged: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    read = gguf.read

    def noted(*args: Any) -> Any:
        assert [ref for ref in held if ref() is not None] == []
        value = read(*args)
        held.append(weakref.ref(value))
        return value

    monkeypatch.setattr(gguf, "read", noted)
    assert hashes.of_folder(run(tmp_path, merged, "Q8_0")) == hashes.of_folder(small)
    assert len(held) > 2 * 7


def test_the_pipeline_goes_on_without_a_gguf(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(run(tmp_path, merged, "none").iterdir()) == []
    shutil.copytree(merged, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(gguf.main, ["--merged", str(merged), "--out", "other"])
    assert (ran.exit_code, "has no Modelfile" in ran.stderr) == (1, True)


# --- llama.cpp itself ---


def llama_cpp(file: Path) -> Any:
    """llama.cpp's server, in this process."""
    library = pytest.importorskip("xllamacpp")
    settings = library.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    return library.Server(settings)


def first_token(server: Any, request: dict[str, Any]) -> dict[int, float]:
    """Log-probabilities of the likeliest first tokens."""
    said = server.handle_completions({"max_tokens": 1, "temperature": 0, "logprobs": 20} | request)
    return {entry["id"]: entry["logprob"] for entry in said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


def assert_llama_cpp_agrees(server: Any, folder: Path, ids: list[int]) -> None:
    """After as many tokens as make a piece of text likeliest: llama.cpp has no log-probabilities of what isn't one."""
    tokenizer, known = loading.load_tokenizer(folder), logits(load(folder), ids).log_softmax(-1)
    likeliest = tokenizer.batch_decode(known.argmax(-1)[:, None], skip_special_tokens=True)
    shown = [place for place, text in enumerate(likeliest) if place > 20 and text.strip() and "\ufffd" not in text]
    last = max(shown, key=lambda place: float(known[place].max()))
    found = first_token(server, {"prompt": ids[: last + 1]})
    assert len(found) > 5
    assert all(abs(known[last, token].item() - value) < 0.02 for token, value in found.items())


def test_llama_cpp_reads_the_weights(exact: Path, merged: Path) -> None:
    ids = chat.prompt_ids(loading.load_tokenizer(merged), REQUEST)
    assert_llama_cpp_agrees(llama_cpp(exact / "model.gguf"), merged, ids)


def test_llama_cpp_makes_the_prompt_of_training(small: Path, merged: Path) -> None:
    server, tokenizer = llama_cpp(small / "model.gguf"), loading.load_tokenizer(merged)
    for turns in CONVERSATIONS:
        said = server.handle_chat_completions({"messages": turns, "max_tokens": 1, "temperature": 0, "top_logprobs": 5,
                                               "logprobs": True})  # fmt: skip
        ids = chat.prompt_ids(tokenizer, turns)
        assert said["usage"]["prompt_tokens"] == len(ids)
        given = said["choices"][0]["logprobs"]["content"][0]
        assert given["logprob"] == pytest.approx(first_token(server, {"prompt": ids})[given["id"]], abs=0.02)


def other_model(kind: str, base: Path, folder: Path) -> Path:
    """A random model of a kind, Llama with the rotary embedding of Llama 3.1, with the base's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    shape = {"vocab_size": len(tokenizer) + 2, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False, "pad_token_id": 0}
    slow = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    slow |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    torch.manual_seed(2)
    own: dict[str, dict[str, Any]] = {
        "llama": {"rope_parameters": slow},
        "mistral": {"sliding_window": None},
        "qwen3": {"head_dim": 48},
        "smollm3": {"num_hidden_layers": 5},  # the fourth has no positions
    }
    config = AutoConfig.for_model(kind, **shape | heads | own.get(kind, {}))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases and norms too: fresh ones are all alike and would hide a mix-up
        parameter.data = parameter.data + 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.write(folder, tokenizer, [tokenizer.eos_token_id], "F32", folder / "model.gguf", "0" * 64)
    return folder


@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral", "qwen3", "smollm3"])
def test_llama_cpp_reads_other_architectures(kind: str, base: Path, tmp_path: Path) -> None:
    folder = other_model(kind, base, tmp_path)
    assert_llama_cpp_agrees(llama_cpp(folder / "model.gguf"), folder, list(range(3, 200)))


def config(name: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(architectures=[name], **more)


YARN = config("LlamaForCausalLM", rope_parameters={"rope_type": "yarn"})


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda: gguf.rope_factors(YARN), "type yarn .* set gguf.type to none"),
        (lambda: gguf.cut({"type": "Whitespace"}), "Whitespace"),
        (lambda: gguf.cut(None), "cuts text by"),
        (lambda: gguf.cut({"type": "Digits", "individual_digits": False}), "individual_digits"),
        (lambda: gguf.cut({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}), "add_prefix_space"),
        (lambda: gguf.architecture(config("MistralForCausalLM", sliding_window=8)), "sliding window"),
        (lambda: gguf.architecture(config("SmolLM3ForCausalLM", no_rope_layers=[0, 1])), "each fourth layer"),
        (lambda: gguf.modelfile("", 'say """', [], 64), "Modelfile"),
        (lambda: gguf.modelfile("", 'say "yes"', [], 64), "Modelfile"),
    ],
    ids=[
        "rotary embedding",
        "way to cut text",
        "no way",
        "digits in groups",
        "space before the text",
        "sliding window",
        "positions",
        "three quotes in the prompt",
        "quote at the end of the prompt",
    ],
)
def test_what_the_writer_cannot_express_is_refused(write: Callable[[], object], reason: str) -> None:
    with pytest.raises(cli.InputError, match=reason):
        write()


def test_the_way_that_the_default_base_cuts_text_has_its_name() -> None:
    words = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    steps = [{"type": "Digits", "individual_digits": True}, words]
    assert gguf.cut({"type": "Sequence", "pretokenizers": steps}) == "smollm"


def test_the_second_stop_token_and_spare_rows_are_in_the_file(tokenizer: Any) -> None:
    writer = Mock()
    gguf.add_vocabulary(writer, tokenizer, len(tokenizer) + 2, [tokenizer.eos_token_id, 5])
    writer.add_eos_token_id.assert_called_once_with(tokenizer.eos_token_id)
    writer.add_eot_token_id.assert_called_once_with(5)
    assert writer.add_token_list.call_args[0][0][-1] == f"[PAD{len(tokenizer) + 1}]"
    kinds = writer.add_token_types.call_args[0][0]
    assert [kinds[place].name for place in (tokenizer.eos_token_id, 5, -1)] == ["CONTROL", "NORMAL", "UNUSED"]
    writer.add_add_bos_token.assert_called_once_with(False)  # the chat template writes it


# --- Ollama; test_models renders the prompts of whole families with these ---


def go(template: str, values: dict[str, str]) -> str:
    """Render the little of Go's template language that a Modelfile here uses."""
    kept = re.sub(
        r"\{\{ if \.(\w+) \}\}(.*?)\{\{ end \}\}", lambda m: m[2] if values.get(m[1]) else "", template, flags=re.DOTALL
    )
    return re.sub(r"\{\{ \.(\w+) \}\}", lambda m: values.get(m[1], ""), kept)


def ollama(template: str, system: str, *texts: str) -> str:
    """The prompt that Ollama makes of a conversation (template.Execute): one rendering for each request."""
    prompt = ""
    for place in range(0, len(texts), 2):
        values = {"System": "" if place else system, "Prompt": texts[place]}
        if last := place + 1 == len(texts):
            template = template.split("{{ .Response }}")[0]
        prompt += go(template, values | ({} if last else {"Response": texts[place + 1]}))
    return prompt


def directives(small: Path) -> dict[str, str]:
    text = (small / "Modelfile").read_text(encoding="utf-8")
    return dict(re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', text, flags=re.DOTALL | re.MULTILINE))


def test_the_modelfile_names_weights_and_stop_tokens(small: Path) -> None:
    lines = (small / "Modelfile").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "FROM ./model.gguf"
    assert {"PARAMETER temperature 0", "PARAMETER repeat_penalty 1", 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    assert "PARAMETER num_predict 64" in lines
    several = gguf.modelfile("", "", ["<a>", "<b>"], 48).split("\n")
    assert {"PARAMETER num_predict 48", 'PARAMETER stop "<a>"', 'PARAMETER stop "<b>"'} <= set(several)
