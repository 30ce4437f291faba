"""The page: one file per tab. The only package, besides app.py, that names gradio."""

from finsent.ui.build import build_demo, launch
from finsent.ui.tabs.owner import owner_from_environment

__all__ = ["build_demo", "launch", "owner_from_environment"]
