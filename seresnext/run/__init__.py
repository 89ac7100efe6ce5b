"""The jobs of the commands, each from a recipe to its end. Only this package sees a whole recipe."""
