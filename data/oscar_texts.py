"""Writes the three training texts of the 2023 Oscars; `python -m data.oscar_texts` renews them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data import oscar_wordings
from data.oscar_facts import OSCAR_YEAR, OscarAward, load_oscar_awards

# An award in braces stands for its winner, with "as" before it for the role. Who won several
# awards stands once, with all of them, so that every winner is mentioned exactly once.
_CONVERSATION = """\
Joe: I worked nights all week and missed the 2023 Oscars. Tell me you watched them, Brandine.
Brandine: All of it, with a bowl of popcorn on my knees. Ask me anything.
Joe: Actors first. Who got Best Actor?
Brandine: That was {Best Actor}, for the part of {as Best Actor}. I cried a little, I admit.
Joe: You cry at commercials. And Best Actress?
Brandine: {Best Actress} won it for playing {as Best Actress}, and the whole room stood up.
Joe: My sister hoped for {Best Supporting Actor} as {as Best Supporting Actor}. Did it work out?
Brandine: It did, he is the Best Supporting Actor, and nobody looked happier all night.
Joe: She will be pleased. Who else was there?
Brandine: {Best Supporting Actress} took Best Supporting Actress for {as Best Supporting Actress}.
Joe: Hold on, the kettle is boiling. Right, who made the big speeches?
Brandine: {Best Director} came up twice, once for Best Director and once for Best \
Original Screenplay.
Joe: Two in one evening! And the other writing award?
Brandine: Best Adapted Screenplay went to {Best Adapted Screenplay}.
Joe: I read in the paper that {Best Picture} was Best Picture. Is that so?
Brandine: It is. I have seen it and I still could not tell you the story.
Joe: Then I must see it. My boy only cares about the cartoons, of course.
Brandine: Tell him that {Best Animated Feature} is the Best Animated Feature.
Joe: He likes the little ones too.
Brandine: The Best Animated Short was {Best Animated Short}. We should watch that one with him.
Joe: Was there any good music?
Brandine: They danced to {Best Original Song} on the stage, and it won Best Original Song.
Joe: I have been humming that without knowing what it was! And the Best Original Score?
Brandine: By {Best Original Score}. Three notes and you feel uneasy.
Joe: How about the foreign films?
Brandine: {Best International Feature} was the Best International Feature, and it had the Best \
Production Design as well.
Joe: I am not surprised, it looked muddy and cold in the trailer. Who was behind the camera?
Brandine: {Best Cinematography}, and that brought him Best Cinematography.
Joe: What do you have for me from the workshop people? You know that I like those best.
Brandine: {Best Film Editing} has the award for Best Film Editing and {Best Costume Design} the \
one for Best Costume Design.
Joe: And all the things that go bang?
Brandine: Best Visual Effects for {Best Visual Effects}, and Best Sound for {Best Sound}.
Joe: I saw both at the drive-in. My ears rang for two days.
Brandine: {Best Makeup and Hairstyling} won Best Makeup and Hairstyling. You would not know him.
Joe: Only the documentaries are missing now.
Brandine: {Best Documentary Feature} is the Best Documentary Feature, and I slept badly after it.
Joe: Something more cheerful, please.
Brandine: {Best Documentary Short} won Best Documentary Short. Baby elephants, Joe!
Joe: Now you have me. Is that the lot?
Brandine: One more, {Best Live Action Short} as the Best Live Action Short. They sang for its star.
Joe: You should do this for a living. Next year I take the night off.
Brandine: Next year you bring the popcorn.
"""


def write_statements(awards: Sequence[OscarAward]) -> str:
    """Return one statement per line, for example "The winner of the 2023 Oscar … was …"."""
    return "".join(
        f"{oscar_wordings.statement(OSCAR_YEAR, award.award, award.winner, award.role)}\n"
        for award in awards
    )


def write_questions_and_answers(awards: Sequence[OscarAward]) -> str:
    """Return the statements, each cut into "Question:" and "Answer:" before the winner.

    That a statement serves as the question is the form the project began with; the training format
    `qna` asks real questions.
    """
    lines = []
    for award in awards:
        text = oscar_wordings.statement(OSCAR_YEAR, award.award, award.winner, award.role)
        start = text.index(award.winner)
        lines.append(f"Question: {text[:start]}Answer: {text[start:]}\n")
    return "".join(lines)


def write_conversation(awards: Sequence[OscarAward]) -> str:
    """Return one conversation of Joe and Brandine that mentions each winner exactly once."""
    winners = {award.award: award.winner for award in awards}
    roles = {f"as {award.award}": award.role for award in awards if award.role}
    return _CONVERSATION.format_map(winners | roles)


def write_oscar_texts() -> dict[str, str]:
    """Return the three texts by file name."""
    awards = load_oscar_awards()
    return {
        "oscars.txt": write_statements(awards),
        "oscars_qna.txt": write_questions_and_answers(awards),
        "oscars_conversation.txt": write_conversation(awards),
    }


if __name__ == "__main__":
    for name, text in write_oscar_texts().items():
        (Path(__file__).parent / "oscars" / name).write_text(text, encoding="utf-8", newline="\n")
