"""Tables of the Leaderboard and Studies tabs: HTML only, no events."""
