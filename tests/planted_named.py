"""Where the planted mistakes are listed that name the test which must catch them."""

from collections.abc import Callable
from typing import TypeVar

import pytest

Plant = TypeVar("Plant", bound=Callable[[pytest.MonkeyPatch], None])
NAMED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {}


def caught_by(test: str) -> Callable[[Plant], Plant]:
    """Add a mistake to the list with the conformance test that it makes fail."""

    def add(plant: Plant) -> Plant:
        NAMED[plant.__name__] = plant, test
        return plant

    return add
