"""What holds for every patch: it comes out again to the byte, and no edit is no change."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.checkpoint import open_checkpoint
from surgery.patch import (
    Patch,
    Term,
    apply_patch,
    load_patch,
    make_patch,
    revert_patch,
    save_patch,
    verify_patch,
)
from tests.support.folders import contents, small_weights, write_folder
from tests.support.patches import NAMES, random_patch

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
subsets = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
few = settings(max_examples=10)


@DTYPES
@few
@given(names=subsets, seed=st.integers(0, 999), dense=st.booleans(), strength=st.floats(-2, 2))
def test_apply_then_revert_with_the_undo_file_gives_the_base_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: torch.dtype,
    names: list[str],
    seed: int,
    dense: bool,
    strength: float,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    base = write_folder(folder / "base", small_weights(dtype, seed))
    patch = random_patch(base, names, seed=seed, dense=dense)
    apply_patch(patch, base, folder / "edited", strength=strength, undo=folder / "undo")
    revert_patch(patch, folder / "edited", folder / "back", undo=folder / "undo")
    assert contents(folder / "back") == contents(base)


@DTYPES
@few
@given(names=subsets, seed=st.integers(0, 999), dense=st.booleans())
def test_apply_then_revert_with_the_base_gives_the_base_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, names: list[str], seed: int, dense: bool
) -> None:
    folder = tmp_path_factory.mktemp("law")
    base = write_folder(folder / "base", small_weights(dtype, seed))
    patch = random_patch(base, names, seed=seed, dense=dense)
    apply_patch(patch, base, folder / "edited")
    revert_patch(patch, folder / "edited", folder / "back", base=base)
    assert contents(folder / "back") == contents(base)


@DTYPES
@few
@given(subsets=st.lists(subsets, min_size=2, max_size=3), seed=st.integers(0, 999))
def test_several_patches_come_out_in_reverse_order(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, subsets: list[list[str]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("law")
    states = [write_folder(folder / "state0", small_weights(dtype, seed))]
    patches: list[Patch] = []
    for place, names in enumerate(subsets):
        patches.append(random_patch(states[-1], names, seed=seed + 10 * place))
        states.append(folder / f"state{place + 1}")
        apply_patch(patches[-1], states[-2], states[-1], undo=folder / f"undo{place}")
    current = states[-1]
    for place in reversed(range(len(patches))):
        back = folder / f"back{place}"
        revert_patch(patches[place], current, back, undo=folder / f"undo{place}")
        assert contents(back) == contents(states[place])
        current = back


@DTYPES
def test_strength_zero_gives_identical_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    base = write_folder(tmp_path / "base", small_weights(dtype))
    apply_patch(random_patch(base), base, tmp_path / "out", strength=0.0)
    assert contents(tmp_path / "out") == contents(base)


def test_an_empty_edit_gives_identical_bytes(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_weights())
    patch = make_patch([], open_checkpoint(base))
    save_patch(patch, tmp_path / "patch.safetensors")
    apply_patch(load_patch(tmp_path / "patch.safetensors"), base, tmp_path / "out", undo=tmp_path / "undo")
    assert contents(tmp_path / "out") == contents(base)
    revert_patch(patch, tmp_path / "out", tmp_path / "back", undo=tmp_path / "undo")
    assert contents(tmp_path / "back") == contents(base)


@few
@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_the_order_of_terms_changes_neither_the_file_nor_the_outcome(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("law")
    base = write_folder(folder / "base", small_weights(seed=seed))
    # two terms on one tensor, so that the order of a sum is at stake
    terms = [*random_patch(base, seed=seed).terms, *random_patch(base, NAMES[:1], seed=seed + 50).terms]
    checkpoint = open_checkpoint(base)
    first = save_patch(make_patch(terms, checkpoint), folder / "first")
    second = save_patch(make_patch([terms[place] for place in order], checkpoint), folder / "second")
    assert first == second
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()


@DTYPES
@few
@given(seed=st.integers(0, 999), dense=st.booleans())
def test_a_saved_patch_does_what_it_did_before(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, seed: int, dense: bool
) -> None:
    folder = tmp_path_factory.mktemp("law")
    base = write_folder(folder / "base", small_weights(dtype, seed))
    patch = random_patch(base, seed=seed, dense=dense)
    digest = save_patch(patch, folder / "patch")
    loaded = load_patch(folder / "patch")
    assert save_patch(loaded, folder / "again") == digest
    apply_patch(patch, base, folder / "first")
    report = apply_patch(loaded, base, folder / "second")
    assert report.exact
    assert contents(folder / "first") == contents(folder / "second")
    assert verify_patch(loaded, folder / "second").word == "after"


@few
@given(seed=st.integers(0, 999), dense=st.booleans())
def test_half_and_single_precision_copies_of_a_base_stay_copies(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dense: bool
) -> None:
    folder = tmp_path_factory.mktemp("law")
    half = small_weights(seed=seed)
    single = {
        component: {
            key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
        }
        for component, tensors in half.items()
    }
    patch = random_patch(write_folder(folder / "half", half), seed=seed, dense=dense)
    write_folder(folder / "single", single)
    report = apply_patch(patch, folder / "single", folder / "edited")
    assert {tensor.result for tensor in report.tensors.values()} == {"value16"}
    assert verify_patch(patch, folder / "edited").word == "after"
    apply_patch(patch, folder / "half", folder / "exact")
    edited, exact = open_checkpoint(folder / "edited"), open_checkpoint(folder / "exact")
    for name in NAMES:
        assert torch.equal(edited.read(name).half(), exact.read(name))


@few
@given(seed=st.integers(0, 999), strength=st.sampled_from([0.5, 1.0, 2.0, -1.0]))
def test_a_term_of_a_strength_is_the_patch_applied_at_that_strength(
    tmp_path_factory: pytest.TempPathFactory, seed: int, strength: float
) -> None:
    folder = tmp_path_factory.mktemp("law")
    base = write_folder(folder / "base", small_weights(seed=seed))
    plain = random_patch(base, seed=seed)
    terms = [Term(delta=term.delta, strength=strength, source=term.source) for term in plain.terms]
    apply_patch(plain, base, folder / "first", strength=strength)
    apply_patch(make_patch(terms, open_checkpoint(base)), base, folder / "second")
    assert contents(folder / "first") == contents(folder / "second")
