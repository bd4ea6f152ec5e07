import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

from nlp_mtl.tasks import Task, are_iob, iob2_break, iob_spans, is_iob, task_from_dict

TAGS = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b"]), max_size=12)


@pytest.mark.parametrize("label", ["O", "B-PER", "I-PER", "B-work of art", "I-a-b", "B-O", "B-_"])
def test_iob_tags_are_known(label):
    assert is_iob(label)


@pytest.mark.parametrize("label", ["", "o", "B", "I", "B-", "I-", "PER", "BPER", "b-PER", "E-PER", "S-PER", "O-PER"])
def test_other_labels_are_not_taken_for_iob_tags(label):
    assert not is_iob(label)


def test_a_label_set_is_iob_only_when_all_of_it_is_and_it_knows_a_span():
    assert are_iob(["O", "B-PER", "I-PER"])
    assert are_iob(["B-PER", "I-PER"])
    assert not are_iob(["O", "B-PER", "NOUN"])
    assert not are_iob(["O"])
    assert not are_iob([])


def test_only_token_tasks_with_iob_labels_answer_with_spans():
    tags = ("O", "B-PER", "I-PER")
    assert Task("ner", "token-classification", tags, "span_f1").is_spans
    assert not Task("pos", "token-classification", ("NOUN", "VERB"), "accuracy").is_spans
    assert not Task("odd", "text-classification", tags, "accuracy").is_spans


def test_a_task_survives_json():
    task = Task("ner", "token-classification", ("O", "B-PER"), "span_f1", loss_weight=0.5)
    again = task_from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task
    assert hash(again) == hash(task)


@given(TAGS)
def test_spans_are_those_that_conlleval_reads(tags):
    assert iob_spans(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


@given(TAGS)
def test_in_valid_iob2_the_spans_are_those_of_the_strict_scheme(tags):
    spans = {(entity.tag, entity.start, entity.end) for entity in Entities([tags], IOB2).entities[0]}
    if iob2_break(tags) is None:
        assert set(iob_spans(tags)) == spans
    else:  # a break is a span that only the lenient reading sees
        assert set(iob_spans(tags)) - spans


@given(TAGS)
def test_a_break_of_iob2_is_the_first_inside_tag_that_continues_nothing(tags):
    def breaks(place):
        return tags[place][0] == "I" and (place == 0 or tags[place - 1][1:] != tags[place][1:])

    assert iob2_break(tags) == next((place for place in range(len(tags)) if breaks(place)), None)


@pytest.mark.parametrize(
    ("tags", "place"),
    [([], None), (["O"], None), (["I-X"], 0), (["B-X", "I-X", "I-X"], None), (["B-X", "I-Y"], 1), (["O", "I-X"], 1)],
)
def test_where_iob2_breaks(tags, place):
    assert iob2_break(tags) == place
