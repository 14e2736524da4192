"""Where the planted mistakes in a storage are listed; see test_conformance_planted."""

from collections.abc import Callable

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    """Add a mistake to the list; its docstring says what it is."""
    PLANTS[plant.__name__] = plant
    return plant
