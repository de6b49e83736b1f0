"""Built-in annotators: what is bought of a chosen question."""
