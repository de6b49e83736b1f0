"""A student's folder by itself: what describes its use, and the answers that it gives."""
