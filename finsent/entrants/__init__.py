"""Models from elsewhere beside ours: loaded, asked what ours are asked, put on the board."""
