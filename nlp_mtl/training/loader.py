"""The steps of a run, made ahead by workers. Ours from the plan to the device: never `prepare`d."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from nlp_mtl.data.steps import StepBatches, StepDataset
from nlp_mtl.errors import DataError, RunError
from nlp_mtl.training.termination import ignore_termination


def loaded_steps(
    data: StepDataset, steps: range, num_workers: int, seed: int, pause_every: int | None = None
) -> Iterator[StepBatches]:
    """The batches of ``steps``, in order.

    Args:
        num_workers: processes that make them ahead; 0: this one makes them as they are asked for.
        pause_every: after so many steps of the run, none is made ahead before it is asked for, since it may not be
            planned yet.

    Raises:
        DataError: rows of a stream cannot be read.
        RunError: hidden states that were kept are gone.
    """
    while steps:
        stop = steps.stop if pause_every is None else (steps.start // pause_every + 1) * pause_every
        yield from _loaded(data, steps[: stop - steps.start], num_workers, seed)
        steps = steps[stop - steps.start :]


def _loaded(data: StepDataset, steps: range, num_workers: int, seed: int) -> Iterator[StepBatches]:
    loader = DataLoader(
        _Told(data),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),  # its own, so that workers leave the global one alone
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=ignore_termination,
    )
    for made in loader:
        if isinstance(made, DataError | RunError):
            raise made
        yield made


class _Told(Dataset[StepBatches | DataError | RunError]):
    """Steps, or what is wrong with their data: torch would raise a worker's error with its traceback as the message."""

    def __init__(self, data: StepDataset) -> None:
        self.data = data

    def __getitem__(self, step: int) -> StepBatches | DataError | RunError:
        try:
            return self.data[step]
        except (DataError, RunError) as error:
            return error
