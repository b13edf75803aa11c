"""Plots of loss and learning rate by batch: a phase of one epoch is but a dot in ESPnet's plots by epoch."""

from pathlib import Path

NAMES = {"loss_by_batch": "training loss", "lr_by_batch": "learning rate"}


def plot_curves(curve: list[list[float]], directory: Path) -> None:
    """Write ``loss_by_batch.png`` and ``lr_by_batch.png``.

    Args:
        curve: rows of (batches since the beginning, loss, learning rate).
    """
    from matplotlib.figure import Figure

    if not curve:
        return
    directory.mkdir(parents=True, exist_ok=True)
    batches, *columns = zip(*curve, strict=True)
    for (name, label), values in zip(NAMES.items(), columns, strict=True):
        figure = Figure()
        axes = figure.add_subplot(xlabel="batch", ylabel=label)
        axes.plot(batches, values, marker=".")
        axes.grid()
        figure.savefig(directory / f"{name}.png")
