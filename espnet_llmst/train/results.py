"""What an epoch leaves behind: its report, its model file, the links to the latest and best, the average at the end."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from espnet2.train.reporter import Reporter

from espnet_llmst.cli import InputError
from espnet_llmst.train.checkpoint import link_atomically, write_atomically
from espnet_llmst.train.curve import plot_curves
from espnet_llmst.train.state import Training


def report_epoch(training: Training, writers: dict) -> None:
    """The results of the epoch to log, images/, tensorboard/ and wandb."""
    reporter, options = training.reporter, training.options
    logging.info(reporter.log_message())
    if options.use_matplotlib:
        reporter.matplotlib_plot(training.directory / "images")
        plot_curves(training.curve, training.directory / "images")
    for part, writer in writers.items():
        reporter.tensorboard_add_scalar(writer, key1=part)
    if options.use_wandb:
        reporter.wandb_log()


def write_model(training: Training, state: dict) -> None:
    """``<n>epoch.pth``, ``latest.pth`` and ``<part>.<value>.best.pth``; files that are no longer needed go.

    ``state`` is the model's, gathered from all ranks.
    Doing this again after a kill gives the same files.
    """
    directory, epoch, reporter = training.directory, training.epoch, training.reporter
    name = f"{epoch}epoch.pth"
    write_atomically(directory / name, in_dtype(state, training.options.save_dtype))
    link_atomically(directory / "latest.pth", name)
    improved = []
    for part, value, mode in _criteria(training):
        if reporter.get_best_epoch(part, value, mode) == epoch:
            link_atomically(directory / f"{part}.{value}.best.pth", name)
            improved.append(f"{part}.{value}")
    if improved:
        logging.info("The best model has been updated: " + ", ".join(improved))
    else:
        logging.info("There are no improvements in this epoch")
    interval = training.options.wandb_model_log_interval
    if training.options.use_wandb and interval > 0 and epoch % interval == 0:
        _log_artifact(training, name, improved)
    interval = training.options.nbest_averaging_interval
    if interval > 0 and epoch % interval == 0:
        average(training, suffix=f"till{epoch}epoch")
    _remove_models(training)


def in_dtype(state: dict[str, torch.Tensor], name: str | None) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a model in the dtype of that name; None: as they are."""
    dtype = name and getattr(torch, name)
    return {key: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for key, tensor in state.items()}


def average(training: Training, suffix: str | None = None) -> None:
    """Averages of the n best models, ``<part>.<value>.ave_<n>best.pth``.

    Raises:
        InputError: one of them has been removed, because fewer were kept before.
    """
    keep = _keep(training.options.keep_nbest_models)
    missing = [name for name in _nbest_names(training) if not (training.directory / name).exists()]
    if missing:
        raise InputError(
            f"{training.directory}: {missing[0]} is one of the {max(keep)} best, but it was removed while "
            "keep_nbest_models was smaller; all epochs are trained: run again with a smaller --keep_nbest_models"
        )
    end = f".{suffix}.pth" if suffix else ".pth"
    for part, value, mode in _criteria(training):
        best, name = training.reporter.sort_epochs(part, value, mode), f"{part}.{value}.ave"
        counts = [count for count in keep if 0 < count <= len(best)] or [1]
        for count in counts:
            files = [training.directory / f"{epoch}epoch.pth" for epoch in best[:count]]
            if count == 1:
                link_atomically(training.directory / f"{name}_1best{end}", files[0].name)
            else:
                logging.info(f"averaging the {count} best models by {part}.{value}")
                write_atomically(training.directory / f"{name}_{count}best{end}", mean_of(files))
        link_atomically(training.directory / f"{name}{end}", f"{name}_{max(counts)}best{end}")


def mean_of(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of model files, summed in float32 at least; whole numbers (a batch normalisation's count) of the first.

    ESPnet's own averages of several criteria add to what an earlier one has already averaged.
    """
    first = torch.load(files[0], map_location="cpu", weights_only=True)
    floats = [key for key, tensor in first.items() if tensor.is_floating_point()]
    total = {key: first[key].to(torch.promote_types(first[key].dtype, torch.float32)) for key in floats}
    for file in files[1:]:
        state = torch.load(file, map_location="cpu", weights_only=True)
        total = {key: tensor + state[key] for key, tensor in total.items()}
    return first | {key: (tensor / len(files)).to(first[key].dtype) for key, tensor in total.items()}


def _keep(keep_nbest_models: int | Sequence[int]) -> list[int]:
    """The numbers of models to average."""
    return [keep_nbest_models] if isinstance(keep_nbest_models, int) else list(keep_nbest_models) or [1]


def _criteria(training: Training) -> list[tuple[str, str, str]]:
    """The criteria of which the reporter has values."""
    reporter: Reporter = training.reporter
    return [tuple(c) for c in training.options.best_model_criterion if reporter.has(*c[:2])]


def _nbest_names(training: Training) -> list[str]:
    """Model files of the n best epochs by any criterion."""
    most = max(_keep(training.options.keep_nbest_models))
    ordered = [training.reporter.sort_epochs(*criterion)[:most] for criterion in _criteria(training)]
    return [f"{epoch}epoch.pth" for epoch in sorted(set().union(*ordered))]


def _remove_models(training: Training) -> None:
    keep, removed = _nbest_names(training), []
    for epoch in range(1, training.epoch):
        path = training.directory / f"{epoch}epoch.pth"
        if path.exists() and path.name not in keep:
            path.unlink()
            removed.append(str(path))
    if removed:
        logging.info("The model files were removed: " + ", ".join(removed))


def _log_artifact(training: Training, name: str, improved: list[str]) -> None:
    import wandb

    artifact = wandb.Artifact(f"model_{wandb.run.id}", type="model", metadata={"improved": improved})
    artifact.add_file(str(training.directory / name))
    wandb.log_artifact(artifact, aliases=[f"epoch-{training.epoch}", *(["best"] if improved else [])])
