"""The package's own names: there when asked for, loaded only then."""

import pytest

import surgery


@pytest.mark.parametrize("name", surgery.__all__)
def test_every_public_name_can_be_loaded(name: str) -> None:
    assert getattr(surgery, name) is not None
    assert name in dir(surgery)


def test_the_names_that_the_contract_promises_are_public() -> None:
    promised = {"applied", "open_checkpoint", "load_patch", "apply_patch", "revert_patch", "verify_patch"}
    assert promised | {"run_recipe", "load_recipe", "__version__"} == set(surgery.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'aplied'"):
        surgery.aplied  # noqa: B018
