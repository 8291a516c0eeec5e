"""Peak memory of each stage, of training part by part, from a model's config alone; no weights and no torch needed.

In: a config.json (Llama, Mistral and SmolLM3, which have the same sizes, Qwen2) and a run's settings. Out: bytes, of
what stages/train.py does: the rows of a micro batch are one sequence, the base is NF4 with double quantisation except
for embeddings and LM head, LoRA sits on every linear layer, and the head scores the answers' tokens only.
benchmarks/memory.json has predicted and measured peaks of training; what the other stages hold is counted from their
code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.cli import InputError
from stages.model.quantised import IN_FULL

KINDS = ("llama", "mistral", "smollm3", "qwen2")
MARGIN = 1.1  # predictions were off by up to a tenth in bfloat16; on a CPU in float32 by more (benchmarks/memory*.json)
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # bytes: 4 bits, an 8-bit scale for 64 weights, a float32 one for 256 scales
GB = 10**9
FLOAT32 = 4
ADAMW = 2 * FLOAT32  # two moments
# Share of what a CPU holds that glibc keeps and can't use again; the logits are large enough to be given back. Fitted
# on the first and third shape of benchmarks/memory.py, which take 0.53 and 0.67.
FRAGMENTED = 0.6
TILE = (4096, 32768)  # on a GPU, TRL's fused head computes logits for this many tokens and words at a time


@dataclass(frozen=True)
class Shape:
    """What memory depends on. `queries`, `keys`: width of the q and of the k projection; `biases`: per layer."""

    hidden: int
    layers: int
    heads: int
    queries: int
    keys: int
    intermediate: int
    vocab: int
    tied: bool
    biases: int

    @property
    def linear(self) -> int:
        """Weights that NF4 quantises: q, k, v, o, gate, up and down of all blocks."""
        return self.layers * self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)

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
        return self.layers * rank * (7 * self.hidden + 2 * self.queries + 2 * self.keys + 3 * self.intermediate)


@dataclass(frozen=True)
class Run:
    """`tokens` of a micro batch, of its attention grid (every row as the longest), and those with a label.

    `on_cpu`: resident memory counts, and with it the 16-bit file of the weights, which stays mapped.
    """

    tokens: int
    attention_tokens: int
    loss_tokens: int
    rank: int
    bytes_per_value: int
    checkpointing: bool
    on_cpu: bool


def shape_of(config: Mapping[str, Any], source: str) -> Shape:
    """The shape in a config.json. Raises InputError naming `source` for another architecture or a missing size."""
    kind = config.get("model_type")
    if kind not in KINDS:
        raise InputError(f"{source}: memory is known for the architectures {', '.join(KINDS)}, not for {kind!r}")
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
        layers, intermediate, vocab = (config[f] for f in ("num_hidden_layers", "intermediate_size", "vocab_size"))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{source}: a size is missing or wrong: {error}") from None
    tied, biases = bool(config.get("tie_word_embeddings")), queries + 2 * keys if kind == "qwen2" else 0
    return Shape(hidden, layers, heads, queries, keys, intermediate, vocab, tied, biases)


def activations(shape: Shape, run: Run) -> float:
    """What autograd saves, in bytes; with checkpointing the input of each block, and one block computed again.

    The MLP: gate, its activation, up, their product. Attention: q, k, v, its output and its log-sum of the grid, in
    float32 on a CPU. A norm: a float32 copy. LoRA: each projection's input, which q, k and v share, and its own middle.
    """
    size, exact = run.bytes_per_value, FLOAT32 if run.on_cpu else run.bytes_per_value
    values = 4 * shape.intermediate + shape.queries + 2 * shape.hidden + 7 * run.rank
    grid = exact * 2 * (shape.queries + shape.keys) + FLOAT32 * shape.heads
    block = run.tokens * (size * values + 2 * FLOAT32 * shape.hidden) + run.attention_tokens * grid
    return block + shape.layers * run.tokens * shape.hidden * size if run.checkpointing else shape.layers * block


def logits(shape: Shape, run: Run) -> float:
    """The LM head, forwards and backwards: on a CPU all of it, in float32 and once in the compute type; else a tile."""
    if run.on_cpu:
        return (run.bytes_per_value + 3 * FLOAT32) * run.loss_tokens * shape.vocab
    tile = run.bytes_per_value * min(run.loss_tokens, TILE[0]) * min(shape.vocab, TILE[1])
    return tile + FLOAT32 * run.loss_tokens * shape.hidden


def quantised(shape: Shape, run: Run) -> float:
    """Bytes of the 4-bit base; on a CPU with those of the file, which stays mapped."""
    size = run.bytes_per_value
    weights = size * shape.unquantised + NF4 * shape.linear
    if run.on_cpu and size < FLOAT32:  # of the file, embeddings that are no LM head count only as far as they are read
        weights += 2 * shape.linear - (0 if shape.tied else size * shape.vocab * shape.hidden)
    return weights


def trained(shape: Shape, run: Run) -> float:
    """Bytes of the base that an adapter is attached to; see quantised.for_training."""
    size = run.bytes_per_value
    dequantised = run.on_cpu and size * shape.parameters <= IN_FULL
    return quantised(shape, run) + (size - NF4) * shape.linear * dequantised


def parts(shape: Shape, run: Run) -> dict[str, float]:
    """Bytes by part; their sum is the peak."""
    size, adapter = run.bytes_per_value, shape.adapter(run.rank)
    saved, head = activations(shape, run), logits(shape, run)
    adapters = adapter * (FLOAT32 + (size if size < FLOAT32 else 0))  # autocast keeps a 16-bit copy for a whole step
    # Backwards through one MLP: gradients of what it saved, and its largest weight dequantised. Never beside the head.
    workspace = size * shape.intermediate * (5 * run.tokens + 2 * shape.hidden)
    state = {"adapters": adapters, "gradients": FLOAT32 * adapter, "optimizer": ADAMW * adapter, "activations": saved}
    return {
        "weights": trained(shape, run),
        **state,
        "logits": head,
        "workspace": max(0.0, workspace - head),
        "overhead": FRAGMENTED * sum(state.values()) if run.on_cpu else 0.0,
    }


@dataclass(frozen=True)
class Asked:
    """What `predict` generates at once: rows of at most `prompt` tokens, and as many `new` ones each."""

    rows: int
    prompt: int
    new: int


def stages(shape: Shape, run: Run, asked: Asked, files: int, packed: int) -> dict[str, tuple[float, float]]:
    """Peak bytes of each stage on the device and, where that is a card, on the host beside it.

    `files`: the most that `merge` puts into one file; `packed`: tokens that are rated in one pass.
    """
    size = FLOAT32 if run.on_cpu else run.bytes_per_value
    table = shape.vocab * shape.hidden
    # A matrix as it is dequantised, and what the adapter adds to it twice in float32: as product, and scaled.
    matrix = (run.bytes_per_value + 2 * FLOAT32) * shape.hidden * shape.intermediate
    merging = quantised(shape, run) + FLOAT32 * shape.adapter(run.rank) + matrix
    file = min(2 * shape.parameters, max(files, 2 * table))
    # In a forward pass the MLP holds four matrices, attention its scores in `size` and twice in float32.
    tokens, grid = asked.rows * asked.prompt, asked.rows * asked.prompt**2
    cache = 2 * size * shape.layers * shape.keys * asked.rows * (asked.prompt + asked.new)
    once = max(4 * size * shape.intermediate * tokens, (size + 2 * FLOAT32) * shape.heads * grid)
    rating = (2 * FLOAT32 + (size if size < FLOAT32 else 0)) * packed * shape.vocab
    weights = (size + 2 if run.on_cpu else size) * shape.parameters
    return {
        "train": (sum(parts(shape, run).values()), 0),
        "merge": (merging + file, 0) if run.on_cpu else (merging, file),
        "predict": (weights + cache + once, 0),
        "retention, memorisation": (weights + rating, 0),
        "gguf": (6 * table, 0) if run.on_cpu else (0, 6 * table),  # a matrix as it is read or written, and in float32
    }


def needed(shape: Shape, run: Run) -> float:
    """Bytes that have to be free for a run to start: its peak, and a tenth for the error of the prediction."""
    return MARGIN * sum(parts(shape, run).values())


def available(device: str) -> int:
    """Bytes that a run on "cuda" or "cpu" can still take here; a container's limit counts."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((Path("/sys/fs/cgroup") / name).read_text("ascii") for name in ("memory.max", "memory.stat"))
        return min(free, int(limit) - int(dict(map(str.split, used.splitlines()))["anon"]))  # the page cache gives way
    except (OSError, ValueError, KeyError):  # no container, or one without a limit
        return free
