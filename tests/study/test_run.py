"""A recipe run whole on a tiny random pipeline: what it writes, and that no kill leaves half of it."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint.atomic import fault_hook
from surgery.errors import SurgeryError
from surgery.patch import load_patch, patch_digest, revert_patch, verify_patch
from surgery.recipe import Recipe, parse_recipe
from surgery.study import Run, run_recipe
from tests.support.faults import FullDisk, Kill, Killed, count_steps
from tests.support.folders import contents

RECIPE = """surgery: 1
title: Two concepts
base: {base}
edits:
  - emcid:
      concepts:
        - {{source: cat, destination: pizza}}
        - {{source: dog, destination: fish}}
      offsets: {{mode: text, steps: 3, batch: 1, keep_unconverged: true}}
      update: {{layers: [9, 10]}}
      corpus: {{captions: captions.txt}}
sample: {{prompts: [a photo of a cat], seeds: 1, steps: 1}}
"""
FINAL = ("patch.safetensors", "lora.safetensors", "sheet.png", "checkpoint")


@pytest.fixture
def recipe(tmp_path: Path, tiny_pipeline: Path) -> Recipe:
    (tmp_path / "captions.txt").write_text(
        "a photo of a cat\na picture of the dog\nan image of a fish\n" * 20
    )
    return parse_recipe(RECIPE.format(base=tiny_pipeline), path=tmp_path / "recipe.yaml")


def digests(out: Path) -> dict[str, str]:
    found = {}
    for name in FINAL:
        path = out / name
        files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                found[file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def test_a_run_writes_everything_it_promises(recipe: Recipe, tmp_path: Path, tiny_pipeline: Path) -> None:
    out = tmp_path / "out"
    run = run_recipe(recipe, out)
    assert {p.name for p in out.iterdir()} == {*FINAL, "run.json", "cache"}
    record = json.loads((out / "run.json").read_text())
    assert record["plan"]["identity"] == run.plan.identity
    assert [edit["label"] for edit in record["edits"][0]["edits"]] == ["cat → 'pizza'", "dog → 'fish'"]
    assert record["recipe"]["source"] == recipe.source
    named = {path.relative_to(out).as_posix() for name in FINAL for path in [out / name] if path.is_file()}
    named |= {path.relative_to(out).as_posix() for path in (out / "checkpoint").rglob("*") if path.is_file()}
    assert set(record["files"]) == named
    patch = record["files"]["patch.safetensors"]
    assert patch["sha256"] == hashlib.sha256((out / "patch.safetensors").read_bytes()).hexdigest()
    assert patch["autov2"] == patch["sha256"][:10]
    assert verify_patch(run.patch, out / "checkpoint").word == "after"
    revert_patch(run.patch, out / "checkpoint", tmp_path / "reverted", base=tiny_pipeline)
    assert contents(tmp_path / "reverted") == contents(tiny_pipeline)


def test_one_concept_goes_from_the_text_encoder_and_from_the_u_net_in_one_recipe(
    recipe: Recipe, tmp_path: Path, tiny_pipeline: Path
) -> None:
    masks = """  - cad:
      concepts: [{source: cat}]
      components: [unet/mid_block*]
      controls: false
      attribution: {trajectories: 1, sampling_steps: 2, graded_steps: 1, staggered: false}
      selection: {ratio: 0.05}
"""
    text = recipe.source.replace("sample:", f"{masks}sample:")
    both = run_recipe(parse_recipe(text, path=recipe.path), tmp_path / "both")
    alone = run_recipe(recipe, tmp_path / "alone")
    edited, emcid = both.patch.changes, alone.patch.changes
    assert {name: edited[name].after for name in emcid} == {name: one.after for name, one in emcid.items()}
    masked = set(edited) - set(emcid)
    assert masked and all(name.startswith("unet/mid_block") for name in masked)
    assert verify_patch(both.patch, tmp_path / "both" / "checkpoint").word == "after"
    revert_patch(both.patch, tmp_path / "both" / "checkpoint", tmp_path / "reverted", base=tiny_pipeline)
    assert contents(tmp_path / "reverted") == contents(tiny_pipeline)


def test_the_patch_remembers_the_recipe_and_no_clock_or_place(recipe: Recipe, tmp_path: Path) -> None:
    run = run_recipe(recipe, tmp_path / "out")
    provenance = load_patch(tmp_path / "out" / "patch.safetensors").provenance
    assert provenance["recipe"] == recipe.source
    assert provenance["recipe_digest"] == recipe.digest
    assert provenance["plan"] == run.plan.identity
    assert set(provenance) == {
        "base", "keys", "overrides", "plan", "recipe", "recipe_digest", "seed", "title", "versions"
    }  # fmt: skip


def test_two_runs_in_two_places_give_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    run_recipe(recipe, tmp_path / "one")
    run_recipe(recipe, tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_the_order_of_concepts_changes_no_byte_of_the_weights(
    recipe: Recipe, tmp_path: Path, tiny_pipeline: Path
) -> None:
    lines = RECIPE.splitlines(keepends=True)
    cat, dog = (next(n for n, line in enumerate(lines) if word in line) for word in ("cat, d", "dog, d"))
    lines[cat], lines[dog] = lines[dog], lines[cat]
    permuted = parse_recipe("".join(lines).format(base=tiny_pipeline), path=recipe.path)
    first = run_recipe(recipe, tmp_path / "one").patch
    second = run_recipe(permuted, tmp_path / "two").patch
    assert {n: c.after for n, c in first.changes.items()} == {n: c.after for n, c in second.changes.items()}


def test_a_finished_run_is_not_overwritten_unasked(recipe: Recipe, tmp_path: Path) -> None:
    run_recipe(recipe, tmp_path / "out")
    before = digests(tmp_path / "out")
    with pytest.raises(SurgeryError, match="--overwrite"):
        run_recipe(recipe, tmp_path / "out")
    run_recipe(recipe, tmp_path / "out", overwrite=True)
    assert digests(tmp_path / "out") == before


def test_a_debiased_concept_is_named_with_its_shares_and_its_mixture_is_recorded(
    recipe: Recipe, tmp_path: Path
) -> None:
    concepts = "[{source: doctor, kind: debias, shares: {gender: {woman: 0.75, man: 0.25}}}]"
    changes = {"edits[0].emcid.concepts": concepts, "edits[0].emcid.debias.tuning": "none"}
    run = run_recipe(parse_recipe(recipe.source, path=recipe.path, overrides=changes), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["edits"][0]["mixtures"] == {"doctor": {"woman doctor": 0.75, "man doctor": 0.25}}
    assert [edit["label"] for edit in record["edits"][0]["edits"]] == [
        "doctor → 'woman doctor' | 'man doctor'"
    ]
    assert run.plan.steps[0].work.batches == (1, 1)
    assert (run.effect, run.balance) == (None, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("edits[0].emcid.update.layers", "[11]", "update.layers"),
        ("edits[0].emcid.concepts[0].destination", "fish <|endoftext|> cat", "start or end token"),
        ("dtype", "bfloat16", "has more digits"),
    ],
)
def test_a_run_that_cannot_be_leaves_the_older_one(
    recipe: Recipe, tmp_path: Path, key: str, value: str, message: str
) -> None:
    run_recipe(recipe, tmp_path / "out")
    before = contents(tmp_path / "out")
    faulty = parse_recipe(recipe.source, path=recipe.path, overrides={key: value})
    with pytest.raises(SurgeryError, match=message):
        run_recipe(faulty, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_one_source_in_two_edits_is_refused_before_anything_is_written(
    recipe: Recipe, tmp_path: Path
) -> None:
    again = """  - emcid:
      concepts: [{source: CAT, destination: pizza}]
      corpus: {captions: captions.txt}
