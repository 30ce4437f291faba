"""What a text has in it that the models were not made for, said beside the answer.

A model that knows three labels gives one to a recipe as well. `notices` says which of five things
speak against taking the label at its word. It reads the text alone, not what a model says of it,
and would rather say nothing than warn of ordinary news.
"""

from finsent.serving.notices.rules import Notice, notices

__all__ = ["Notice", "notices"]
