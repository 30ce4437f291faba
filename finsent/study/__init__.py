"""Studies: many runs over folds, seeds, regimes and recipes, and the statistics over them."""
