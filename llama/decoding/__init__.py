"""Ways to write with a model beyond one batch: beams, drafts that are checked, kept prefixes, chats, and scores."""
