from pathlib import Path
from typing import Any

from surgery.evaluate import Sampling
from surgery.evaluate.pictures import Painter
from surgery.store import Store


def test_pictures_are_found_again_by_a_process_that_lists_the_schedulers_defaults_in_another_order(
    pipeline: Any, tmp_path: Path
) -> None:
    # diffusers makes the list from a set of words, whose order differs from process to process
    sampling = Sampling(templates=("a {}",), samples=1, steps=1)
    scheduler, drawn = pipeline.scheduler, []
    hook = pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: drawn.append(len(args[0])))
    try:
        for defaults in (["clip_sample", "thresholding"], ["thresholding", "clip_sample"]):
            pipeline.scheduler = type(scheduler).from_config(scheduler.config)
            pipeline.scheduler.register_to_config(_use_default_values=defaults)
            painter = Painter(models=pipeline, sampling=sampling, store=Store(tmp_path))
            painter.pictures("cat", sampling.templates)
    finally:
        pipeline.scheduler = scheduler
        hook.remove()
    assert drawn == [1]
