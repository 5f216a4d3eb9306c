import logging

import pytest
import torch

from surgery.diffusion import halving, in_batches, noting_halvings
from surgery.errors import SurgeryError


def test_slices_cover_all_items_in_order() -> None:
    slices = in_batches(7, 3, lambda part: (part.start, part.stop))
    assert slices == [(0, 3), (3, 6), (6, 7)]


def test_no_items_need_no_work() -> None:
    assert in_batches(0, 3, lambda part: part) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def work(part: slice) -> tuple[int, int]:
        if part.stop - part.start > 2:
            raise error
        return part.start, part.stop

    with caplog.at_level(logging.WARNING, logger="surgery.diffusion.batches"):
        slices = in_batches(8, 5, work)
    assert slices == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: of pictures 5 at once do not fit into memory; went on with halves"
    ]


def test_halvings_are_noted_once_for_whoever_asks() -> None:
    def work(part: slice) -> None:
        if part.stop - part.start > 2:
            raise MemoryError

    in_batches(4, 4, work)  # nobody asks
    with noting_halvings() as noted:
        in_batches(4, 4, work)
        in_batches(4, 4, work)
        in_batches(2, 2, work)
    (finding,) = noted
    assert (finding.kind, finding.subject) == ("out-of-memory", "pictures")
    assert finding.message == "4 at once do not fit into memory; went on with halves."


def test_a_caller_with_names_for_its_batches_halves_them_itself() -> None:
    def work(part: slice) -> tuple[int, int]:
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError
        return part.start, part.stop

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(8, 4, work, halve=False)
    assert halving(4, lambda batch: in_batches(4, batch, work, halve=False)) == [(0, 2), (2, 4)]


def test_one_item_that_does_not_fit_is_an_error_of_ours() -> None:
    def work(part: slice) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(SurgeryError, match="batch of one"):
        in_batches(4, 2, work)


def test_other_errors_pass_through() -> None:
    def work(part: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_batches(4, 2, work)


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(SurgeryError, match="batch is 0"):
        in_batches(4, 0, lambda part: part)
