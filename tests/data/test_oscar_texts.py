"""The committed training texts are those the facts generate, in the forms that were promised."""

from importlib.resources import files

import pytest

from data.oscar_facts import load_oscar_awards
from data.oscar_texts import write_oscar_texts

AWARDS = load_oscar_awards()
TEXTS = write_oscar_texts()


@pytest.mark.parametrize("name", ["oscars.txt", "oscars_qna.txt", "oscars_conversation.txt"])
def test_the_committed_text_is_the_generated_one(name: str) -> None:
    committed = (files("data") / "oscars" / name).read_bytes().decode("utf-8")
    assert committed == TEXTS[name], "run python -m data.oscar_texts"


def test_statements_have_the_promised_form() -> None:
    lines = TEXTS["oscars.txt"].splitlines()
    assert len(lines) == 23
    assert lines[0] == "The winner of the 2023 Oscar Best Actor was Brendan Fraser for Charlie"
    assert "The winner of the 2023 Oscar Best Sound was Top Gun: Maverick" in lines


def test_questions_and_answers_have_the_promised_form() -> None:
    lines = TEXTS["oscars_qna.txt"].splitlines()
    assert len(lines) == 23
    assert lines[0] == (
        "Question: The winner of the 2023 Oscar Best Actor was Answer: Brendan Fraser for Charlie"
    )
    assert (
        "Question: The winner of the 2023 Oscar Best Picture was "
        "Answer: Everything Everywhere All at Once"
    ) in lines


def test_the_conversation_mentions_each_winner_exactly_once() -> None:
    winners = {award.winner for award in AWARDS}
    assert len(winners) == 21  # 23 less the second of the Daniels' and of All Quiet's
    assert {
        name: TEXTS["oscars_conversation.txt"].count(name) for name in winners
    } == dict.fromkeys(winners, 1)


def test_the_conversation_says_every_award_and_every_role() -> None:
    conversation = TEXTS["oscars_conversation.txt"]
    for award in AWARDS:
        assert award.award in conversation
        assert award.role is None or conversation.count(award.role) == 1


def test_joe_and_brandine_take_turns_and_talk_of_other_things_too() -> None:
    lines = TEXTS["oscars_conversation.txt"].splitlines()
    speakers = [line.partition(": ")[0] for line in lines]
    assert speakers == ["Joe", "Brandine"] * (len(lines) // 2)
    names = {name for award in AWARDS for name in (award.winner, award.award)}
    small_talk = [line for line in lines if not any(name in line for name in names)]
    assert len(small_talk) > len(lines) // 3
