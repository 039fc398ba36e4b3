"""What the demo raises for a user's mistake."""


class DemoError(ValueError):
    """Something that the user named cannot be used; the message is one line that says what and what
    to do."""
