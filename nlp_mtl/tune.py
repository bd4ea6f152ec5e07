"""The verb ``nlp-mtl tune``: trials of a recipe with other values, drawn by Optuna, kept in SQLite.

A trial is a run in a folder of its own. Which values it gets is a function of the seed, its number and the trials
before it; they are in the database before it starts. So a search that was killed goes on where it stood: finished
trials stay, and the one that ran is resumed from its newest checkpoint.
"""

import gc
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nlp_mtl.errors import MissingExtraError, ModelError, RecipeError, RunError, RunStopped, TrainingError, first_line
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_parts import TuneSpec
from nlp_mtl.run import train_trial
from nlp_mtl.run_extension import refuse_extension
from nlp_mtl.search_space import Choices, Dimension, Point, grid, grid_size, search_space, with_values
from nlp_mtl.training.checkpoint import checkpoints
from nlp_mtl.tune_folder import DATABASE, TRIALS, save_best, save_history, save_trials, study_folder, tidy

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)

DEFAULT_TRIALS = 20
"""Of a search without end: ten are drawn at random before the estimator begins (Optuna's default)."""

_HOPELESS = 3
"""So many trials of a new search that fail alike end it."""


def tune(recipe: Recipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Search for the values with which a recipe scores best on validation; the test split is not read.

    The recipe's ``tune`` section says what is searched and how; ``output_dir`` is the folder of the search, which goes
    on where it stood.

    Args:
        overwrite: remove what an earlier search left there.

    Returns:
        ``{"best": number of the best trial, "score": its selection score, "recipe": path of best.yaml, "trials": rows
        of trials.csv}``

    Raises:
        MissingExtraError: Optuna is not installed.
        RecipeError: a key or a value of the space is wrong.
        RunError: the folder holds something else, or no trial could be finished.
        RunStopped: the process was sent SIGTERM; the same call goes on.
        NlpMtlError: a trial cannot be run, for a reason that has nothing to do with its values: data that cannot be
            read, or the first trials all failed alike.
    """
    _optuna()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "trials run one after the other in one process, and a launcher started several: start `nlp-mtl tune` "
            "without it. Several GPUs train the best recipe: torchrun ... -m nlp_mtl train best.yaml"
        )
    refuse_extension(recipe)
    space = search_space(recipe)
    settings = (recipe.tune or TuneSpec()).model_copy(update={"search": {one.key: one.told for one in space}})
    recipe = recipe.model_copy(update={"tune": settings})
    with study_folder(recipe, overwrite) as folder, _opened_study(folder, settings.prune) as study:
        _run_trials(study, recipe, settings, space, folder)
        rows, best = _rows(study, space), _best(study)
        if best is None:
            reason = next((row["reason"] for row in reversed(rows) if row["reason"]), "none has failed")
            raise RunError(f"none of {len(rows)} trials in {folder} was finished. Of the last that failed: {reason}")
        save_history(folder, rows)
        return {"best": best.number, "score": best.value, "recipe": str(folder / "best.yaml"), "trials": rows}


def _run_trials(study: "Study", recipe: Recipe, settings: TuneSpec, space: Sequence[Dimension], folder: Path) -> None:
    """Run what trials are left to run."""
    from optuna.samplers import TPESampler

    if settings.method == "grid":
        wanted = min(settings.trials or grid_size(space), grid_size(space))
        points = grid(space, settings.seed)[:wanted]
        for point in points[len(study.get_trials(deepcopy=False)) :]:
            study.enqueue_trial(point)
    else:
        wanted = settings.trials or DEFAULT_TRIALS
    for number in range(wanted):
        run = folder / TRIALS / f"trial-{number}"
        trials = study.get_trials(deepcopy=False)
        if number < len(trials) and trials[number].state.is_finished():
            tidy(run)  # it was killed before it could
            continue
        trial = _opened(study, number)
        point = {}
        for place, one in enumerate(space):
            # A sampler for each value, so that what it draws does not depend on where the search was stopped.
            seed = np.random.SeedSequence((settings.seed, number, place)).generate_state(1)[0]
            study.sampler = TPESampler(seed=int(seed))
            point[one.key] = _value(trial, one)
        logger.info("Trial %d of %d: %s", number, wanted, _told(point))
        try:
            _run_trial(study, trial, _trial_recipe(recipe, point, run), run, settings.prune)
        except (ModelError, RecipeError):  # it is the last one
            _save(study, recipe, settings, space, folder)
            raise
        tidy(run)
        _save(study, recipe, settings, space, folder)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    _save(study, recipe, settings, space, folder)


def _opened(study: "Study", number: int) -> "Trial":
    """The trial of a number: the next one, or the one that ran when the process ended."""
    from optuna.trial import Trial, TrialState

    trials = study.get_trials(deepcopy=False)
    if number < len(trials) and trials[number].state == TrialState.RUNNING:
        return Trial(study, trials[number]._trial_id)
    trial = study.ask()
    assert trial.number == number
    return trial


def _value(trial: "Trial", one: Dimension) -> Any:
    """A trial's value of a key: drawn, and kept in the database; or what is kept there."""
    if isinstance(one, Choices):
        return trial.suggest_categorical(one.key, one.values)
    if isinstance(one.low, int) and isinstance(one.high, int):
        return trial.suggest_int(one.key, one.low, one.high, log=one.log)
    return trial.suggest_float(one.key, one.low, one.high, log=one.log)


def _trial_recipe(recipe: Recipe, point: Point, run: Path) -> Recipe:
    """A recipe with a trial's values: nothing is sent, and no more is kept than it needs to be resumed."""
    tried = with_values(recipe, point)
    training = tried.training.model_copy(update={"keep_last": 1, "keep_best": 1, "trackers": []})
    return tried.model_copy(update={"output_dir": str(run), "hub": None, "tune": None, "training": training})


def _run_trial(study: "Study", trial: "Trial", recipe: Recipe, run: Path, prune: bool) -> None:
    """Train, from the newest checkpoint if there is one, and note in the database how it ended."""
    import optuna
    from optuna.trial import TrialState

    reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def evaluated(evaluation: int, score: float) -> None:
        if evaluation not in reported:  # a resumed trial may come by again
            trial.report(score, evaluation)
        if prune and trial.should_prune():
            raise optuna.TrialPruned

    resume = bool(checkpoints(run / "checkpoints"))
    if not resume and run.exists():
        shutil.rmtree(run)
    try:
        results = train_trial(recipe, evaluated, resume=resume)
    except optuna.TrialPruned:
        logger.info("Trial %d is pruned: worse than the median of those before it", trial.number)
        study.tell(trial, state=TrialState.PRUNED)
    except (TrainingError, ModelError, RecipeError) as error:  # a learning rate too large, more layers than there are
        reason = error.problems[0] if isinstance(error, RecipeError) and error.problems else first_line(error)
        logger.warning("Trial %d has failed: %s", trial.number, error)
        trial.set_user_attr("reason", str(reason))
        study.tell(trial, state=TrialState.FAIL)
        if not isinstance(error, TrainingError) and _only_fails_so(study, str(reason)):
            raise
    except RunStopped as error:
        raise RunStopped(f"trial {trial.number} {error} by the same command", error.by_hand) from error
    else:
        before, score = _best(study), results["selection"]["score"]
        trial.set_user_attr("step", results["step"])
        study.tell(trial, score)
        is_best = before is None or score > before.value
        logger.info("Trial %d: selection score %.4f%s", trial.number, score, ", the best so far" if is_best else "")


def _only_fails_so(study: "Study", reason: str) -> bool:
    """Whether nothing but one and the same failure came of several trials: then values are hardly to blame."""
    trials = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    reasons = {one.user_attrs.get("reason") for one in trials}
    return len(trials) >= _HOPELESS and reasons == {reason}


def _best(study: "Study") -> "FrozenTrial | None":
    """The trial with the best score, the first of equals; None: none is finished."""
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)


