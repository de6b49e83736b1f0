"""Export a student as a plain Hugging Face folder that shows calibrated probabilities by itself."""
