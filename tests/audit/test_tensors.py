"""All tensors measured, in several threads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.audit.sides import Block, Listed, sliced
from surgery.audit.tensors import tensor_rows
from surgery.record import JSON

COUNT = 60


@dataclass(frozen=True)
class EqualTensors:
    """Many tensors, all the same, of a size that a sum by two threads comes out otherwise for than by one."""

    tensor: Tensor
    has_base: bool = True

    @property
    def tensors(self) -> Mapping[str, Listed]:
        shape, dtype = tuple(self.tensor.shape), self.tensor.dtype
        listed = Listed(presence="shared", shape=shape, dtypes=(dtype, dtype))
        return {f"unet/layer_{number:02}.weight": listed for number in range(COUNT)}

    @property
    def facts(self) -> Mapping[str, Mapping[str, JSON]]:
        return {}

    def blocks(self, name: str, elements: int = 1 << 20) -> Iterator[Block]:
        return sliced(self.tensor, self.tensor, elements)


def test_equal_tensors_measure_equal_to_the_last_digit_whichever_thread_does_it() -> None:
    tensor = torch.randn(24, 432, generator=torch.Generator().manual_seed(0)).half()
    before = torch.get_num_threads()
    for _ in range(3):
        rows = tensor_rows(EqualTensors(tensor), spectra=False)
        assert len({row.base_norm for row in rows}) == 1
    assert torch.get_num_threads() == before
