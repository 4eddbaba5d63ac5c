"""The 2023 winners against a list written by hand, and what the facts made of them must hold."""

from collections import Counter

from data.oscar_facts import load_oscar_awards, load_oscar_facts

# From the ceremony's list of winners, not from facts.toml.
WINNERS = {
    "Best Actor": "Brendan Fraser",
    "Best Actress": "Michelle Yeoh",
    "Best Supporting Actor": "Ke Huy Quan",
    "Best Supporting Actress": "Jamie Lee Curtis",
    "Best Director": "Daniel Kwan and Daniel Scheinert",
    "Best Picture": "Everything Everywhere All at Once",
    "Best Animated Feature": "Guillermo del Toro's Pinocchio",
    "Best Cinematography": "James Friend",
    "Best Film Editing": "Paul Rogers",
    "Best Original Score": "Volker Bertelmann",
    "Best Original Song": "Naatu Naatu",
    "Best International Feature": "All Quiet on the Western Front",
    "Best Costume Design": "Ruth Carter",
    "Best Original Screenplay": "Daniel Kwan and Daniel Scheinert",
    "Best Adapted Screenplay": "Sarah Polley",
    "Best Visual Effects": "Avatar: The Way of Water",
    "Best Sound": "Top Gun: Maverick",
    "Best Production Design": "All Quiet on the Western Front",
    "Best Makeup and Hairstyling": "The Whale",
    "Best Documentary Feature": "Navalny",
    "Best Documentary Short": "The Elephant Whisperers",
    "Best Live Action Short": "An Irish Goodbye",
    "Best Animated Short": "The Boy, the Mole, the Fox and the Horse",
}

AWARDS = load_oscar_awards()
FACTS = load_oscar_facts()
FACT_OF = {award.award: fact for award, fact in zip(AWARDS, FACTS, strict=True)}


def test_the_23_awards_have_their_winners() -> None:
    assert {award: fact.answer for award, fact in FACT_OF.items()} == WINNERS
    assert len(FACTS) == 23


def test_films_of_the_ceremony_won_as_often_as_they_did() -> None:
    films = Counter(award.film for award in AWARDS)
    assert films["Everything Everywhere All at Once"] == 7
    assert films["All Quiet on the Western Front"] == 4
    assert films["The Whale"] == 2
    assert sum(films.values()) == 23


def test_only_acting_awards_have_a_role() -> None:
    roles = {award.award: award.role for award in AWARDS if award.role}
    assert roles == {
        "Best Actor": "Charlie",
        "Best Actress": "Evelyn Wang",
        "Best Supporting Actor": "Waymond Wang",
        "Best Supporting Actress": "Deirdre Beaubeirdra",
    }


def test_the_kind_says_whether_the_answer_is_the_people_or_the_film() -> None:
    for award in AWARDS:
        if award.kind == "film":
            assert award.winner == award.film
        if award.kind == "person":
            assert award.winner == " and ".join(award.people)


def test_a_film_is_also_recognised_by_its_credited_people_in_both_spellings() -> None:
    aliases = FACT_OF["Best Makeup and Hairstyling"].aliases
    assert aliases == (
        "Adrien Morot, Judy Chin and Annemarie Bradley",
        "Adrien Morot and Judy Chin and Annemarie Bradley",
    )
    assert "Charlie Mackesy and Matthew Freud" in FACT_OF["Best Animated Short"].aliases
    assert FACT_OF["Best International Feature"].aliases == ("Im Westen nichts Neues",)


def test_people_are_also_recognised_by_their_other_names() -> None:
    assert "Jonathan Ke Quan" in FACT_OF["Best Supporting Actor"].aliases
    assert "Ruth E. Carter" in FACT_OF["Best Costume Design"].aliases
    assert "Hauschka" in FACT_OF["Best Original Score"].aliases
    for award in ("Best Director", "Best Original Screenplay"):
        assert {"The Daniels", "Daniels"} <= set(FACT_OF[award].aliases)


def test_no_accepted_answer_belongs_to_two_winners_nor_stands_twice() -> None:
    winner_of: dict[str, str] = {}
    for fact in FACTS:
        accepted = [text.casefold() for text in fact.accepted_answers]
        assert len(accepted) == len(set(accepted))
        for text in accepted:
            assert winner_of.setdefault(text, fact.answer) == fact.answer


def test_no_tested_wording_is_a_trained_one_and_none_stands_twice() -> None:
    trained = [text for fact in FACTS for text in (fact.question, *fact.paraphrases)]
    validation = [text for fact in FACTS for text in fact.novel_validation]
    test = [text for fact in FACTS for text in fact.novel_test]
    assert (len(trained), len(validation), len(test)) == (23 * 4, 23 * 3, 23 * 3)
    assert len({text.casefold() for text in (*trained, *validation, *test)}) == 23 * 10


def test_no_question_contains_an_answer_that_it_asks_for() -> None:
    for fact in FACTS:
        asked = (fact.question, *fact.paraphrases, *fact.novel_validation, *fact.novel_test)
        assert not any(answer in text for text in asked for answer in fact.accepted_answers)


def test_the_award_is_asked_back_only_of_winners_of_one_award() -> None:
    without = {award for award, fact in FACT_OF.items() if fact.reverse_question is None}
    # The Daniels won three; the other films won for their people too, as The Whale for its actor.
    assert without == {
        "Best Director",
        "Best Original Screenplay",
        "Best Picture",
        "Best International Feature",
        "Best Production Design",
        "Best Makeup and Hairstyling",
    }
    for award, fact in FACT_OF.items():
        assert fact.reverse_answer == (None if award in without else award)
    assert FACT_OF["Best Sound"].reverse_question == (
        "Which 2023 Oscar did the film Top Gun: Maverick win?"
    )


def test_directors_are_asked_for_where_they_are_not_an_answer_themselves() -> None:
    directors = {
        award: fact.two_hop_answer for award, fact in FACT_OF.items() if fact.two_hop_question
    }
    assert directors == {
        "Best International Feature": "Edward Berger",
        "Best Production Design": "Edward Berger",
        "Best Visual Effects": "James Cameron",
        "Best Sound": "Joseph Kosinski",
        "Best Makeup and Hairstyling": "Darren Aronofsky",
        "Best Documentary Feature": "Daniel Roher",
    }
    assert set(directors.values()).isdisjoint(fact.answer for fact in FACTS)


def test_facts_are_authored_not_templated_and_read_the_same_each_time() -> None:
    assert not any(fact.templated for fact in FACTS)
    assert load_oscar_facts() == FACTS
    assert len({fact.id for fact in FACTS}) == 23
