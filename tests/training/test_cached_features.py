"""A frozen encoder reads each row once; heads that learn from what is kept end as if it had read them in every step."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import tiny
from pair_values import pair_values
from tiny_runs import (
    assert_close,
    assert_same_end,
    finish,
    lines,
    loss_lines,
    moved,
    start,
    stopped_after,
    streamed_values,
    values,
    weights,
    write_yaml,
)

from nlp_mtl import Recipe, RecipeError, RunError, build_features, train
from nlp_mtl.data import kept_states
from nlp_mtl.inference import state_cache

DROPPING_HEADS = {"classifier_dropout": 0.3}
FROZEN = {"frozen_layers": "encoder"}


def frozen(folder: Path, family: str = "bert", config: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A recipe's values whose encoder does not learn and has no dropout; that of its heads: as ``config`` says."""
    given = values(folder, **{**FROZEN, **training})
    shutil.rmtree(folder / "encoder")
    encoder = tiny.save_encoder(folder / "encoder", family)
    file = encoder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (DROPPING_HEADS if config is None else config)))
    return given


def cached(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**given, "output_dir": str(folder), "training": {**given["training"], "cache_features": True}}


def with_and_without(given: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    for one in (given, cached(given, folder / "cached")):
        train(Recipe.from_dict(one))
    return Path(given["output_dir"]), folder / "cached"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the caches, empty."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "caches")
    return tmp_path / "caches" / state_cache.FOLDER


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows the encoder reads for each file of hidden states."""
    counts: list[int] = []
    real = state_cache._computed

    def counting(*given: Any) -> Any:
        counts.append(len(given[1]))
        return real(*given)

    monkeypatch.setattr(state_cache, "_computed", counting)
    return counts


def test_heads_end_as_in_the_run_whose_encoder_reads_every_row_in_every_epoch(tmp_path: Path) -> None:
    run, of_cache = with_and_without(frozen(tmp_path), tmp_path)
    assert_close(run, of_cache)
    assert all((weights(run)[name] == tensor).all() for name, tensor in weights(of_cache).items() if ".layer." in name)


@pytest.mark.parametrize(("name", "most"), [("ROWS", 5), ("TOKENS", 60)])
def test_rows_in_several_files_are_read_as_those_in_one(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(kept_states, name, most)
    given = frozen(tmp_path, num_epochs=1)
    assert_close(*with_and_without(given, tmp_path))
    assert len([*cache.rglob("*.safetensors")]) > 10


@pytest.mark.parametrize("cores", [2], indirect=True)
@pytest.mark.usefixtures("cores")
def test_two_threads_share_its_steps(tmp_path: Path) -> None:
    assert_close(*with_and_without(frozen(tmp_path), tmp_path))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("deberta-v2", {}),  # does not pack
        ("modernbert", {"classifier_pooling": "mean"}),  # heads of texts read all tokens
        ("roberta", {}),
        ("albert", {}),
    ],
)
def test_any_family_and_any_head_read_what_they_would_have_read(
    tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    given = frozen(tmp_path, family, config, layout="packed" if family != "deberta-v2" else "auto")
    assert_close(*with_and_without(given, tmp_path))


def test_long_texts_keep_all_their_windows(tmp_path: Path) -> None:
    given = {**frozen(tmp_path), "max_length": 16, "window_overlap": 4}
    corpus = Path(given["data_dir"])
    for file in corpus.rglob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        longer = [
            {key: " ".join([one] * 6) if key == "text" else one * 3 if isinstance(one, list) else one
             for key, one in row.items()}
            for row in rows
        ]  # fmt: skip
        for row in longer:
            if "ner" in row:  # entities of neighbouring copies are not one
                row["ner"] = [f"B{tag[1:]}" if tag[0] == "I" and n % (len(row["ner"]) // 3) == 0 else tag
                              for n, tag in enumerate(row["ner"])]  # fmt: skip
        tiny.write_jsonl(file, longer)
    assert_close(*with_and_without(given, tmp_path))


def test_pairs_of_texts_keep_what_their_segments_made_of_them(tmp_path: Path) -> None:
    given = pair_values(tmp_path, **FROZEN)
    assert_close(*with_and_without(given, tmp_path))


@pytest.mark.parametrize("strategy", ["task_embedding", "gate", "mmoe", "ple"])
def test_what_reads_the_last_hidden_states_may_lie_between(tmp_path: Path, strategy: str) -> None:
    sizes = {"num_experts": 2, "expert_size": 8} if strategy in ("mmoe", "ple") else {}
    given = {**frozen(tmp_path), "sharing": {"strategy": strategy, **sizes}}
    assert_close(*with_and_without(given, tmp_path))


@pytest.mark.parametrize("training", [{"mixed_precision": "bf16"}, {"num_workers": 1}, {"ema_decay": 0.9}])
def test_other_keys_of_training_go_with_it(tmp_path: Path, training: dict[str, Any]) -> None:
    run, of_cache = with_and_without(frozen(tmp_path, **training), tmp_path)
    tolerance = 1e-4 if "mixed_precision" not in training else 2e-2
    for one, other in zip(loss_lines(run), loss_lines(of_cache), strict=True):
        assert one["losses"] == pytest.approx(other["losses"], abs=tolerance)


@pytest.mark.parametrize("rows", ["labelled", "all"])
def test_a_teacher_says_the_same(tmp_path: Path, rows: str) -> None:
    train(Recipe.from_dict(values(tmp_path / "teacher", max_steps=4)))
    teachers = dict.fromkeys(("ner", "sentiment"), str(tmp_path / "teacher" / "run"))
    given = {**frozen(tmp_path), "distillation": {"teachers": teachers, "rows": rows}}
    assert_close(*with_and_without(given, tmp_path))


def test_a_chain_of_labels_learns_from_what_is_kept(tmp_path: Path) -> None:
    given = frozen(tmp_path)
    given["tasks"]["ner"]["decoder"] = "crf"
    assert_close(*with_and_without(given, tmp_path))


def test_the_encoder_has_no_dropout_and_the_heads_have_theirs(tmp_path: Path, cache: Path, computed: list[int]) -> None:
    given = cached(frozen(tmp_path), tmp_path / "run")
    dropping = {**given, "output_dir": str(tmp_path / "dropping")}
    encoder = Path(shutil.copytree(given["encoder"], tmp_path / "dropping-encoder"))
    file = encoder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_dropout_prob": 0.5}))
    train(Recipe.from_dict(given))
    shutil.rmtree(cache)  # dropout is no part of the key
    train(Recipe.from_dict({**dropping, "encoder": str(encoder)}))
    assert len(computed) == 8
    assert lines(tmp_path / "run") == lines(tmp_path / "dropping")


def test_all_epochs_and_later_runs_cost_one_reading_of_the_rows(
    tmp_path: Path, cache: Path, computed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given = cached(frozen(tmp_path), tmp_path / "run")
    train(Recipe.from_dict(given))
    assert computed == [48, 48, 16, 16]  # train and validation of both datasets
    told = [message for message in caplog.messages if "hidden states of 48 rows" in message]
    assert len(told) == 2
    assert str(cache) in told[0]
    assert "GB in" in told[0]
    other = {**given["training"], "head_learning_rate": 0.02, "num_epochs": 1, "batch_size": 8}
    train(Recipe.from_dict({**given, "training": other, "output_dir": str(tmp_path / "other")}))
    assert len(computed) == 4


def test_another_encoder_other_rows_and_other_windows_are_computed_anew(tmp_path: Path, computed: list[int]) -> None:
    given = cached(frozen(tmp_path), tmp_path / "run")
    train(Recipe.from_dict(given))
    encoder = tiny.save_encoder(tmp_path / "another", seed=1)
    train(Recipe.from_dict({**given, "encoder": str(encoder), "output_dir": str(tmp_path / "a")}))
    assert len(computed) == 8
    file = Path(given["data_dir"]) / "texts" / "train.jsonl"
    file.write_text(file.read_text().replace("film", "game"))
    train(Recipe.from_dict({**given, "output_dir": str(tmp_path / "b")}))
    assert len(computed) == 9
    train(Recipe.from_dict({**given, "max_length": 32, "output_dir": str(tmp_path / "c")}))
    assert len(computed) == 13


def test_labels_alone_do_not_matter(tmp_path: Path, computed: list[int]) -> None:
    given = cached(frozen(tmp_path), tmp_path / "run")
    train(Recipe.from_dict(given))
    file = Path(given["data_dir"]) / "texts" / "train.jsonl"
    file.write_text(file.read_text().replace("negative", "neutral"))
    train(Recipe.from_dict({**given, "output_dir": str(tmp_path / "a")}))
    assert len(computed) == 4


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path: Path, cache: Path, lost: bool) -> None:
    recipe = Recipe.from_dict(cached(frozen(tmp_path, save_every=3, keep_last=9), tmp_path / "run"))
    train(recipe)
    stopped = stopped_after(tmp_path / "run", 6, tmp_path / "stopped")
    if lost:
        shutil.rmtree(cache)
    train(moved(recipe, stopped), resume=True)
    assert_same_end(tmp_path / "run", stopped)


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_a_resumed_run_learns_from_the_encoder_that_it_was_started_with(
    tmp_path: Path, cache: Path, lost: bool
) -> None:
    given = cached(frozen(tmp_path, save_every=3, keep_last=9), tmp_path / "run")
    train(Recipe.from_dict(given))
    stopped = stopped_after(tmp_path / "run", 6, tmp_path / "stopped")
    config = (tmp_path / "encoder" / "config.json").read_text()
    tiny.save_encoder(tmp_path / "encoder", seed=1)
    (tmp_path / "encoder" / "config.json").write_text(config)
    if lost:
        shutil.rmtree(cache)
    train(moved(Recipe.from_dict(given), stopped), resume=True)
    assert_same_end(tmp_path / "run", stopped)


@pytest.mark.slow
def test_several_processes_share_the_computing_and_learn_what_one_does(tmp_path: Path) -> None:
    given = cached(frozen(tmp_path, config={}), tmp_path / "run")
    train(Recipe.from_dict(given))
    recipe = write_yaml(tmp_path, {**given, "output_dir": str(tmp_path / "two")})
    elsewhere = {"HF_DATASETS_CACHE": str(tmp_path / "empty")}
    script = Path(__file__).with_name("states_observer.py")
    code, _, errors = finish(start(recipe, tmp_path, processes=2, script=script, environment=elsewhere))
    assert code == 0, errors
    # 48, 48, 16 and 16 rows, eight in a file: every other one of each split.
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["8", "8"]
    for one, two in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "two"), strict=True):
        assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_a_damaged_file_is_told_and_computed_again(
    tmp_path: Path, cache: Path, computed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    given = cached(frozen(tmp_path), tmp_path / "run")
    train(Recipe.from_dict(given))
    damaged = sorted(cache.rglob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    train(Recipe.from_dict({**given, "output_dir": str(tmp_path / "again")}))
    assert len(computed) == 5
    assert any(f"{damaged} is damaged" in message for message in caplog.messages)
    assert lines(tmp_path / "run") == lines(tmp_path / "again")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_removed_while_the_run_reads_is_told_and_computed_when_it_is_resumed(
    tmp_path: Path, cache: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    given = cached(frozen(tmp_path, max_steps=2, num_workers=num_workers), tmp_path / "run")
    real = build_features.keep_states
    with monkeypatch.context() as patched:

        def removing(model: Any, split: Any, *others: Any, **options: Any) -> Any:
            kept = real(model, split, *others, **options)
            shutil.rmtree(kept.folder)
            return kept

        patched.setattr(build_features, "keep_states", removing)
        told = r"rows-00000\.safetensors was there when the run began, and is gone; .* Resume the run"
        with pytest.raises(RunError, match=told) as error:
            train(Recipe.from_dict(given))
    assert "Traceback" not in str(error.value)
    assert str(cache) in str(error.value)
    assert train(Recipe.from_dict(given), resume="auto")["steps"] == 2
    assert len(computed) == 8


def test_no_room_is_told_before_anything_is_computed(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    told = (
        r"the hidden states of 48 rows .* take .* GB in .*, where 0\.00 GB are free: make room, set HF_DATASETS_CACHE"
    )
    with pytest.raises(RunError, match=told):
        train(Recipe.from_dict(cached(frozen(tmp_path), tmp_path / "run")))
    assert not computed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training": {"frozen_layers": 1}}, r"cache_features: an encoder that learns .* `frozen_layers: encoder`"),
        ({"sharing": {"strategy": "layer_mix"}}, r"under `sharing: layer_mix` they read others"),
        ({"training": {"compile": True}}, r"training\.compile: with `cache_features` the encoder reads each row once"),
        ({"training": {"gradient_checkpointing": True}}, r"training\.gradient_checkpointing: with `cache_features`"),
        ({"datasets": {"augmentation": {"typos": 0.1}}}, r"datasets\.texts\.augmentation: rows that change each time"),
    ],
)
def test_what_makes_an_encoder_give_something_else_each_time_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    given = cached(frozen(tmp_path), tmp_path / "run")
    given["training"] |= changes.get("training", {})
    given["datasets"]["texts"] |= changes.get("datasets", {})
    given["sharing"] = changes.get("sharing", {})
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(given)


def test_a_stream_is_refused(tmp_path: Path) -> None:
    given = streamed_values(tmp_path, **{**FROZEN, "max_steps": 4, "eval_every": 2, "cache_features": True})
    with pytest.raises(RecipeError, match=r"datasets\.texts\.streaming: neither rows of a stream nor what"):
        Recipe.from_dict(given)
