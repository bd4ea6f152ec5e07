"""Parts of a recipe that say what it extends, where the model goes, and how the recipe is searched."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from nlp_mtl.extension_checks import DISTILLATION_DEFAULTS, FISHER_ROWS
from nlp_mtl.recipe_strategies import Integer, Name, Number, Positive, Section

Scalar = bool | int | float | str | None


def whole_path(value: str) -> str:
    """A folder's whole path, whatever the current directory is later."""
    return str(Path(os.path.expanduser(value)).resolve())


def _rows(value: Any) -> int | float | str | None:
    """A number of rows, or a share of them."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if value is None or value == "all" or 0 < number < 1:
        return value if value in (None, "all") else number
    if number >= 1 and number.is_integer():
        return int(number)
    raise PydanticCustomError("rows", "a number of rows (100), a share of them (0.1) or `all` is wanted")


class HeldOut(Section):
    """How rows of a dataset were held out of its training rows when a model was trained."""

    seed: Integer = Field(ge=0, lt=2**32)
    stratify: str | None = None
    """The column whose values were kept in proportion, if any splits were held out."""


class ExtensionSpec(Section):
    """Which trained model ``nlp-mtl extend`` goes on from, and what is done against forgetting its tasks."""

    model: str | None = Field(default=None, min_length=1)
    """The run folder, model folder or Hub id; the command line's MODEL."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of ``model`` on the Hub."""
    data_dir: str | None = Field(default=None, min_length=1)
    """Where the files lie that the trained model's recipe names. Default: where its run read them."""
    old_tasks: list[Name] | None = None
    """Those of the model's tasks whose data are read as its recipe says: to score them before and after, to replay
    them and to know which weights they need. Default: all that this recipe does not name itself."""
    freeze: Literal["nothing", "heads", "model"] | None = None
    """``model``: only what is new learns, so old answers stay bit for bit; ``heads``: the old tasks' heads stay, and
    what else they alone read. Default: ``model``, but ``nothing`` where anything else is said against forgetting, or
    of layers that do not learn."""
    replay: Annotated[int | float | Literal["all"] | None, BeforeValidator(_rows)] = None
    """Learn from training rows of each old dataset, too: so many, drawn by ``seed``; below 1: a share of them."""
    l2_to_start: Number = Field(default=0.0, ge=0)
    """Adds this times half the squared distance of the old weights from where they started to the loss."""
    importance: Literal["equal", "fisher"] = "equal"
    """What a weight counts in that: all alike (L2-SP), or by the Fisher information of the old tasks (EWC)."""
    fisher_rows: Positive = FISHER_ROWS
    """Training rows of the old tasks from which the Fisher information is estimated, drawn by ``seed``."""

    distillation: bool | list[Name] = False
    """Old tasks learn what the old model answers on all rows that steps learn from (learning without forgetting): all
    of them, or those that are named."""
    temperature: Number = Field(default=DISTILLATION_DEFAULTS["temperature"], gt=0, le=100)
    """Of ``distillation``: by which logits of both models are divided."""
    teacher_weight: Number = Field(default=DISTILLATION_DEFAULTS["teacher_weight"], gt=0, le=1)
    """Of ``distillation``: the old model's share of what a replayed item is learned to be; its label has the rest."""
    old_weight: Number = Field(default=1.0, gt=0)
    """What losses of old tasks count, replayed or distilled, beside their ``loss_weight``."""
    old_splits: dict[Name, HeldOut] = {}
    """How rows of the old datasets were held out, so that none that was learned is scored; found by itself."""

    @field_validator("data_dir")
    @classmethod
    def _whole_path(cls, value: str | None) -> str | None:
        return None if value is None else whole_path(value)

    @property
    def reads_old_rows(self) -> bool:
        """Whether training rows of old tasks are needed."""
        return self.replay is not None or self.importance == "fisher"

    @property
    def distilled(self) -> list[str]:
        """The tasks of ``distillation``, once it is known which there are."""
        return self.distillation if isinstance(self.distillation, list) else []


