"""What several tabs share: markup, words, selectors, cards."""
