"""From a recipe to objects. The verbs in ``run`` put them together; all other modules take plain arguments."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nlp_mtl.build_augmentation import augmenters
from nlp_mtl.build_consistency import consistency
from nlp_mtl.build_data import Prepared
from nlp_mtl.build_distillation import teaching
from nlp_mtl.build_extended import extended_model, keep_old, learned_tasks
from nlp_mtl.build_extension import Base
from nlp_mtl.build_start import encoder_config, start_model
from nlp_mtl.data.class_balance import oversampled, undersampled
from nlp_mtl.data.encoded_splits import EncodedSplit, Split, StreamedSplit
from nlp_mtl.data.layout import MICRO_BATCH_COST
from nlp_mtl.data.rates import annealed_phases, needed_rates, sampling_rates, unimax_rates
from nlp_mtl.data.sampling import PassRows, Sampler
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.errors import DataError, Problem, RecipeError, listed
from nlp_mtl.metrics import Scores
from nlp_mtl.models.encoder import checkpoint_gradients, encoder_origin, load_encoder
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.models.packing import will_pack
from nlp_mtl.models.taken_heads import take_head
from nlp_mtl.recipe import Recipe
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import MISSING, Task
from nlp_mtl.training.balancing import Balancer, guess_loss
from nlp_mtl.training.freezing import freeze, learning_layers
from nlp_mtl.training.gradients import TaskGradients, shared_parameters
from nlp_mtl.training.threads import num_threads
from nlp_mtl.training.trainer import Resample

logger = logging.getLogger(__name__)


def expects_to_pack(recipe: Recipe, base: Base | None = None) -> bool:
    """Whether a recipe's texts will be packed, as far as the encoder's configuration tells: no weights are read.

    Args:
        base: the trained model that the recipe extends.

    Raises:
        ModelError: they should be, but cannot.
    """
    config = encoder_config(recipe) if base is None else base.model.config.encoder_config
    return will_pack(config, layout(recipe))


def layout(recipe: Recipe) -> str:
    """The recipe's layout: ``auto``, ``padded`` or ``packed``. Compiled encoders and adapters read padded texts."""
    is_padded = recipe.training.compile or recipe.sharing.strategy == "lora"
    return "padded" if is_padded else recipe.training.layout


def steps(
    recipe: Recipe,
    prepared: Prepared,
    *,
    process: int = 0,
    num_processes: int = 1,
    device: str = "cpu",
    packed: bool = False,
) -> StepDataset:
    """The training steps of a recipe, laid out for one process.

    Args:
        packed: whether the model packs; see :meth:`nlp_mtl.models.multitask.MultiTaskModel.packs`.

    Raises:
        DataError: there is nothing to train on, or a task has fewer than two labels in the training splits.
        RecipeError: the run is longer than ``sampling.max_passes`` allows.
    """
    settings, shares = recipe.training, recipe.sampling.shares
    train, tasks = drawn_from(recipe, prepared), learned_tasks(recipe, prepared)
    for task in tasks:
        if task.name not in recipe.learned_tasks or task.name in recipe.old_tasks:
            continue  # it learns from a teacher alone, or has learned before
        read = [split for split in train.values() if task.name in split.tasks]
        if any(isinstance(split, StreamedSplit) for split in read):
            continue  # nobody has seen its labels
        if what := _too_little(task, [split for split in read if isinstance(split, EncodedSplit)]):
            of = " that sampling.shares draws from" if 0 in shares.values() else ""
            raise DataError(f"task `{task.name}` has {what} in the train splits{of}; there is nothing to tell apart")
    sampler = _sampler(recipe, train)
    return StepDataset(
        list(train.values()),
        sampler,
        tasks,
        prepared.framing,
        max_tokens=_max_tokens(recipe, train),
        micro_batch_cost=MICRO_BATCH_COST.get(device, MICRO_BATCH_COST["cuda"]),
        process=process,
        num_processes=num_processes,
        # Threads cannot share what is compiled: it draws the numbers of its dropout from one generator.
        num_threads=1 if settings.compile else num_threads(device, num_processes),
        packed=packed,
        is_bucketed=settings.compile,
        one_set_every=1 if recipe.gradients.strategy != "sum" else recipe.gradients.measure_every,
        augmenters=augmenters(recipe, prepared, train),
        teaching=teaching(recipe),
    )


