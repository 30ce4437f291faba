"""The Hugging Face Hub, asked once before its client asks for minutes."""

from __future__ import annotations

SECONDS = 10.0
"""For one answer."""


def require(repo: str, name: str, kind: str = "model") -> None:
    """Returns where the Hub's cache has a file of a repository, or the Hub knows the repository.

    transformers and the Hub's client try every file again and again where there is no network;
    this asks one question, once.

    Args:
        repo: `owner/name`.
        name: A file that the repository must have.
        kind: "model" or "dataset".

    Raises:
        Exception: What the Hub's client raises; its transport, and so its errors, vary by release.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repo, name, repo_type=kind), str):
        HfApi().repo_info(repo, repo_type=kind, timeout=SECONDS)
