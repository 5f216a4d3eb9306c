"""Files and folders that a recipe names, each with its place: what is missing, and what goes with a copy."""

from collections.abc import Iterator
from dataclasses import dataclass

from surgery.recipe.document import Place
from surgery.recipe.emcid import Emcid
from surgery.recipe.guide import Guide, GuideRecipe
from surgery.recipe.schema import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A path as the recipe spells it, seen from its folder."""

    place: Place
    name: str
    is_folder: bool = False


def files_of(recipe: Recipe | GuideRecipe) -> Iterator[NamedFile]:
    """All files and folders but the base, in the recipe's order."""
    if isinstance(recipe, GuideRecipe):
        yield from _of_guide(recipe.guide)
        return
    for number, name in enumerate(recipe.after):
        yield NamedFile(place=("after", number), name=name)
    for index, edit in enumerate(recipe.edits):
        if edit.emcid is not None:
            yield from _of_emcid(("edits", index, "emcid"), edit.emcid)
        if edit.cad is not None:
            for number, concept in enumerate(edit.cad.concepts):
                yield from _images(("edits", index, "cad", "concepts", number), concept.images)


def missing_files(recipe: Recipe | GuideRecipe) -> Iterator[tuple[Place, str]]:
    """Place and message of each that is not there."""
    for named in files_of(recipe):
        path = recipe.file(named.name)
        if not (path.is_dir() if named.is_folder else path.is_file()):
            yield named.place, f"no {'folder' if named.is_folder else 'file'} {path}. Is the path right?"


def _of_emcid(place: Place, emcid: Emcid) -> Iterator[NamedFile]:
    corpus: Place = (*place, "corpus")
    if emcid.corpus.captions != "pocket":
        yield NamedFile(place=(*corpus, "captions"), name=emcid.corpus.captions)
    if emcid.corpus.statistics is not None:
        yield NamedFile(place=(*corpus, "statistics"), name=emcid.corpus.statistics)
    for number, concept in enumerate(emcid.concepts):
        yield from _images((*place, "concepts", number), concept.images)


def _of_guide(guide: Guide) -> Iterator[NamedFile]:
    if guide.gcfg is not None:
        place: Place = ("guide", "gcfg")
        for number, concept in enumerate(guide.gcfg.concepts):
            yield NamedFile(place=(*place, "concepts", number, "patch"), name=concept.patch)
        net = guide.gcfg.controlnet
        if net is not None:
            yield NamedFile(place=(*place, "controlnet", "path"), name=net.path, is_folder=True)
            yield NamedFile(place=(*place, "controlnet", "image"), name=net.image)
    if guide.scaling_concept is not None:
        yield from _images(("guide", "scaling_concept"), guide.scaling_concept.images)


def _images(place: Place, names: tuple[str, ...]) -> Iterator[NamedFile]:
    for number, name in enumerate(names):
        yield NamedFile(place=(*place, "images", number), name=name)
