"""Recipes: everything that defines a run, as typed data. `load_recipe` reads a file and returns a `Recipe`."""

from seresnext.recipe.check import check_lengths, check_world, fitting_batch, in_words
from seresnext.recipe.load import LoadedRecipe, load_recipe, recipe_from_values, recipe_names, to_values
from seresnext.recipe.reader import write_scalar
from seresnext.recipe.schema import AUTO_CLASSES, Recipe
from seresnext.recipe.show import diff, print_recipe, recipe_hash, to_yaml

__all__ = [
    "AUTO_CLASSES", "LoadedRecipe", "Recipe", "check_lengths", "check_world", "diff", "fitting_batch", "in_words",
    "load_recipe", "print_recipe", "recipe_from_values", "recipe_hash", "recipe_names", "to_values", "to_yaml",
    "write_scalar",
]  # fmt: skip
