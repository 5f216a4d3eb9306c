"""The sound files that bad input stands beside."""

import pytest

from tests.bad_input.case import Sound
from tests.bad_input.sound import make_sound


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A small base, its patch and what comes of them; no test may write to them."""
    return make_sound(tmp_path_factory.mktemp("sound"))