class HubSpec(Section):
    """Where on the Hub the model goes, and what its card says that the run does not know."""

    repo_id: str
    """``user/name``; made where there is none. Without ``user/`` it is the token's user."""
    push: Literal["end", "every_save"] = "end"
    """When: at the end, or with every checkpoint as well."""
    private: bool | None = None
    """Of a new repository. Default: as the account says."""
    revision: str | None = Field(default=None, min_length=1)
    """The branch; made where there is none. Default: the main branch."""
    create_pr: bool = False
    """As a pull request."""
    commit_message: str | None = Field(default=None, min_length=1)
    """Default: names the run."""
    license: str | None = Field(default=None, min_length=1)
    """For the card, as the Hub calls it: ``apache-2.0``, ``cc-by-4.0``, ..."""
    language: list[str] = []
    """For the card: codes such as ``en``. Default: those of the datasets, as far as the Hub tells them."""
    tags: list[str] = []
    """For the card, besides those that the tasks bring."""

    @field_validator("repo_id")
    @classmethod
    def _id(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", value) or len(value) > 140:
            raise PydanticCustomError("repo_id", "an id of a repository is wanted: `user/name`")
        return value

    @field_validator("language", mode="before")
    @classmethod
    def _yaml_norwegian(cls, value: Any) -> Any:
        given = value if isinstance(value, list) else [value]
        return ["no" if one is False else one for one in given]  # YAML reads a bare no as false


class ConsistencySpec(Section):
    """Two tasks whose labels are chosen together in evaluation and prediction."""

    tasks: list[str] = Field(min_length=2, max_length=2)
    """Their names."""
    weight: Annotated[Number, Field(ge=0)] | Literal["auto"] = "auto"
    """How much it counts which labels came together in the training rows; 0: nothing. ``auto``: as much as gives the
    best scores of both tasks on validation."""
    allowed: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """``{label of the first task, or kind of span: the only labels of the second that go with it}``."""


class DistillationSpec(Section):
    """Trained models, the teachers, whose answers of the training rows tasks learn from, beside labels."""

    teachers: dict[Name, Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """``{task: model}``: a run folder, a model folder or a Hub id, which has the task by the same name. The same model
    may teach several tasks."""
    revisions: dict[Name, str] = {}
    """``{task: branch, tag or commit}`` of teachers on the Hub."""
    weight: Number = Field(default=1.0, gt=0, le=1)
    """The teacher's share of what an item with a label is learned to be; the label has the rest."""
    annealing: bool = True
    """The share falls evenly to 0 over the run: at first the student learns from its teachers, in the end from
    labels."""
    temperature: Number = Field(default=1.0, gt=0, le=100)
    """By which logits of student and teacher are divided: above 1, the more is learned of labels that are unlikely."""
    rows: Literal["labelled", "all"] = "labelled"
    """``all``: tasks also learn from what their teachers say of rows and words that have no label of the task, those
    of all datasets that the recipe trains on."""


class MetaSpec(Section):
    """Meta-learning: the run's tasks are learned as small tasks of few rows, again and again, for an encoder from which
    new tasks are learned with few rows. The ``training`` section says how a small task is learned."""

    algorithm: Literal["reptile", "fomaml"] = "reptile"
    """``reptile``: the encoder moves towards what episodes make of it; ``fomaml`` (first-order MAML): by the gradients
    of rows that episodes did not learn from."""
    episodes: Positive = 4
    """In an outer step."""
    ways: Annotated[Integer, Field(ge=2)] = 4
    """Labels of an episode at most; how many is drawn, from 2 on (of kinds of spans, from 1 on)."""
    shots: Positive = 8
    """Rows a label that an episode learns from."""
    query: Positive = 8
    """Other rows a label, that ``fomaml`` and evaluations try it on."""
    inner_steps: Positive = 5
    """Of an episode, of ``training.batch_size`` rows each, or of all that it has."""
    inner_optimizer: Literal["adamw", "sgd"] = "adamw"
    outer_learning_rate: Annotated[Number, Field(gt=0)] | None = None
    """Peak rate of the outer steps, which ``training.schedule`` lowers. Default: 1 with ``reptile``, all the way to the
    mean of what episodes made of the encoder; 5e-5 with ``fomaml``, whose outer steps are AdamW's."""
    evaluated_episodes: Positive = 8
    """Of each task and split, in an evaluation."""


class TuneSpec(Section):
    """How ``nlp-mtl tune`` searches the values of other keys."""

    method: Literal["tpe", "grid"] = "tpe"
    """``tpe``: where past trials scored best (a tree-structured Parzen estimator); ``grid``: all points, each once."""
    trials: Positive | None = None
    """How many to run in all. Default: 20 with ``tpe``, every point with ``grid``."""
    seed: Integer = Field(default=0, ge=0, lt=2**32)
    """Of what is drawn; the recipe's own ``seed`` is that of every trial."""
    prune: bool = True
    """Stop a trial that is worse than the median of those before it."""
    search: dict[str, Scalar | list[Scalar]] = {}
    """``{key of the recipe: values}``: a list, or a range such as ``1e-5..1e-4:log``. Default: see ``docs/tune.md``."""
