"""Says numbers, settings and untrusted text in words; everything shown is formatted here."""

from __future__ import annotations

import unicodedata
from dataclasses import fields
from pathlib import PurePath

from data.measurements import Estimate, Label, RingChange
from data.probes import MIN_KNOWN_PER_RING
from data.recipes import GREEDY, Recipe, Sampling
from data.scoring import is_in_mean

MISSING = "not measured"

_LABELS: dict[Label, str] = {
    "correct": "right",
    "incorrect": "wrong",
    "not_attempted": "not attempted",
    "unjudged": "unjudged",
}

_TARGETS = {
    "query+value": "query and value",
    "attention": "attention",
    "mlp": "feed-forward",
    "all": "all linear layers",
}


def say_share(value: float | None) -> str:
    """Return a proportion as a percentage, for example "93 %", or "not measured" for None.

    A value that whole percents would round to nothing or to everything keeps one decimal, so that
    "0 %" and "100 %" are only ever said of exactly that (to a twentieth of a percent).
    """
    return MISSING if value is None else f"{_percent_digits(value)} %"


def say_range(estimate: Estimate) -> str:
    """Return the 95 % interval alone, its ends in whole percents, or "not measured"."""
    if estimate.low is None or estimate.high is None:
        return MISSING
    low, high = _percent_digits(estimate.low), _percent_digits(estimate.high)
    return f"{low} %" if low == high else f"{low}–{high} %"


def say_estimate(estimate: Estimate) -> str:
    """Return a proportion with its interval in brackets, or "not measured"."""
    if estimate.value is None:
        return MISSING
    return f"{say_share(estimate.value)} ({say_range(estimate)})"


def say_estimate_in_words(estimate: Estimate) -> str:
    """Return a proportion with its interval in brackets and named as a 95 % interval."""
    if estimate.value is None:
        return MISSING
    return f"{say_share(estimate.value)} (95 % interval {say_range(estimate)})"


def say_count(count: int | None) -> str:
    """Return a whole number with a thin grouping, for example "12,345", or "not measured"."""
    return MISSING if count is None else f"{count:,}"


def say_counted(count: int, noun: str) -> str:
    """Return a count with its noun in the right number: "1 trial", "1,200 trials"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def say_decimal(value: float | None) -> str:
    """Return a number with three significant digits, or "not measured"."""
    return MISSING if value is None else f"{value:.3g}"


def say_mean_tokens(tokens: float | None) -> str:
    """Return a mean number of tokens as a whole one, below ten with a decimal; a dash for None."""
    if tokens is None:
        return "–"
    return f"{tokens:,.0f}" if tokens == 0 or tokens >= 10 else f"{tokens:.1f}"


def say_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: "48 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def say_bytes(count: int | None) -> str:
    """Return an amount of memory with two or three digits: "512 kB", "7.3 GB", "24 GB"."""
    if count is None:
        return MISSING
    if count < 1000:
        return say_counted(count, "byte")
    units = ["kB", "MB", "GB", "TB"]
    amount, unit = count / 1000, units.pop(0)
    while amount >= 999.5 and units:
        amount, unit = amount / 1000, units.pop(0)
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"


def say_learning_rate(value: float) -> str:
    """Return a learning rate as people write it: "3e-4", "1.5e-3"."""
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def say_formats(recipe: Recipe) -> str:
    """Return the training formats joined by a plus sign."""
    return " + ".join(recipe.formats)


def say_folder(path: str) -> str:
    """Return the last two parts of a folder's path, where it lies within a study's folder."""
    return "/".join(PurePath(path).parts[-2:])


def say_sampling(sampling: Sampling) -> str:
    """Return the sampling's name and what of it differs from drawing unchanged."""
    name = show_text(sampling.name)
    changed = [] if sampling.do_sample or sampling.name == GREEDY.name else ["greedy"]
    decisive = sampling.what_decides
    for field in fields(Sampling):
        value = getattr(decisive, field.name)
        if field.name not in ("name", "do_sample") and value != field.default:
            said = _say_field(field.name)
            changed.append(said if value is True else f"{said} {value:.4g}")
    return f"{name} ({', '.join(changed)})" if changed else name


def _say_field(name: str) -> str:
    letters = name.rpartition("_")[2]
    return name.replace("_", "-" if len(letters) == 1 else " ")


def list_settings(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Return every training setting as a pair of its name in words and its value in words."""
    rehearsal = f"{recipe.rehearsal} per new fact" if recipe.rehearsal else "none"
    return (
        ("epochs", str(recipe.epochs)),
        ("rank", str(recipe.rank)),
        ("alpha", f"{recipe.alpha:g}" + (" (rank-stabilised)" if recipe.rslora else "")),
        ("learning rate", say_learning_rate(recipe.learning_rate)),
        ("warm-up", say_counted(recipe.warmup_steps, "step")),
        ("batch", say_counted(recipe.batch_size, "example")),
        ("cutoff", say_counted(recipe.cutoff, "token")),
        ("packing", recipe.packing),
        ("adapted", _TARGETS[recipe.target_modules]),
        ("formats", say_formats(recipe)),
        ("wordings per question", str(recipe.paraphrases)),
        ("rehearsal", rehearsal),
        ("dropout", f"{recipe.dropout:g}"),
        ("weight decay", f"{recipe.weight_decay:g}"),
    )


def say_label(label: Label | None) -> str:
    """Return a verdict in a word, or "not asked" for None."""
    return "not asked" if label is None else _LABELS[label]


def say_left_out(ring: RingChange) -> str:
    """Return, after a semicolon, that a ring is not in the mean and why; nothing where it is."""
    if is_in_mean(ring):
        return ""
    return f"; not in the mean, fewer than {MIN_KNOWN_PER_RING} known"


def say_phrasing(phrasing: str) -> str:
    """Return what a phrasing is, for a person who does not know the word."""
    return {
        "trained": "trained wording",
        "validation": "novel wording (search)",
        "test": "novel wording (kept aside)",
        "reverse": "asked in reverse",
        "two_hop": "two steps away",
        "probe": "known before",
    }.get(phrasing, phrasing)


def show_text(text: str) -> str:
    r"""Return untrusted text on one line in which nothing acts on a terminal or reorders a page.

    White space becomes single spaces; control characters, bidirectional overrides and other
    invisible format characters become escapes such as `\x1b`, so that they are seen.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs")
        else character
        for character in " ".join(text.split())
    )


def _percent_digits(value: float) -> str:
    whole = f"{100 * value:.0f}"
    hides_something = (whole == "0" and value > 0) or (whole == "100" and value < 1)
    if not hides_something:
        return whole.removeprefix("-") if whole == "-0" else whole
    return f"{100 * value:.1f}".removesuffix(".0")
