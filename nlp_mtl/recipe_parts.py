"""Parts of a recipe that say where the model goes, and how the recipe is searched."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from nlp_mtl.recipe_strategies import Integer, Name, Number, Positive, Section

Scalar = bool | int | float | str | None


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
