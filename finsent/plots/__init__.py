"""Figures from results: Plotly for the page, Matplotlib for files."""
