"""The shared model's states, and the turns that its visitors take."""
