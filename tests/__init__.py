"""A package, so that no installed one of that name can stand in its place."""
