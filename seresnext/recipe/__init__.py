"""Recipes: what a run is, as typed data. `load_recipe` reads one, `Recipe` is what the rest of the package sees."""
