"""A package of its own: a dependency installs another one named `tests`, which would win."""
