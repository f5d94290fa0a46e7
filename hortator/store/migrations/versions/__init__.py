"""One file a revision, named after it. Never change one that was released; add the next."""
