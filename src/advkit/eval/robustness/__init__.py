"""How robust a model is under attacks: the evaluation and its report."""
