"""The pocket model: how it is made, and the card that says what it knows."""
