"""Where concepts live in a checkpoint: their attribution as data and as a picture; nothing is edited."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from surgery.anatomy import block_order, place_of
from surgery.anatomy.atlas import ROLES
from surgery.anatomy.components import components_of
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.atomic import atomic_folder, write_bytes
from surgery.checkpoint.outputs import refuse_foreign_files
from surgery.methods.cad.door import edit
from surgery.methods.cad.maker import MaskReport
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.settings import CadSettings, as_json
from surgery.names import TEXT_ENCODERS, split
from surgery.record import JSON
from surgery.report.concept_map import Cell, ConceptMap, concept_maps
from surgery.store import Store
from surgery.store.libraries import library_versions
from surgery.study.loading import pipeline_on

MAP_FILE, RECORD_FILE = "map.png", "attribution.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptRecord:
    """What was found of some concepts: plain data, and the same as a picture (PNG)."""

    data: Mapping[str, JSON]
    picture: bytes
    maps: tuple[ConceptMap, ...]
    masks: tuple[MaskReport, ...]

    def lines(self) -> Iterator[str]:
        """For people: where each concept is made most, and what its mask does."""
        for one, mask in zip(self.maps, self.masks, strict=True):
            best = sorted(one.positive, key=lambda cell: -one.positive[cell])[:3]
            where = ", ".join(
                f"{block} {role} {100 * one.positive[block, role]:.0f} %" for block, role in best
            )
            yield f"{one.name}: most of it in {where}"
            yield from mask.lines()


def attribute_concepts(
    base: Path,
    concepts: Sequence[CadConcept],
    settings: CadSettings,
    *,
    components: Sequence[str] = ("ff",),
    device: str = "cpu",
    offloaded: bool = False,
    dtype: torch.dtype = torch.float32,
    store: Store | None = None,
) -> ConceptRecord:
    """Which parts of a checkpoint make each concept, and how far their masks at ``settings``' ratio overlap.

    Raises:
        SurgeryError: when the checkpoint or the settings do not fit.
    """
    checkpoint = open_checkpoint(base)
    names = components_of(checkpoint.shapes, components)
    models = pipeline_on(base, device, dtype, offloaded=offloaded)
    found = edit(models, concepts, names, settings, store=store)
    blocks = _blocks(names)
    roles = [role for role in ROLES if any(place_of(name).role == role for name in names)]
    maps = [_map(concept, mask) for concept, mask in zip(concepts, found.masks, strict=True)]
    overlaps = [[one.mask.overlap(other.mask) for other in found.masks] for one in found.masks]
    data: dict[str, JSON] = {
        "attribution": 2,
        "base": str(base),
        "fingerprint": {name: root.bytes for name, root in sorted(checkpoint.fingerprint().roots.items())},
        "components": list(components),
        "settings": {
            "attribution": as_json(settings.attribution),
            "selection": as_json(settings.selection),
            "polarity": settings.polarity,
            "dtype": str(dtype).removeprefix("torch."),
        },
        "blocks": blocks,
        "roles": roles,
        "concepts": [_record(*row) for row in zip(concepts, maps, found.masks, strict=True)],
        "overlaps": overlaps,
        "findings": [
            {"subject": one.subject, "kind": one.kind, "message": one.message} for one in found.findings
        ],
        "versions": library_versions(),
    }
    picture = concept_maps(maps, blocks, roles, overlaps)
    return ConceptRecord(data=data, picture=picture, maps=tuple(maps), masks=found.masks)


def write_attribution(record: ConceptRecord, out: Path, *, overwrite: bool = False) -> None:
    """Write the data and the picture into a new folder, whole or not at all.

    Raises:
        SurgeryError: when ``out`` exists and ``overwrite`` is not set, when it holds anything but an earlier
            attribution, or the disk refuses.
    """
    refuse_foreign(out)
    text = json.dumps(record.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_folder(out, overwrite=overwrite) as folder:
        write_bytes(folder / RECORD_FILE, [text.encode()])
        write_bytes(folder / MAP_FILE, [record.picture])


def refuse_foreign(out: Path) -> None:
    """Refuse a folder whose content is no earlier attribution: to overwrite it is to delete it.

    Raises:
        SurgeryError: naming some of what is in there.
    """
    refuse_foreign_files(out, f"{re.escape(RECORD_FILE)}|{re.escape(MAP_FILE)}", "an earlier attribution")


def _blocks(names: Sequence[str]) -> list[str]:
    """In the order of a signal; those of SDXL's second text encoder behind the others of text encoders."""
    found = []
    for part in (*TEXT_ENCODERS, "unet"):
        own = {place_of(name).block: _block(name) for name in names if split(name)[0] == part}
        found += [own[block] for block in block_order(own)]
    return found


def _block(name: str) -> str:
    """The block of a tensor, told from that of the same name in the other text encoder."""
    place = place_of(name)
    return f"2nd {place.block}" if place.component == "text_encoder_2" else place.block


def _map(concept: CadConcept, mask: MaskReport) -> ConceptMap:
    """Shares of the score mass by block and role."""
    (facts,) = mask.facts
    # where no weight has a score, no place has a share
    mass = sum(above - below for above, below in facts.by_tensor.values()) or 1.0
    positive: dict[Cell, float] = {}
    negative: dict[Cell, float] = {}
    for name, (above, below) in facts.by_tensor.items():
        cell = (_block(name), place_of(name).role)
        positive[cell] = positive.get(cell, 0.0) + above / mass
        negative[cell] = negative.get(cell, 0.0) - below / mass
    return ConceptMap(name=concept.name, positive=positive, negative=negative)


def _record(concept: CadConcept, one: ConceptMap, mask: MaskReport) -> dict[str, JSON]:
    (facts,) = mask.facts
    return {
        "name": one.name,
        "prompts": list(concept.prompts),
        "seed": concept.seed,
        **mask.as_json(),
        "positive": _cells(one.positive),
        "negative": _cells(one.negative),
        "by_tensor": {name: list(sums) for name, sums in facts.by_tensor.items()},
        "by_timestep": {str(step): value for step, value in facts.by_timestep.items()},
    }


def _cells(cells: Mapping[Cell, float]) -> dict[str, JSON]:
    table: dict[str, dict[str, JSON]] = {}
    for (block, role), share in cells.items():
        table.setdefault(block, {})[role] = share
    return dict(table)
