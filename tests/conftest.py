"""A tiny chat model, made here: real classes and a real chat template, random weights, no network."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).parent.parent
# A contract of the tests' own: data/ belongs to whoever uses the repository.
SCHEMA = ROOT / "tests" / "schema.json"
KNOBS = ROOT / "tests" / "params.yaml"  # and knobs: params.yaml is the user's, too
IDENTITY = json.loads((ROOT / "data" / "schema.json").read_text(encoding="utf-8")).get("$id")
SHIPPED = pytest.mark.skipif(IDENTITY != "urn:lockstep:task-api", reason="data/ holds another task")
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_base(folder: Path) -> Path:
    """Write a two-layer Llama with a byte-level BPE tokenizer of 600 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SCHEMA.read_text(encoding="utf-8").split("\n"), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(fast), "eos_token_id": fast.eos_token_id, "bos_token_id": 0}
    config = LlamaConfig(**shape, **ids, num_key_value_heads=1, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> Any:
    from stages.model import loading

    return loading.load_tokenizer(base)


@pytest.fixture(scope="session")
def model(base: Path) -> Any:
    from stages.model import loading

    return loading.load_model(base, "float32", "cpu")


@pytest.fixture(scope="session")
def merged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like models/merged, of a model that knows one answer; see tests/taught.py."""
    import taught

    return taught.make_merged(base, tmp_path_factory.mktemp("merged"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with the tests' params.yaml."""
    (tmp_path / "params.yaml").write_bytes(KNOBS.read_bytes())
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def configure(folder: Path, **sections: dict[str, Any]) -> None:
    """Change some values of the folder's params.yaml."""
    from stages.core import yaml12

    file = folder / "params.yaml"
    document = yaml12.parse(file.read_text(encoding="utf-8"), "params.yaml")
    for name, change in sections.items():
        document[name] = document[name] | change
    file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML


def invoke(command: Any, **options: Any) -> Result:
    """Run a stage or tool in this process: `made_from="a"` becomes `--made-from a`."""
    words = [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return CliRunner().invoke(command, words)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository of toy stages with five data versions; copy it before changing it."""
    import toy

    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        toy.isolate(patch, folder)
        (folder / "template").mkdir()
        yield toy.build(folder / "template")


@pytest.fixture
def repository(toy_history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy repository, with its cache, as the working folder."""
    import toy

    toy.isolate(monkeypatch, tmp_path)
    folder = toy.copy(toy_history, tmp_path / "toy")
    monkeypatch.chdir(folder)
    return folder
