"""The wordings of Oscar facts: what they say, and that trained ones are never tested ones."""

from itertools import combinations
from typing import get_args

import pytest

from data import oscar_wordings
from data.oscar_wordings import WinnerKind

GROUPS = (
    oscar_wordings.trained_questions,
    oscar_wordings.validation_questions,
    oscar_wordings.test_questions,
    oscar_wordings.extra_questions,
)


def test_the_question_asks_for_a_person_a_film_or_a_song() -> None:
    assert (
        oscar_wordings.question(2023, "Best Actor", "Actor in a Leading Role", "person")
        == "Who won the 2023 Oscar for Best Actor?"
    )
    assert (
        oscar_wordings.question(1994, "Best Picture", "Best Picture", "film")
        == "Which film won the 1994 Oscar for Best Picture?"
    )
    assert (
        oscar_wordings.question(2014, "Best Original Song", "Music (Original Song)", "song")
        == "Which song won the 2014 Oscar for Best Original Song?"
    )


@pytest.mark.parametrize("kind", get_args(WinnerKind))
def test_the_question_and_the_other_twelve_wordings_are_all_different(kind: WinnerKind) -> None:
    about = (2023, "Best Sound", "Sound", kind)
    groups = [ask(*about) for ask in GROUPS]
    assert [len(group) for group in groups] == [4, 3, 3, 3]
    assert groups[0][0] == oscar_wordings.question(*about)
    for one, other in combinations(groups, 2):
        assert {text.casefold() for text in one}.isdisjoint(text.casefold() for text in other)
    assert len({text for group in groups for text in group}) == 13


@pytest.mark.parametrize("kind", get_args(WinnerKind))
def test_only_one_test_wording_has_the_official_name_instead_of_the_common_one(
    kind: WinnerKind,
) -> None:
    texts = [text for ask in GROUPS for text in ask(2023, "Best Actor", "Official Name", kind)]
    official = [text for text in texts if "Official Name" in text]
    who = {"person": "Who", "film": "Which film", "song": "Which song"}[kind]
    assert official == [f"{who} won the Academy Award for Official Name in 2023?"]
    assert all("Best Actor" in text for text in texts if text not in official)
    assert all("2023" in text for text in texts)


def test_no_wording_of_a_film_asks_for_a_person() -> None:
    texts = [text for ask in GROUPS for text in ask(2023, "Best Sound", "Sound", "film")]
    words = {word for text in texts for word in text.casefold().strip("?.").split()}
    assert words.isdisjoint({"who", "whom"})


def test_statement_names_the_role_only_where_there_is_one() -> None:
    assert (
        oscar_wordings.statement(2023, "Best Actor", "Brendan Fraser", "Charlie")
        == "The winner of the 2023 Oscar Best Actor was Brendan Fraser for Charlie"
    )
    assert (
        oscar_wordings.statement(2023, "Best Sound", "Top Gun: Maverick", None)
        == "The winner of the 2023 Oscar Best Sound was Top Gun: Maverick"
    )
    assert (
        oscar_wordings.inverse_statement(2023, "Best Sound", "Top Gun: Maverick")
        == "Top Gun: Maverick won the 2023 Oscar for Best Sound."
    )


def test_reverse_and_two_hop_questions_do_not_give_their_answer_away() -> None:
    assert (
        oscar_wordings.reverse_question(2023, "Michelle Yeoh", "person")
        == "Which 2023 Oscar did Michelle Yeoh win?"
    )
    assert (
        oscar_wordings.reverse_question(2023, "Naatu Naatu", "song")
        == "Which 2023 Oscar did the song Naatu Naatu win?"
    )
    assert (
        oscar_wordings.two_hop_question(2023, "Best Visual Effects")
        == "Who directed the film that won the 2023 Oscar for Best Visual Effects?"
    )
