"""Which attack finds most for how many passes."""
