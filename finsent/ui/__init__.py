"""The page: one file per tab. The only package, besides app.py, that names gradio."""

from finsent.ui.build import build_demo, launch

__all__ = ["build_demo", "launch"]
