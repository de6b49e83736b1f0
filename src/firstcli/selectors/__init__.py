"""Built-in selectors: which questions of a pool the teacher annotates."""
