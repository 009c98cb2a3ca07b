"""Two traced runs and what is told of them: where they part, how far apart they end, and what each returned."""
