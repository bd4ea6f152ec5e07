"""The steps of a meta run as data: each holds some episodes, dealt to processes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from nlp_mtl.data.augmentation import Augmenter
from nlp_mtl.data.batches import MicroBatch, collate
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.episodes import EpisodePlan, EpisodeShape, EpisodeSource, items_of, learnable, passes, relabelled
from nlp_mtl.data.items import Framing, Item, item_lengths, read_items
from nlp_mtl.data.sampling import Sampler, StepPlan
from nlp_mtl.data.steps import Episode, StepBatches, StepDataset
from nlp_mtl.tasks import Task


class EpisodeSteps(StepDataset):
    """The steps of a meta run, laid out for one process: item number ``step`` is a pure function of the step.

    Datasets get episodes by their rates, and tasks of a dataset by their loss weights.
    """

    def __init__(
        self,
        splits: Sequence[EncodedSplit],
        tasks: Sequence[Task],
        framing: Framing,
        *,
        shape: EpisodeShape,
        rates: Sequence[float] | np.ndarray,
        num_steps: int,
        episodes: int,
        inner_steps: int,
        batch_size: int,
        seed: int,
        augmenters: Mapping[int, Augmenter] | None = None,
        **layout: Any,
    ) -> None:
        """
        Args:
            splits: those that episodes are made of; each has a task with a loss weight.
            rates: the share of episodes that each split gives; they sum to 1.
            episodes: in a step.
            inner_steps: of an episode, of ``batch_size`` rows each.
            augmenters: as in :class:`StepDataset`; rows that are tried on stay what they are.
            layout: all other arguments of :class:`StepDataset`.

        Raises:
            DataError: a task has too few rows for an episode.
        """
        sizes = [len(split) for split in splits]
        sampler = Sampler(sizes, rates, batch_size=episodes, num_rows=num_steps * episodes, seed=seed)
        super().__init__(splits, sampler, tasks, framing, augmenters=augmenters, **layout)
        self.inner_steps, self.batch_size, self.seed = inner_steps, batch_size, seed
        self._drawn = [learnable(tasks, split) for split in splits]
        by_name = {task.name: task for task in tasks}
        self._sources = [
            [EpisodeSource(split, by_name[name], shape) for name in drawn]
            for split, drawn in zip(splits, self._drawn, strict=True)
        ]

    def plans(self, step: int) -> list[tuple[int, int, EpisodePlan]]:
        """The episodes of a step: their number in the run, their split, what they hold."""
        found = []
        for offset, dataset in enumerate(self.sampler[step].datasets.tolist()):
            number = step * self.sampler.batch_size + offset
            draw = np.random.default_rng([self.seed, 5, number])
            chosen = draw.choice(len(self._drawn[dataset]), p=[*self._drawn[dataset].values()])
            found.append((number, dataset, self._sources[dataset][chosen](draw)))
        return found

    def __getitem__(self, step: int) -> StepBatches:
        episodes, num_tokens, counts = [], 0, dict.fromkeys((task.name for task in self.tasks), 0)
        for place, (number, dataset, plan) in enumerate(self.plans(step)):
            counts[plan.task.name] += 1
            if place % self.num_processes == self.process:
                episode, tokens = self._episode(number, dataset, plan)
                episodes.append(episode)
                num_tokens += tokens * self.num_processes  # of the others about as many
        return StepBatches(step, [], counts, num_tokens, {}, episodes)

    def _episode(self, number: int, dataset: int, plan: EpisodePlan) -> tuple[Episode, int]:
        draw = np.random.default_rng([self.seed, 6, number])
        batches = passes(plan.support, self.batch_size, self.inner_steps, draw)
        split, augmenter = self.splits[dataset], self.augmenters.get(dataset)
        assert isinstance(split, EncodedSplit)
        changes = [
            None if augmenter is None else partial(augmenter, number * self.inner_steps + place, rows)
            for place, rows in enumerate(batches)
        ]
        read = [
            relabelled(read_items(split, rows, [plan.task], self.framing, 0, change), plan) if len(rows) else []
            for rows, change in zip([*batches, plan.query], [*changes, None], strict=True)
        ]
        laid_out = [(self._micro_batches(plan.task, items), items_of(plan.task, items)) for items in read]
        tokens = sum(int(item_lengths(items, self.framing).sum()) for items in read)
        return Episode(plan.task, [self.seed, number], laid_out[:-1], laid_out[-1]), tokens

    def _micro_batches(self, task: Task, items: Sequence[Item]) -> list[MicroBatch]:
        (batches,) = self._shared(item_lengths(items, self.framing), 1) if items else ([],)
        return [collate([items[i] for i in batch], [task], self.framing, packed=self.packed) for batch in batches]

    def where(self, plan: StepPlan, task: str) -> list[str]:
        """The places of the rows in a step's episodes of a task, for messages."""
        found: list[str] = []
        for _, dataset, episode in self.plans(plan.step):
            if episode.task.name == task:
                rows = np.concatenate([episode.support, episode.query])
                found += [self.splits[dataset].where(int(row)) for row in rows]
        return found
