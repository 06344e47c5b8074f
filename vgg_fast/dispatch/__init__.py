"""Which kernel runs an operator's call: the tables of choices and of tiles, and the route."""
