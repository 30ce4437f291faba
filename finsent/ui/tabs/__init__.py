"""One module for each tab of the page, and one for its HTML where that is long."""