sample:"""
    doubled = parse_recipe(recipe.source.replace("sample:", again), path=recipe.path)
    with pytest.raises(SurgeryError, match=r"edits\[0\] \(cat → 'pizza'\) and edits\[1\] \(CAT"):
        run_recipe(doubled, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_run_that_changes_nothing_says_why_there_is_no_lora(recipe: Recipe, tmp_path: Path) -> None:
    concepts = "[{source: cat, destination: cat}]"
    same = parse_recipe(recipe.source, path=recipe.path, overrides={"edits[0].emcid.concepts": concepts})
    run = run_recipe(same, tmp_path / "out")
    assert {finding.kind for finding in run.findings} - {"few-tokens"} == {"identity", "not-written"}
    assert not (tmp_path / "out" / "lora.safetensors").exists()
    assert (tmp_path / "out" / "run.json").exists()


@pytest.mark.slow
def test_a_run_killed_at_any_step_leaves_nothing_half_and_goes_on_to_the_same_bytes(
    recipe: Recipe, tmp_path: Path
) -> None:
    whole: list[Run] = []
    steps = count_steps(lambda: whole.append(run_recipe(recipe, tmp_path / "whole")))
    wanted = digests(tmp_path / "whole")
    assert steps > 20
    for at in range(steps):
        out = tmp_path / f"killed-{at}"
        with suppress(Killed), fault_hook(Kill(at)):
            run_recipe(recipe, out)
        left = digests(out)
        assert {name: wanted[name] for name in left} == left, f"half-written after step {at}"
        run_recipe(recipe, out, overwrite=(out / "run.json").exists())
        assert digests(out) == wanted, f"another result after a kill at step {at}"
        assert not [p for p in out.rglob("*") if p.name.endswith((".partial", ".previous"))]
    assert patch_digest(whole[0].patch)


@pytest.mark.slow
def test_a_full_disk_is_one_plain_error_and_the_run_goes_on_when_there_is_room(
    recipe: Recipe, tmp_path: Path
) -> None:
    run_recipe(recipe, tmp_path / "whole")
    wanted = digests(tmp_path / "whole")
    for at in (0, 3, 7):
        out = tmp_path / f"full-{at}"
        with pytest.raises(SurgeryError, match="No space left"), fault_hook(FullDisk(at)):
            run_recipe(recipe, out)
        left = digests(out)
        assert {name: wanted[name] for name in left} == left
        run_recipe(recipe, out)
        assert digests(out) == wanted


def test_what_was_halved_for_want_of_memory_stands_in_the_record(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.methods.emcid import offsets
    from surgery.methods.emcid.problem import problem_of

    def small(models: Any, concepts: Any, *more: Any) -> Any:
        if len(concepts) > 1:
            raise torch.OutOfMemoryError
        return problem_of(models, concepts, *more)

    wanted = run_recipe(recipe, tmp_path / "one").patch
    monkeypatch.setattr(offsets, "problem_of", small)
    pairs = parse_recipe(recipe.source, path=recipe.path, overrides={"edits[0].emcid.offsets.batch": "2"})
    run = run_recipe(pairs, tmp_path / "two")
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    (finding,) = [found for found in record["findings"] if found["kind"] == "out-of-memory"]
    assert (finding["subject"], finding["message"]) == (
        "concepts", "2 at once do not fit into memory; went on with halves."
    )  # fmt: skip
    assert {n: c.after for n, c in run.patch.changes.items()} == {
        n: c.after for n, c in wanted.changes.items()
    }
