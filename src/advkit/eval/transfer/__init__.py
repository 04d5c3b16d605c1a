"""Transfer: adversarial examples of one model, evaluated on other models."""
