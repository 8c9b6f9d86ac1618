"""Training the reference: the recipe, the loop, the record of what came out."""
