"""What the checks of all kinds of plugins share."""


def require(condition: object, sentence: str) -> None:
    """Raise AssertionError unless the condition holds; `python -O` would drop an `assert`."""
    if not condition:
        raise AssertionError(sentence)
