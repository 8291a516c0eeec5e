"""Peak memory of a fine-tuning run, part by part, from a model's config alone; no weights and no torch needed.

In: the facts of a config.json (Llama and Qwen2) and the settings of a run. Out: bytes. Each term is what
stages/train.py does: rows of a micro batch are packed in one sequence, the base is NF4 with double quantisation but for
embeddings and LM head, LoRA sits on every linear layer of a block, and the head scores labelled tokens only.
`activations` counts what autograd saves, which tests/test_memory.py compares with what it really saves;
benchmarks/memory.json has measured peaks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from stages.shared.cli import InputError

Method = Literal["full", "lora", "qlora"]
MARGIN = 1.1  # a run fits when its peak times this does: predictions were off by up to a tenth (benchmarks/memory.json)
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # bytes: 4 bits, an 8-bit scale for 64 weights, a float32 one for 256 scales
GB = 10**9
FLOAT32 = 4
ADAMW = 2 * FLOAT32  # two moments
# A CPU's resident memory also holds blocks that glibc keeps and cannot use again; those of the logits are large enough
# to be given back. Fitted on the first and third shape of benchmarks/memory.py, which take 0.53 and 0.67.
FRAGMENTED = 0.6
TILE = (4096, 32768)  # on a GPU, TRL's fused head computes logits for so many tokens and words at a time


@dataclass(frozen=True)
class Shape:
    """What memory depends on, of a Llama or Qwen2 model. `biases`: numbers that q, k and v add, per layer."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    biases: int

    @property
    def projections(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def linear(self) -> int:
        """Weights that NF4 quantises: those of all blocks."""
        return self.layers * sum(wide * high for wide, high in self.projections)

    @property
    def unquantised(self) -> int:
        """Embeddings, an LM head of its own, norms and biases."""
        head = 1 if self.tied else 2
        return head * self.vocab * self.hidden + self.layers * (2 * self.hidden + self.biases) + self.hidden

    @property
    def parameters(self) -> int:
        return self.linear + self.unquantised

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA of this rank on every linear layer."""
        return self.layers * rank * sum(wide + high for wide, high in self.projections)


@dataclass(frozen=True)
class Run:
    """One training run. `tokens`: of a whole micro batch, `labelled`: those of them that have a label.

    `attended`: tokens in the grid that attention goes over row by row (packed.collate): every row as the longest.
    `element`: bytes of a number that is computed with (2 for bfloat16 and float16). `on_cpu`: resident memory counts,
    and with it the file of the weights, which stays mapped while the model lives.
    """

    method: Method
    tokens: int
    attended: int
    labelled: int
    rank: int
    element: int
    checkpointing: bool
    on_cpu: bool


@dataclass(frozen=True)
class Peak:
    """Bytes by part; the sum is the peak."""

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    workspace: float
    overhead: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape in a config.json. Raises InputError naming `where` for another architecture or a missing fact."""
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2"):
        raise InputError(f"{where}: memory is known for the architectures llama and qwen2, not for {kind!r}")
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim, kv_heads = config.get("head_dim") or hidden // heads, config.get("num_key_value_heads") or heads
        return Shape(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            biases=(heads + 2 * kv_heads) * head_dim if kind == "qwen2" else 0,
        )
    except KeyError as missing:
        raise InputError(f"{where}: {missing} is missing") from None


def read_shape(base: Path) -> Shape:
    """The shape of the model in a folder. Raises InputError."""
    file = base / "config.json" if base.is_dir() else base
    try:
        return shape_of(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{file}: {error}") from error


def layer_activations(shape: Shape, run: Run) -> float:
    """What autograd saves of one block, in bytes.

    The MLP saves gate, its activation, up and their product; attention saves q, k, v, its output and its log-sum of the
    grid, in float32 on a CPU. A norm works on a float32 copy. LoRA saves the input of each projection, which q, k and v
    share, and its own middle. A trained float32 weight also wants a cast of its own.
    """
    width, wide = shape.hidden, shape.heads * shape.head_dim
    exact = FLOAT32 if run.on_cpu else run.element
    grid = exact * 2 * (wide + shape.kv_heads * shape.head_dim) + FLOAT32 * shape.heads
    saved = run.element * (4 * shape.intermediate + wide)
    if run.method == "full":
        saved += run.element * 5 * width + 4 * FLOAT32 * width
    else:
        saved += run.element * (2 * width + 7 * run.rank) + 2 * FLOAT32 * width
    return run.tokens * saved + run.attended * grid


def activations(shape: Shape, run: Run) -> float:
    """All blocks; with checkpointing the input of each, and one block at a time worked out again."""
    trains_all = run.method == "full"
    ends = 3 * FLOAT32 * run.tokens * shape.hidden if trains_all else 0  # last norm and LM head; LoRA spares the first
    if not run.checkpointing:
        return shape.layers * layer_activations(shape, run) + ends
    stream = FLOAT32 if trains_all else run.element
    return shape.layers * run.tokens * shape.hidden * stream + layer_activations(shape, run) + ends


def logits(shape: Shape, run: Run) -> float:
    """The LM head, forwards and backwards.

    On a CPU log-probabilities, their gradient and the logits' gradient in float32, and the last as it is computed with
    too; a GPU works on a tile of the logits, in place.
    """
    if run.on_cpu:
        return (run.element + 3 * FLOAT32) * run.labelled * shape.vocab
    tile = run.element * min(run.labelled, TILE[0]) * min(shape.vocab, TILE[1])
    return tile + FLOAT32 * run.labelled * shape.hidden


def workspace(shape: Shape, run: Run) -> float:
    """Backwards through one MLP: gradients of what it saved, and the largest weight dequantised."""
    gradients = 5 * run.element * run.tokens * shape.intermediate
    return gradients + 2 * run.element * shape.hidden * shape.intermediate


def peak(shape: Shape, run: Run) -> Peak:
    """Peak bytes of training, by part."""
    trained = shape.parameters if run.method == "full" else shape.adapter(run.rank)
    cast = run.element if run.element < FLOAT32 else 0  # autocast keeps a copy of what is trained for the whole step
    if run.method == "full":
        weights, adapters = float(FLOAT32 * trained + cast * trained), 0.0
    else:
        weights = run.element * (shape.unquantised + (shape.linear if run.method == "lora" else 0))
        adapters = float((FLOAT32 + cast) * trained)
    if run.method == "qlora":
        weights += NF4 * shape.linear
    if run.on_cpu and run.method == "qlora" and run.element < FLOAT32:
        # The 16-bit file stays mapped and counts as far as it is read: of embeddings that are no LM head, used rows.
        weights += 2 * shape.linear - (0 if shape.tied else run.element * shape.vocab * shape.hidden)
    busy, head, saved = workspace(shape, run), logits(shape, run), activations(shape, run)
    state = adapters + (FLOAT32 + ADAMW) * trained
    return Peak(
        weights=weights,
        adapters=adapters,
        gradients=FLOAT32 * trained,
        optimizer=ADAMW * trained,
        activations=saved,
        logits=head,
        workspace=max(0.0, busy - head),  # the two are never held at once
        overhead=FRAGMENTED * (state + saved) if run.on_cpu else 0.0,
    )


def available(device: str) -> int:
    """Bytes that a run on "cuda" or "cpu" can still take here; a container's limit counts."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")
    if limit.is_file() and used.is_file() and limit.read_text(encoding="ascii").strip().isdigit():
        held = dict(line.split() for line in used.read_text(encoding="ascii").splitlines())  # the page cache gives way
        free = min(free, int(limit.read_text(encoding="ascii")) - int(held["anon"]))
    return free
