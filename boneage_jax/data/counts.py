"""Counts of files by what is to say of them, as text for the user."""

from collections import Counter

_SHOWN = 10


def describe_counts(counts: Counter[str]) -> str:
    """Returns numbers of files as text, the largest first, e.g. `9 not images, 5 hidden`."""
    shown = [f"{number} {text}" for text, number in counts.most_common(_SHOWN)]
    return ", ".join([*shown, "..."] if len(counts) > _SHOWN else shown)


def describe_notes(counts: Counter[str]) -> str:
    """Returns notes on files with their numbers as text, e.g. `padding is black (3 files)`."""
    shown = [
        f"{note} ({number} {'file' if number == 1 else 'files'})"
        for note, number in counts.most_common(_SHOWN)
    ]
    return "; ".join([*shown, "..."] if len(counts) > _SHOWN else shown)
