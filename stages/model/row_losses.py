"""Loss of each training row by epoch, before the step that learns it: a row that stays high may be labelled wrong."""

from typing import Any

UNSEEN = -1.0  # no loss is negative


class RowLosses:
    """Mean cross-entropy over the answer's tokens; `means` (epochs, rows)."""

    def __init__(self, rows: int, epochs: int, accelerator: Any) -> None:
        import torch

        self.accelerator = accelerator
        self.means = torch.full((epochs, rows), UNSEEN)

    def note(self, epoch: int, rows: Any, losses: Any) -> None:
        """`rows` (B, 2): each row's number and how many of `losses`, in order, are of its tokens."""
        numbers, counts = rows.cpu().T.tolist()
        for number, part in zip(numbers, losses.detach().float().cpu().split(counts), strict=True):
            if len(part):
                self.means[epoch, number] = part.mean()

    def of_all(self) -> list[list[float]]:
        """By epoch and row, from all processes; each has seen other rows. Every process calls it."""
        here = self.means[None].to(self.accelerator.device)
        return list(self.accelerator.gather(here).amax(0).tolist())

    def restore(self, means: list[list[float]]) -> None:
        self.means[:] = self.means.new_tensor(means)


def table(names: list[str], means: list[list[float]]) -> str:
    """One line per row; empty where an epoch ended before the row's turn."""
    import csv
    import io

    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["id", *(f"epoch_{number}" for number in range(1, len(means) + 1))])
    for name, *losses in zip(names, *means, strict=True):
        lines.writerow([name, *("" if loss == UNSEEN else f"{loss:.4f}" for loss in losses)])
    return text.getvalue()
