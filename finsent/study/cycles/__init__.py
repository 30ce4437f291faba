"""Studies of cycles: a run trains until it has converged, then grows dendrites and trains again."""
