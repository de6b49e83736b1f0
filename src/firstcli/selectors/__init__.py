"""Built-in selectors: which questions of a pool are annotated next."""
