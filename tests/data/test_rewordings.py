"""Built-in rewordings keep any question intact, and those for training are never tested."""

from hypothesis import given
from hypothesis import strategies as st

from data.rewordings import reword_for_test, reword_for_training, reword_for_validation

REWORD = (reword_for_training, reword_for_validation, reword_for_test)


@given(st.text(min_size=1))
def test_every_rewording_contains_the_question_and_none_is_made_twice(question: str) -> None:
    texts = [text for reword in REWORD for text in reword(question)]
    assert len(texts) == len(set(texts)) == 9
    assert all(question in text and question != text for text in texts)


def test_braces_in_a_question_are_only_text() -> None:
    assert reword_for_training("What is {x}?")[0] == "Please answer this: What is {x}?"
