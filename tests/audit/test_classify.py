"""Every kind of change that the audit names, on a small pair changed so, and what it must not say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surgery.audit import AuditOptions, audit_checkpoints
from surgery.report.audit_record import Claim
from tests.audit.folders import TEXT, Tensors, changed, low_rank, pair, weights
from tests.support.folders import write_folder

HALF = torch.float16
G = low_rank(torch.zeros(TEXT, TEXT), rank=2, size=0.3)


def noise(weight: Tensor, size: float, seed: int) -> Tensor:
    return size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))


def claims(
    folder: Path,
    change: Callable[[str, Tensor], Tensor],
    *,
    dtype: torch.dtype = HALF,
    options: AuditOptions | None = None,
) -> dict[str, Claim]:
    before = weights(dtype)
    record = audit_checkpoints(*pair(folder, before, changed(before, change)), options)
    return {claim.kind: claim for claim in record.claims}


def is_fc2(name: str) -> bool:
    return name.endswith("mlp.fc2.weight")


def is_cross(name: str) -> bool:
    return "attn2.to_k" in name or "attn2.to_v" in name


def mlp_edit(name: str, weight: Tensor) -> Tensor:
    return (weight.float() + low_rank(weight.float(), 3)).half() if is_fc2(name) else weight


def operator_edit(name: str, weight: Tensor) -> Tensor:
    return (weight.float() + weight.float() @ G).half() if is_cross(name) else weight


def mask(name: str, weight: Tensor, factor: float = 0.0) -> Tensor:
    if not name.startswith("unet") or weight.ndim < 2:
        return weight
    chosen = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    return torch.where(chosen, (weight.float() * factor).half(), weight)


def fine_tune(name: str, weight: Tensor) -> Tensor:
    if not name.startswith("unet"):
        return weight
    return (weight.float() + noise(weight, 0.05, len(name))).to(weight.dtype)


def test_nothing_is_called_nothing(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: weight)
    assert list(found) == ["nothing"]
    assert found["nothing"].sure == "certain"


def test_a_low_rank_edit_of_text_mlps_is_named_with_its_rank(tmp_path: Path) -> None:
    found = claims(tmp_path, mlp_edit)
    assert list(found) == ["text-mlp-low-rank"]
    claim = found["text-mlp-low-rank"]
    assert (claim.sure, claim.subject, claim.tensors) == ("certain", "text_encoder", 3)
    assert "rank above rounding 3 of 16" in claim.evidence


def test_the_same_with_other_changes_beside_it_is_less_sure(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return weight + 1 if name.endswith("layer_norm1.weight") else mlp_edit(name, weight)

    assert claims(tmp_path, edit)["text-mlp-low-rank"].sure == "likely"


def test_one_map_of_all_cross_attention_is_named(tmp_path: Path) -> None:
    found = claims(tmp_path, operator_edit)
    assert list(found) == ["cross-attention-operator"]
    assert found["cross-attention-operator"].sure == "certain"
    assert "one G for the keys and values" in found["cross-attention-operator"].evidence[0]


def test_cross_attention_without_a_shared_map_is_told_apart(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return (weight.float() + noise(weight, 0.1, len(name))).half() if is_cross(name) else weight

    found = claims(tmp_path, edit)
    assert list(found) == ["cross-attention"]
    assert "not of the form W(I+G)" in found["cross-attention"].statement


def test_elements_set_to_zero_are_a_mask(tmp_path: Path) -> None:
    found = claims(tmp_path, mask)
    assert list(found) == ["element-mask"]
    assert "set to zero" in found["element-mask"].statement


def test_a_mask_of_cross_attention_alone_is_a_mask_and_no_other_edit_of_it(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: mask(name, weight) if is_cross(name) else weight)
    assert list(found) == ["element-mask"]


def test_elements_scaled_by_one_factor_are_a_mask_too(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: mask(name, weight, 0.3))
    assert list(found) == ["element-mask"]
    assert "scaled by 0.3" in found["element-mask"].statement


def test_whole_tensors_scaled_are_no_mask(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: weight * 0.5 if is_cross(name) else weight)
    assert "scaled" in found
    assert "element-mask" not in found


def test_a_fine_tune_everywhere_is_named_and_no_more(tmp_path: Path) -> None:
    found = claims(tmp_path, fine_tune)
    assert list(found) == ["fine-tune"]
    assert (found["fine-tune"].subject, found["fine-tune"].sure) == ("unet", "likely")


def test_a_fine_tune_of_all_components_may_be_a_merge_and_says_what_would_tell(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: (weight + noise(weight, 0.05, len(name))).to(weight.dtype))
    assert found["merge"].sure == "possible"
    assert any("--other" in fact for fact in found["merge"].evidence)


def test_a_merge_is_certain_once_the_other_model_is_named(tmp_path: Path) -> None:
    other: Tensors = weights(HALF, seed=1)
    flat = {f"{component}/{key}": tensor for component in other for key, tensor in other[component].items()}
    path = write_folder(tmp_path / "other", other)
    found = claims(
        tmp_path,
        lambda name, weight: (0.8 * weight + 0.2 * flat[name]).half(),
        options=AuditOptions(other=path),
    )
    assert found["merge"].sure == "certain"
    assert "about 20 %" in found["merge"].statement


def test_another_model_that_was_not_merged_is_said_so(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "other", weights(HALF, seed=1))
    found = claims(tmp_path, fine_tune, options=AuditOptions(other=path))
    assert "merge" not in found
    assert "no-merge" in found


def test_changed_token_vectors_are_named(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        if name.endswith("token_embedding.weight"):
            weight[[7, 9]] += 1
        return weight

    found = claims(tmp_path, edit)
    assert list(found) == ["token-rows"]
    assert found["token-rows"].evidence == ("2 of 50 rows changed",)


def test_changed_columns_are_named(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        if is_fc2(name):
            weight[:, 5] += 1
        return weight

    assert list(claims(tmp_path, edit)) == ["rows-and-columns"]


def test_a_low_rank_change_elsewhere_looks_like_a_merged_lora(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        if name.endswith(("to_q.weight", "to_k.weight")):
            return (weight.float() + low_rank(weight.float(), 2, seed=len(name))).half()
        return weight

    found = claims(tmp_path, edit)
    assert "low-rank" in found
    assert "fine-tune" not in found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_is_no_edit(tmp_path: Path, dtype: torch.dtype) -> None:
    found = claims(tmp_path, lambda name, weight: weight.to(dtype), dtype=torch.float32)
    assert set(found) == {"dtype-cast"}
    assert str(dtype).removeprefix("torch.") in found["dtype-cast"].evidence[0]


def test_weights_rounded_through_half_precision_are_a_cast(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: weight.half().float(), dtype=torch.float32)
    assert set(found) == {"dtype-cast"}


def test_an_edit_shows_beside_a_cast(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return (weight + low_rank(weight, 2)).half() if is_fc2(name) else weight.half()

    assert set(claims(tmp_path, edit, dtype=torch.float32)) == {"text-mlp-low-rank", "dtype-cast"}


def test_two_edits_are_both_named(tmp_path: Path) -> None:
    found = claims(tmp_path, lambda name, weight: operator_edit(name, mlp_edit(name, weight)))
    assert set(found) == {"text-mlp-low-rank", "cross-attention-operator"}


def test_a_faint_fine_tune_that_half_precision_nearly_swallows_is_not_low_rank(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return (weight.float() + noise(weight, 3e-4, len(name))).half() if "unet" in name else weight

    found = claims(tmp_path, edit)
    assert "low-rank" not in found
    assert "text-mlp-low-rank" not in found


def test_without_spectra_no_rank_is_claimed(tmp_path: Path) -> None:
    found = claims(tmp_path, mlp_edit, options=AuditOptions(spectra=False))
    assert "text-mlp-low-rank" not in found
    assert list(found) == ["dense-part"]
