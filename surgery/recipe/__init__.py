"""Recipes: what the user asks for, as strict YAML. Knows no model and loads no torch."""

from surgery.recipe.cad import Attributed, Cad
from surgery.recipe.debias import Debias, Joint, Mixed
from surgery.recipe.distill import Distill, Rescaled
from surgery.recipe.document import Document, Place, read_document
from surgery.recipe.emcid import Concept, Corpus, Emcid, Offsets, Rules, Update
from surgery.recipe.files import files_of
from surgery.recipe.guide import ConceptDiffusion, Gcfg, Guide, GuideRecipe, ScalingConcept
from surgery.recipe.loading import (
    load_any,
    load_guide,
    load_recipe,
    parse_any,
    parse_guide,
    parse_recipe,
    recipe_text,
    recipe_titles,
)
from surgery.recipe.schema import Edit, Evaluate, Recipe, Sample, recipe_schema

__all__ = [
    "Attributed",
    "Cad",
    "Concept",
    "ConceptDiffusion",
    "Corpus",
    "Debias",
    "Distill",
    "Document",
    "Edit",
    "Emcid",
    "Evaluate",
    "Gcfg",
    "Guide",
    "GuideRecipe",
    "Joint",
    "Mixed",
    "Offsets",
    "Place",
    "Recipe",
    "Rescaled",
    "Rules",
    "Sample",
    "ScalingConcept",
    "Update",
    "files_of",
    "load_any",
    "load_guide",
    "load_recipe",
    "parse_any",
    "parse_guide",
    "parse_recipe",
    "read_document",
    "recipe_schema",
    "recipe_text",
    "recipe_titles",
]