def _rows(study: "Study", space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """What ``trials.csv`` holds. The score of a trial that was stopped is that of its best evaluation until then."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        score = trial.value if trial.state.name == "COMPLETE" else max(trial.intermediate_values.values(), default=None)
        values = {one.key: trial.params.get(one.key) for one in space}
        told = {"step": trial.user_attrs.get("step"), "reason": trial.user_attrs.get("reason", "")}
        rows.append({"trial": trial.number, "state": _STATES[trial.state.name], "score": score, **values, **told})
    return rows


_STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


def _save(study: "Study", recipe: Recipe, settings: TuneSpec, space: Sequence[Dimension], folder: Path) -> None:
    """Write ``trials.csv``, and ``best.yaml`` if there is a best trial."""
    rows, best = _rows(study, space), _best(study)
    save_trials(folder, rows)
    if best is None:
        return
    ended = sum(row["state"] in ("finished", "pruned", "failed") for row in rows)
    point = {one.key: best.params[one.key] for one in space}
    told = [
        f"The best of {ended} trials, number {best.number}: selection score {best.value!r} on validation, at step "
        f"{best.user_attrs['step']}.",
        f"Found by `nlp-mtl tune`, method {settings.method}, seed {settings.seed}, in {folder / DATABASE}.",
        f"Searched: {_told(point)}.",
    ]
    found = with_values(recipe, point)
    where = str(Path(recipe.output_dir) / "best")
    save_best(folder, found.model_copy(update={"output_dir": where, "tune": None}), told)


def _told(point: Point) -> str:
    values = ((key, f"{value:.5g}" if isinstance(value, float) else value) for key, value in point.items())
    return ", ".join(f"{key}={value}" for key, value in values)


@contextmanager
def _opened_study(folder: Path, prune: bool) -> Iterator["Study"]:
    """The search that a folder's database holds, or a new one.

    Raises:
        RunError: it holds none.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # By a path, not by an address, in which some signs mean something.
        by_path = {"creator": lambda: sqlite3.connect(folder / DATABASE, timeout=60)}
        storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs=by_path)
        study = optuna.create_study(
            study_name="tune",
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            # A trial is held against finished ones, as soon as there are five of them (Optuna's default).
            pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
        )
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise RunError(f"{folder / DATABASE} cannot be read, --overwrite starts again: {first_line(error)}") from error
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _optuna() -> None:
    """See that Optuna is there, and quiet: what is to be told is told in our words.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("nlp-mtl tune needs optuna: pip install 'nlp_mtl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
