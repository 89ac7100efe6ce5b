"""Recipes: everything that defines a run, as typed data. `load_recipe` reads a file and returns a `Recipe`."""

from seresnext.recipe.check import check_world as check_world
from seresnext.recipe.load import LoadedRecipe as LoadedRecipe
from seresnext.recipe.load import load_recipe as load_recipe
from seresnext.recipe.load import recipe_from_values as recipe_from_values
from seresnext.recipe.load import to_values as to_values
from seresnext.recipe.schema import Recipe as Recipe