def _too_little(task: Task, splits: Sequence[EncodedSplit]) -> str:
    """What a task has where that leaves nothing to learn; empty: it has enough."""
    num_items = sum(int(split.labelled[task.name].sum()) for split in splits)
    if not num_items:
        return "no labelled row"
    label_set = kind_of(task).label_set
    if label_set == "none":
        numbers = np.unique(np.concatenate([split.numbers(task) for split in splits]))
        return f"only the number {numbers[0]:g}" if len(numbers) < 2 else ""
    counts = np.sum([split.label_counts(task) for split in splits], axis=0)
    if label_set == "many":
        return "the same labels everywhere" if all(count in (0, num_items) for count in counts) else ""
    occurring = [task.labels[place] for place in np.flatnonzero(counts)]
    return f"only the label {listed(occurring)}" if len(occurring) < 2 else ""


def _max_tokens(recipe: Recipe, train: Mapping[str, Split]) -> int:
    """Tokens of a micro-batch; with adapters a row goes through the encoder once for each of its tasks."""
    learned = {*recipe.learned_tasks}
    read_by = [{*split.tasks} & learned | {*split.soft} for split in train.values()]
    times = max(map(len, read_by)) if recipe.sharing.strategy == "lora" else 1
    return max(1, recipe.training.max_tokens // times)


def _sampler(recipe: Recipe, train: Mapping[str, Split]) -> Sampler:
    """The step plans of a recipe over its training splits."""
    settings, sampling = recipe.training, recipe.sampling
    passes = [_pass_over(recipe, name, split) for name, split in train.items()]
    sizes = [size for size, _ in passes]
    num_rows = math.inf if 0 in sizes else round(settings.num_epochs * sum(sizes))
    if settings.max_steps is not None:
        num_rows = min(num_rows, settings.max_steps * settings.batch_size)
    num_rows = max(int(num_rows), 1)
    rates: Any
    if sampling.strategy == "unimax":
        if 0 not in sizes and num_rows > sampling.max_passes * sum(sizes):
            found = f"{sampling.max_passes:g} passes over all datasets are {sampling.max_passes * sum(sizes):,.0f} rows"
            message = f"{found}, and the run draws {num_rows:,}; raise it, or take fewer steps"
            raise RecipeError([Problem("sampling.max_passes", message)])
        rates = unimax_rates(sizes, num_rows, sampling.max_passes)
    elif sampling.strategy == "annealed":
        rates = annealed_phases(sizes, num_rows, settings.batch_size)
    else:
        strategy = "uniform" if sampling.strategy in ("round_robin", "dynamic") else sampling.strategy
        rates = sampling_rates(sizes, strategy, sampling.temperature, [sampling.shares.get(name, 0) for name in train])
    return Sampler(
        sizes,
        rates,
        batch_size=settings.batch_size,
        num_rows=num_rows,
        seed=recipe.seed,
        streamed=[place for place, split in enumerate(train.values()) if isinstance(split, StreamedSplit)],
        whole_steps=sampling.strategy == "round_robin",
        passes_of={place: rows_of for place, (_, rows_of) in enumerate(passes) if rows_of is not None},
    )


def _pass_over(recipe: Recipe, name: str, split: Split) -> tuple[int, PassRows | None]:
    """Rows in a pass over a training split (0: nobody knows), and which they are; None: each once."""
    spec = recipe.datasets[name]
    task = spec.oversample or spec.undersample
    if isinstance(split, StreamedSplit):
        return split.source.num_rows or 0, None
    if task is None:
        return len(split), None
    classes = split.classes(task)
    if (classes == MISSING).all():
        key = "oversample" if spec.oversample else "undersample"
        raise DataError(f"dataset `{name}` has no train row with a label of `{task}`: leave out datasets.{name}.{key}")
    return (oversampled if spec.oversample else undersampled)(classes, recipe.seed)


def drawn_from(recipe: Recipe, prepared: Prepared) -> dict[str, Split]:
    """The training splits that steps learn from."""
    train: dict[str, Split] = {**prepared.split("train"), **prepared.streams}
    return {name: train[name] for name in prepared.loaded if name in train and recipe.draws_from(name)}


def steps_per_epoch(recipe: Recipe, prepared: Prepared) -> int:
    """Steps in which at least as many rows are drawn as a pass over all data has, so that the last epoch ends last."""
    rows = sum(_pass_over(recipe, name, split)[0] for name, split in drawn_from(recipe, prepared).items())
    return math.ceil(rows / recipe.training.batch_size)


def new_model(recipe: Recipe, prepared: Prepared, base: Base | None = None) -> MultiTaskModel:
    """The recipe's encoder, or a trained model, with new heads (initialized from torch's global seed), or with its own.

    Args:
        base: the trained model that the recipe extends.

    Raises:
        ModelError: the encoder cannot be loaded, is of a family that has no such heads, has fewer layers than are to be
            frozen, or cannot checkpoint gradients; or the trained model cannot be extended.
    """
    model = (start_model(recipe, prepared) if base is None else None) or _with_new_heads(recipe, prepared, base)
    freeze(model, recipe.training.frozen_layers)
    if base is not None:
        keep_old(recipe, model, base)
    if recipe.training.unfreeze_every and not learning_layers(model):
        message = f"frozen_layers: {recipe.training.frozen_layers} leaves nothing to unfreeze; choose one of the two"
        raise RecipeError([Problem("training.unfreeze_every", message)])
    if recipe.training.gradient_checkpointing:
        checkpoint_gradients(model.encoder)
    return model


def _with_new_heads(recipe: Recipe, prepared: Prepared, base: Base | None) -> MultiTaskModel:
    model = (
        extended_model(recipe, prepared, base)
        if base is not None
        else from_encoder(
            load_encoder(recipe.encoder, recipe.encoder_revision, recipe.training.dropout),
            prepared.tasks,
            word_splitter=recipe.word_splitter,
            max_length=prepared.framing.max_length,
            window_overlap=recipe.window_overlap,
            cleaning=prepared.cleaning.to_dict(),
            sharing=recipe.sharing.settings(),
            consistency=consistency(recipe, prepared),
            encoder_origin=encoder_origin(recipe.encoder, recipe.encoder_revision),
        )
    )
    for task in prepared.tasks:
        spec = recipe.tasks[task.name]
        if spec.init_from is not None:
            take_head(model, task, spec.init_from, spec.init_from_revision, spec.label_map)
    return model


def balancer(recipe: Recipe, prepared: Prepared, device: torch.device | str = "cpu") -> Balancer:
    """What weighs a recipe's losses."""
    settings = recipe.balancing
    return Balancer(
        learned_tasks(recipe, prepared),
        settings.strategy,
        scale=settings.scale,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        period=settings.period or steps_per_epoch(recipe, prepared),
        seed=recipe.seed,
        device=device,
    )


def task_gradients(recipe: Recipe, model: MultiTaskModel, tasks: Sequence[Task]) -> TaskGradients | None:
    """What tells a recipe's gradients apart; None: they are added up."""
    settings = recipe.gradients
    if settings.strategy == "sum" and settings.measure_every is None:
        return None
    if not shared_parameters(model):
        message = "tasks share nothing that learns where all layers are frozen, so `gradients` does nothing"
        raise RecipeError([Problem("training.frozen_layers", message)])
    return TaskGradients(model, tasks, **settings.model_dump(), seed=recipe.seed)


def resampling(recipe: Recipe, prepared: Prepared) -> Resample | None:
    """How a recipe's datasets are sampled anew after each evaluation; None: they are not.

    Raises:
        RecipeError: what a dataset needs cannot be told.
    """
    sampling = recipe.sampling
    if sampling.strategy != "dynamic":
        return None
    train = drawn_from(recipe, prepared)
    num_steps = math.ceil(_sampler(recipe, train).num_rows / recipe.training.batch_size)
    if (recipe.training.eval_every or steps_per_epoch(recipe, prepared)) >= num_steps:
        logger.warning(
            "sampling.strategy dynamic looks at evaluations during training, of which there is none: shares stay "
            "uniform. Set a smaller `training.eval_every`"
        )
    learned = learned_tasks(recipe, prepared)
    readers = {name: [task for task in learned if task.name in split.tasks] for name, split in train.items()}
    if sampling.need == "metric":
        scored = scored_tasks(prepared)
        readers = {name: [task for task in tasks if task.name in scored] for name, tasks in readers.items()}
        if blind := [name for name, tasks in readers.items() if not tasks]:
            message = f"no task of {listed(blind)} has labels on validation, so nobody sees what it needs: `need: loss`"
            raise RecipeError([Problem("sampling.need", message)])

    def resample(scores: Mapping[str, Scores], losses: Mapping[str, float]) -> dict[str, float]:
        if sampling.need == "metric":
            needs = {
                task.name: max(sampling.targets.get(task.name, 1.0) - scores[task.name][task.metric], 0.0)
                for task in learned
                if task.name in scores
            }
        else:  # a task that no step learned from needs as much as one that guesses
            needs = {task.name: losses[task.name] / guess_loss(task) if task.name in losses else 1.0
                     for task in learned}  # fmt: skip
        of_datasets = [float(np.mean([needs[task.name] for task in tasks])) for tasks in readers.values()]
        return dict(zip(readers, needed_rates(of_datasets, sampling.floor).tolist(), strict=True))

    return resample


def scored_tasks(prepared: Prepared) -> set[str]:
    """The tasks that have labels on validation."""
    validation = prepared.split("validation").values()
    return {task.name for task in prepared.tasks for split in validation
            if task.name in split.tasks and split.labelled[task.name].any()}  # fmt: skip


def selection_weights(recipe: Recipe, prepared: Prepared) -> dict[str, float]:
    """``{task: weight}`` of the mean that chooses the best model."""
    given = recipe.training.selection_weights
    return {task.name: given.get(task.name, 0.0) if given else 1.0 for task in prepared.tasks}


def selecting_tasks(recipe: Recipe, prepared: Prepared) -> set[str]:
    """The tasks that count for the selection score and have labels on validation."""
    return scored_tasks(prepared) & {task for task, weight in selection_weights(recipe, prepared).items() if weight}


def trainer_arguments(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """The recipe's training section as arguments of :func:`nlp_mtl.training.trainer.train`.

    Raises:
        RecipeError: early stopping or a selection by certain tasks is wanted, but nothing can be scored.
    """
    chosen = [task for task, weight in selection_weights(recipe, prepared).items() if weight]
    scored = selecting_tasks(recipe, prepared)
    if recipe.training.selection_weights and (unscored := [name for name in chosen if name not in scored]):
        message = "the task has no labels in a validation split, so no model can be selected by it: leave it out"
        raise RecipeError([Problem(f"training.selection_weights.{name}", message) for name in unscored])
    if recipe.training.early_stopping_patience and not scored:
        message = "early stopping needs a validation split with labels of a task that counts for the selection score"
        raise RecipeError([Problem("training.early_stopping_patience", message)])
    elsewhere = {"num_epochs", "max_steps", "batch_size", "max_tokens", "layout"}  # in the steps
    elsewhere |= {
        "dropout",
        "frozen_layers",
        "cache_features",
        "gradient_checkpointing",
        "deterministic",
        "selection_weights",
        "trackers",
    }
    settings = recipe.training.model_dump(exclude=elsewhere)
    settings["eval_every"] = settings["eval_every"] or steps_per_epoch(recipe, prepared)
    return {**settings, "seed": recipe.seed, "resample": resampling(recipe, prepared)}
