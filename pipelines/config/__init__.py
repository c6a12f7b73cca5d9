"""The recipe: one YAML file that configures a whole run, as frozen pydantic models.

Imports `errors` only, of the rooms, and neither torch nor Ray, so that a mistake in a recipe is told at once.
It reads recipes from disk or any fsspec URL, and touches no accelerator.
"""

from dualtoken.pipelines.config.parse import load_recipe, shipped_recipes
from dualtoken.pipelines.config.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "shipped_recipes"]
