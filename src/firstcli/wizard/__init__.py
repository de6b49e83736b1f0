"""From a data file to a recipe: look at the columns, guess their roles, write the recipe."""
