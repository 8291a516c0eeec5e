"""From chat rows to the token ids and labels that training takes."""

from pathlib import Path
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError
from stages.model import chat
from stages.model.prefix_sharing import IGNORED, Row


def encode(tokenizer: Any, prefix: list[chat.Turn], example: dict[str, Any]) -> Row:
    """Token ids of prompt and answer, and labels that leave the prompt out; no EOS after a truncated answer."""
    prompt = chat.prompt_ids(tokenizer, chat.with_prefix(prefix, example["prompt"]))
    answer = chat.answer_ids(tokenizer, example["answer"])
    answer = answer[:-1] if example.get("truncated") else answer
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def check_labels(name: str, row: Row, example: dict[str, Any], tokenizer: Any, max_length: int) -> None:
    """What the model is trained to say must be the answer and EOS, nothing else. Raises InputError naming the row.

    A mask that is wrong in every row trains without complaint, and shows only as a poor model much later.
    """
    labelled = [label for label in row["labels"] if label != IGNORED]
    end = [] if example.get("truncated") else [tokenizer.eos_token_id]
    said = labelled[: len(labelled) - len(end)]
    problem = None
    if not labelled:
        problem = "no token is labelled"
    elif labelled[len(said) :] != end:
        problem = "the labels do not end in EOS"
    elif tokenizer.decode(said, clean_up_tokenization_spaces=False) != example["answer"]:
        problem = "the labels are not the answer"
    elif row["labels"][-len(labelled) :] != labelled or row["input_ids"][-len(labelled) :] != labelled:
        problem = "the labels are not the end of the row"
    elif len(row["input_ids"]) > max_length:
        problem = f"{len(row['input_ids'])} tokens, more than chat.max_length = {max_length}"
    if problem:
        raise InputError(f"training row {name}: {problem}")


def rows(tokenizer: Any, prefix: list[chat.Turn], file: Path, max_length: int) -> list[Row]:
    """The rows of a chat file, tokenised and checked. Raises InputError naming a line that `build` would not write."""
    examples = list(strict_json.read_jsonl(file))
    for line, example in enumerate(examples, start=1):
        if not isinstance(example, dict) or {type(example.get(name)) for name in ("id", "answer")} != {str}:
            raise InputError(f"{file}:{line}: an object with texts id and answer and a list prompt is expected")
        chat.check_turns(f"{file}:{line}: prompt", example.get("prompt"))
    if not examples:
        raise InputError(f"{file}: no rows")
    encoded = [encode(tokenizer, prefix, example) for example in examples]
    for example, row in zip(examples, encoded, strict=True):
        check_labels(f"{file}: {example['id']}", row, example, tokenizer, max_length)
    return encoded


def dataset(*parts: list[Row]) -> Any:
    """The rows of all parts, numbered. Those of a part begin alike, which is what `prefix_sharing.collate` shares."""
    from datasets import Dataset

    marked = [{**row, "part": part} for part, found in enumerate(parts) for row in found]
    return Dataset.from_list([{**row, "row": number} for number, row in enumerate(marked)])
