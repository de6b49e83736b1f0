"""Active distillation: rounds of choosing questions, buying annotations, and training."""
